"""Penalties on weights alone. A strategy adds their gradient after the backward pass, not their value to the loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from mmcl.errors import MmclError
from mmcl.functional._precision import widen
from mmcl.functional.averaging import same_structure


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


def _total(terms: list[Tensor]) -> Tensor:
    if not terms:
        raise MmclError("there are no weights to penalize")
    return torch.stack([term.to(terms[0].device) for term in terms]).sum()
