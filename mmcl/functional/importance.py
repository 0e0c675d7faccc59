"""Importance of weights over a stream: how it is gathered within a task and carried from one task to the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from mmcl.errors import MmclError, near
from mmcl.functional._precision import widen, wider_dtype

Rule = Literal["online", "mean", "halves"]
Tensors = dict[str, Tensor]


@torch.no_grad()
def path_integral(path: Tensors, gradients: Mapping[str, Tensor], change: Mapping[str, Tensor]) -> Tensors:
    """One step of synaptic intelligence's path integral: path <- path - gradient x change (Zenke et al., ICML 2017).

    It is a sum over optimizer steps, not over the batches that one step accumulates.

    Args:
        path: the sum so far, in float32 or wider; written in place. A name that it lacks starts at 0.
        gradients: of the task's loss alone, before the step.
        change: weights after the step minus weights before it.

    Returns:
        `path`.

    >>> path_integral({}, {"w": torch.tensor([2.0])}, {"w": torch.tensor([-0.5])})
    {'w': tensor([1.])}
    """
    for name, gradient in gradients.items():
        slope, way = widen(gradient, change[name])
        if name in path:
            path[name].addcmul_(slope, way, value=-1.0)
        else:
            path[name] = -slope * way
    return path


@torch.no_grad()
def approximate_path(path: Tensors, gradients: Mapping[str, Tensor], *, lr: float) -> Tensors:
    """The shortcut of Mammoth and FoMo-in-Flux: path <- path + lr x gradient^2, which plain SGD makes exact.

    Args:
        path: the sum so far, in float32 or wider; written in place. A name that it lacks starts at 0.
        gradients: of the step.
        lr: learning rate of the step.

    Returns:
        `path`.

    >>> approximate_path({"w": torch.tensor([1.0])}, {"w": torch.tensor([2.0])}, lr=0.25)
    {'w': tensor([2.])}
    """
    for name, gradient in gradients.items():
        slope = gradient.to(wider_dtype(gradient))
        if name in path:
            path[name].addcmul_(slope, slope, value=lr)
        else:
            path[name] = lr * slope.square()
    return path


@torch.no_grad()
def consolidate_importance(
    old: Mapping[str, Tensor], new: Mapping[str, Tensor], *, rule: Rule = "online", gamma: float = 1.0, count: int = 0
) -> Tensors:
    """Importance over all tasks so far, F, out of the one before, F_old, and that of the task that ended, F_t.

    ``online``: gamma F_old + F_t, which begins with F_1 (Schwarz et al., ICML 2018; gamma 1 is the plain sum).
    ``mean``: count / (count + 1) F_old + 1 / (count + 1) F_t, the running mean (CTP). ``halves``: (F_old + F_t) / 2,
    which begins from 0 (MagMax).

    Where a tensor has grown, rows that only the newer one has count as 0 in the other; so does a name that one lacks.

    Args:
        old: importance after the earlier tasks; {} before the first.
        new: importance of the task that ended.
        rule: one of the three.
        gamma: of ``online``.
        count: of ``mean``: tasks that `old` holds.

    Raises:
        MmclError: an unknown rule.

    >>> old, new = {"w": torch.tensor([2.0])}, {"w": torch.tensor([4.0, 1.0])}
    >>> consolidate_importance(old, new, gamma=0.5), consolidate_importance(old, new, rule="mean", count=1)
    ({'w': tensor([5., 1.])}, {'w': tensor([3.0000, 0.5000])})
    """
    if rule not in get_args(Rule):
        raise MmclError(f"rule '{rule}' is unknown; {near(rule, get_args(Rule))}")
    keep, add = {"online": (gamma, 1.0), "mean": (count / (count + 1), 1 / (count + 1)), "halves": (0.5, 0.5)}[rule]
    found = {name: keep * value for name, value in old.items()}
    for name, value in new.items():
        scaled = add * value
        if name in found:
            before = found[name].to(scaled.device)
            scaled = scaled.to(torch.promote_types(scaled.dtype, before.dtype))
            scaled[tuple(slice(0, size) for size in before.shape)] += before
        found[name] = scaled
    return found


def squared_output_norm(outputs: Tensor, *, valid: Tensor | None = None, candidates: Tensor | None = None) -> Tensor:
    """Squared L2 norm of a model's answer to each row (memory aware synapses; Aljundi et al., ECCV 2018).

    Of outputs for several tokens or frames it is the mean over those that are valid.

    Args:
        outputs: (B, C) or (B, L, C), before any normalisation: a normalised vector has no gradient here.
        valid: (B,) or (B, L), bool; rows without a valid place have a norm of 0.
        candidates: (B, C), bool; columns that take no part are left out.

    Returns:
        (B,) in float32 or wider.

    >>> squared_output_norm(torch.tensor([[3.0, 4.0]])).item()
    25.0
    """
    (wide,) = widen(outputs)
    if candidates is not None:
        wide = wide.masked_fill(~(candidates if wide.dim() == 2 else candidates[:, None]), 0.0)
    norms = wide.square().sum(-1)
    if valid is None:
        valid = torch.ones_like(norms, dtype=torch.bool)
    elif valid.dim() < norms.dim():
        valid = valid[:, None].expand_as(norms)
    norms = norms.masked_fill(~valid, 0.0)
    return norms if norms.dim() == 1 else norms.sum(1) / valid.sum(1).clamp(min=1)
