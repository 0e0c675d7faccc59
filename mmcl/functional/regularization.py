"""Penalties on weights alone, and how much each weight matters to them.

A strategy adds a penalty's gradient after the backward pass, not its value to the loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from mmcl.errors import MmclError
from mmcl.functional._precision import widen
from mmcl.functional.averaging import same_structure

Tensors = dict[str, Tensor]


def l2_penalty(params: Mapping[str, Tensor], anchor: Mapping[str, Tensor]) -> Tensor:
    """Sum over all tensors of sum((p - a)^2), without 1/2 (weight consolidation of ZSCL; Zheng et al., ICCV 2023).

    It is not scale-free: it grows with the number of parameters.

    Args:
        params: the weights; their gradient is 2 (p - a).
        anchor: weights of the same names and shapes; no gradient.

    Returns:
        A scalar in float32 or the inputs' wider type.

    Raises:
        MmclError: names or shapes differ, or there is nothing to sum.

    >>> l2_penalty({"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([0.0, 4.0])}).item()
    5.0
    """
    same_structure(params, anchor)
    terms = []
    for name, param in params.items():
        wide, fixed = widen(param, anchor[name].detach())
        terms.append((wide - fixed).square().sum())
    return _total(terms)


@torch.no_grad()
def l2_gradients(params: Mapping[str, Tensor], anchor: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """`l2_penalty` and its gradient by hand, tensor by tensor: a third of autograd's time, without its memory.

    Args:
        params: the weights.
        anchor: weights of the same names and shapes.

    Yields:
        (name, the tensor's part of the penalty, its gradient 2 (p - a) in float32 or wider, which is the caller's).

    Raises:
        MmclError: names or shapes differ.

    >>> w, a = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([0.0, 4.0])}
    >>> [(name, part.item(), gradient.tolist()) for name, part, gradient in l2_gradients(w, a)]
    [('w', 5.0, [2.0, -4.0])]
    """
    same_structure(params, anchor)
    for name, param in params.items():
        wide, fixed = widen(param, anchor[name])
        away = wide - fixed
        yield name, away.square().sum(), away.mul_(2)


def ewc_penalty(params: Mapping[str, Tensor], anchor: Mapping[str, Tensor], fisher: Mapping[str, Tensor]) -> Tensor:
    """Half the sum of F (p - a)^2 (elastic weight consolidation; Kirkpatrick et al., PNAS 2017).

    Args:
        params: the weights; their gradient is F (p - a).
        anchor: weights at the end of the earlier task, of the same names and shapes.
        fisher: diagonal Fisher information, of the same names and shapes.

    Returns:
        A scalar in float32 or the inputs' wider type.

    Raises:
        MmclError: names or shapes differ, or there is nothing to sum.

    >>> w, a, f = ({"w": torch.tensor([x, 1.0])} for x in (3.0, 1.0, 0.5))
    >>> ewc_penalty(w, a, f).item()
    1.0
    """
    same_structure(params, anchor)
    same_structure(params, fisher)
    terms = []
    for name, param in params.items():
        wide, fixed, importance = widen(param, anchor[name].detach(), fisher[name].detach())
        terms.append((importance * (wide - fixed).square()).sum())
    return _total(terms) / 2


@torch.no_grad()
def ewc_gradients(
    params: Mapping[str, Tensor], anchor: Mapping[str, Tensor], fisher: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """`ewc_penalty` and its gradient by hand, tensor by tensor; any importance may stand for the Fisher information.

    Args:
        params: the weights.
        anchor: weights of the same names and shapes.
        fisher: importance of each weight, of the same names and shapes.

    Yields:
        (name, the tensor's part of the penalty, its gradient F (p - a) in float32 or wider, which is the caller's).

    Raises:
        MmclError: names or shapes differ.

    >>> w, a, f = ({"w": torch.tensor([x, 1.0])} for x in (3.0, 1.0, 0.5))
    >>> [(name, part.item(), gradient.tolist()) for name, part, gradient in ewc_gradients(w, a, f)]
    [('w', 1.0, [1.0, 0.0])]
    """
    same_structure(params, anchor)
    same_structure(params, fisher)
    for name, param in params.items():
        wide, fixed, importance = widen(param, anchor[name], fisher[name])
        away = wide - fixed
        gradient = importance * away
        yield name, (gradient * away).sum() / 2, gradient


def fisher_diagonal(
    gradients: Iterable[Mapping[str, Tensor]], *, batch_size: int = 1, weights: Iterable[Tensor | float] | None = None
) -> Tensors:
    """Diagonal Fisher information out of gradients: their squares, averaged.

    One function for the estimators in use, which differ in what is squared:

    - per sample (the textbook's): the gradient of each sample's loss. With the samples' labels it is the empirical
      Fisher information, with the labels that the model predicts the variant of that name.
    - expected: the gradients of every label that a sample could have, with the model's probabilities as `weights`.
    - squared batch-mean gradients (FoMo-in-Flux, CTP): `batch_size` gradients are averaged before the square, or the
      gradients are those of batches already. It is smaller than the first one by up to the batch size, so a penalty's
      weight is never carried over from one to the other.

    Args:
        gradients: of samples or of batches, one after another; only sums are held.
        batch_size: how many consecutive ones are averaged before they are squared; the last batch may be smaller.
        weights: of the gradients, for ``batch_size=1``; the mean is divided by their sum.

    Returns:
        The mean of the squares under the same names, in float32 or the gradients' wider type.

    Raises:
        MmclError: there is no gradient, `batch_size` is below 1, or weights go with batches.

    >>> per_sample = [{"w": torch.tensor([1.0])}, {"w": torch.tensor([-1.0])}, {"w": torch.tensor([2.0])}]
    >>> fisher_diagonal(per_sample)["w"].item(), fisher_diagonal(per_sample, batch_size=2)["w"].item()
    (2.0, 2.0)
    """
    if batch_size < 1 or (weights is not None and batch_size > 1):
        raise MmclError(f"batch_size must be 1 or more, and 1 with weights; got {batch_size}")
    total: Tensors = {}
    weight: Tensor | float = 0.0
    batch: list[Mapping[str, Tensor]] = []
    factors = iter(weights) if weights is not None else None
    for gradient in gradients:
        batch.append(gradient)
        if len(batch) == batch_size:
            weight = weight + _add_squares(total, batch, 1.0 if factors is None else next(factors))
            batch = []
    if batch:
        weight = weight + _add_squares(total, batch, 1.0)
    if not total:
        raise MmclError("there are no gradients to square")
    return {name: value / weight for name, value in total.items()}


@torch.no_grad()  # here, not around the loop: what gives the gradients may be a generator that computes them
def _add_squares(total: Tensors, batch: list[Mapping[str, Tensor]], weight: Tensor | float) -> Tensor | float:
    """Add weight x (mean of a batch of gradients)^2; returns the weight."""
    for name, value in batch[0].items():
        mean = sum((widen(gradient[name])[0] for gradient in batch[1:]), widen(value)[0]) / len(batch)
        total[name] = total[name] + weight * mean.square() if name in total else weight * mean.square()
    return weight


@torch.no_grad()
def synaptic_importance(
    path: Mapping[str, Tensor], start: Mapping[str, Tensor], end: Mapping[str, Tensor], *, damping: float = 0.1
) -> Tensors:
    """Synaptic intelligence's importance of each weight for a task (Zenke et al., ICML 2017).

    max(path, 0) / ((end - start)^2 + damping): what the weight's way has taken off the loss, for each unit of the way.

    Args:
        path: the path integral of the task, see `mmcl.functional.importance.path_integral`.
        start: weights at the task's start, of the same names and shapes.
        end: weights at its end.
        damping: xi, above 0. The paper uses 0.1, FoMo-in-Flux 1.

    Raises:
        MmclError: names or shapes differ, or `damping` is not above 0.

    >>> path, start, end = ({"w": torch.tensor(x)} for x in ([0.5, -0.5], [0.0, 0.0], [2.0, 2.0]))
    >>> synaptic_importance(path, start, end, damping=1.0)["w"].tolist()
    [0.10000000149011612, 0.0]
    """
    if not damping > 0:
        raise MmclError(f"damping must be above 0, got {damping}")
    same_structure(path, start)
    same_structure(path, end)
    found = {}
    for name, value in path.items():
        way, first, last = widen(value, start[name], end[name])
        found[name] = way.clamp(min=0) / ((last - first).square() + damping)
    return found


def _total(terms: list[Tensor]) -> Tensor:
    if not terms:
        raise MmclError("there are no weights to penalize")
    return torch.stack([term.to(terms[0].device) for term in terms]).sum()
