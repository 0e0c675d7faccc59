"""Averages of weights: dicts of tensors by name. The first argument is written in place and returned.

Both dicts hold the same names and shapes. The second may have another float type or device; it is converted to the
first's. Integer and boolean tensors (``num_batches_tracked``) are not averaged: they are copied from the second, unless
its weight is 0. A tensor that appears under two names (tied weights) is averaged once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from mmcl.errors import MmclError
from mmcl.functional._precision import widen, wider_dtype

Weights = TypeVar("Weights", bound=Mapping[str, Tensor])


def running_average(average: Weights, new: Mapping[str, Tensor], *, count: int) -> Weights:
    """Plain mean of all samples so far: average <- (count x average + new) / (count + 1).

    Args:
        average: the mean of `count` samples, in float32 or wider; written in place.
        new: the next sample.
        count: samples that `average` holds; with 0 it becomes `new`. ZSCL's weight ensemble (Zheng et al., ICCV 2023)
            starts from the task's start weights, which are sample 1.

    Raises:
        MmclError: names or shapes differ, `average` is narrower than float32, or `count` is negative.

    >>> mean = {"w": torch.tensor([0.0])}
    >>> for k, w in enumerate([3.0, 6.0], 1):
    ...     mean = running_average(mean, {"w": torch.tensor([w])}, count=k)
    >>> mean
    {'w': tensor([3.])}
    """
    if count < 0:
        raise MmclError(f"count must be 0 or more, got {count}")
    return _lerp(average, new, 1.0 / (count + 1), accumulates=True)


def ema(average: Weights, new: Mapping[str, Tensor], *, decay: float) -> Weights:
    """Exponential moving average: average <- decay x average + (1 - decay) x new (Stojanovski et al., 2022).

    Args:
        average: the slow weights, in float32 or wider (bfloat16 cannot resolve 1 - decay); written in place.
        new: the fast weights.
        decay: tau, from 0 to 1.

    Raises:
        MmclError: names or shapes differ, `average` is narrower than float32, or `decay` is not within 0..1.

    >>> ema({"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])}, decay=0.75)
    {'w': tensor([1.5000])}
    """
    if not 0 <= decay <= 1:
        raise MmclError(f"decay must be within 0..1, got {decay}")
    return _lerp(average, new, 1.0 - decay, accumulates=True)


def interpolate(start: Weights, end: Mapping[str, Tensor], *, alpha: float) -> Weights:
    """Weight interpolation: start <- (1 - alpha) x start + alpha x end (WiSE-FT; Wortsman et al., CVPR 2022).

    The result is exactly `start` at alpha 0 and exactly `end` at alpha 1. Weights narrower than float32 are
    interpolated in float32 and rounded once.

    Args:
        start: for WiSE-FT the zero-shot weights; written in place.
        end: for WiSE-FT the fine-tuned weights.
        alpha: weight of `end`; outside 0..1 it extrapolates.

    Raises:
        MmclError: names or shapes differ, or `alpha` is not finite.

    >>> interpolate({"w": torch.tensor([0.0])}, {"w": torch.tensor([10.0])}, alpha=0.2)
    {'w': tensor([2.])}
    """
    if not math.isfinite(alpha):
        raise MmclError(f"alpha must be a finite number, got {alpha}")
    return _lerp(start, end, alpha, accumulates=False)


def fisher_interpolate(
    start: Weights,
    end: Mapping[str, Tensor],
    start_fisher: Mapping[str, Tensor],
    end_fisher: Mapping[str, Tensor],
    *,
    alpha: float,
    floor: float = 1e-8,
) -> Weights:
    """Interpolation by how sure each model is of a weight (Matena & Raffel, NeurIPS 2022; as in the code of WiSE-FT).

    start <- ((1 - alpha) F_0 start + alpha F_1 end) / ((1 - alpha) F_0 + alpha F_1), each F at least `floor`. A tensor
    without Fisher information has F = 1, which is `interpolate`.

    Args:
        start: written in place.
        end: of the same names and shapes.
        start_fisher: diagonal Fisher information of `start`, for some of its tensors.
        end_fisher: of `end`, for the same ones.
        alpha: weight of `end`, from 0 to 1.
        floor: above 0. The code of WiSE-FT has 1e-8.

    Raises:
        MmclError: names or shapes differ, or a number is out of range.

    >>> f = {"w": torch.tensor([1.0, 3.0])}, {"w": torch.tensor([1.0, 1.0])}
    >>> fisher_interpolate({"w": torch.zeros(2)}, {"w": torch.ones(2)}, *f, alpha=0.5)
    {'w': tensor([0.5000, 0.2500])}
    """
    if not 0 <= alpha <= 1 or not floor > 0:
        raise MmclError(f"alpha must be within 0..1 and floor above 0, got {alpha} and {floor}")
    same_structure(start, end)
    same_structure(start_fisher, end_fisher)
    same_structure({name: start[name] for name in start_fisher if name in start}, start_fisher)
    plain = {name: tensor for name, tensor in start.items() if name not in start_fisher}
    _lerp(plain, {name: end[name] for name in plain}, alpha, accumulates=False)
    with torch.no_grad():
        for name, tensor in _untied({name: start[name] for name in start_fisher}):
            others = (held[name].to(tensor.device) for held in (end, start_fisher, end_fisher))
            first, last, before, after = widen(tensor, *others)
            low, high = (1 - alpha) * before.clamp(min=floor), alpha * after.clamp(min=floor)
            tensor.copy_((low * first + high * last) / (low + high))
    return start


def _lerp(first: Weights, second: Mapping[str, Tensor], weight: float, *, accumulates: bool) -> Weights:
    """Write first + weight x (second - first) into first, exact at both ends."""
    same_structure(first, second)
    averaged = {name: tensor for name, tensor in _untied(first) if tensor.is_floating_point() or tensor.is_complex()}
    for name, tensor in averaged.items():
        if accumulates and tensor.dtype != wider_dtype(tensor):
            raise MmclError(f"the average {name!r} is {tensor.dtype}; keep averages in float32 or wider")
    if weight == 0:
        return first
    with torch.no_grad():
        wide = {name: tensor.to(wider_dtype(tensor)) for name, tensor in averaged.items()}
        if wide:
            sources = [second[name].to(device=tensor.device, dtype=tensor.dtype) for name, tensor in wide.items()]
            torch._foreach_lerp_(list(wide.values()), sources, weight)
        for name, tensor in first.items():
            if name not in averaged:
                if not tensor.is_floating_point() and not tensor.is_complex():
                    tensor.copy_(second[name])
            elif wide[name] is not tensor:
                tensor.copy_(wide[name])
    return first


def _untied(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The tensors, each memory once."""
    seen: set[tuple[object, ...]] = set()
    for name, tensor in weights.items():
        memory = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride())
        if tensor.numel() == 0 or tensor.data_ptr() == 0 or memory not in seen:
            seen.add(memory)
            yield name, tensor


def same_structure(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    """Check that two dicts of tensors hold the same names and shapes.

    Raises:
        MmclError: names the first tensor that is missing or has another shape.
    """
    for here, there, which in ((first, second, "second"), (second, first, "first")):
        for name in here:
            if name not in there:
                raise MmclError(f"tensor {name!r} is missing in the {which} set of weights")
    for name, tensor in first.items():
        if tensor.shape != second[name].shape:
            raise MmclError(
                f"tensor {name!r} has shape {tuple(tensor.shape)} in the first set of weights and "
                f"{tuple(second[name].shape)} in the second"
            )
