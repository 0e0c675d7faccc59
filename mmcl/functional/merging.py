"""Merging of models: sets of weights become one, through their differences from the weights that they started from.

A model is a dict of tensors by name, a *task vector* the difference of a fine-tuned model from its base. Everything is
computed in float32 or the inputs' wider type and returned in it. The inputs are left as they are. Integer and boolean
tensors are in no task vector, and a merge takes them from the base. A merge reads a tensor of one model at a time, so
that the models may be mappings that load their tensors when asked.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from mmcl.errors import MmclError
from mmcl.functional._precision import wider_dtype
from mmcl.functional.averaging import same_structure
from mmcl.functional.trimming import CHUNK, Aggregation, check_density, elect_and_merge, threshold

Weights = dict[str, Tensor]
PairMerge = Callable[[Mapping[str, Tensor], Sequence[Mapping[str, Tensor]]], Weights]
"""(base, [vector of the new model, vector of the merge so far]) -> the next merge."""

CANCEL = 1e-8
"""Keeps denominators away from 0, as in the code of FoMo-in-Flux."""


def task_vector(finetuned: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> Weights:
    """Difference theta - theta_0 of every floating tensor (Ilharco et al., ICLR 2023).

    Args:
        finetuned: theta.
        base: theta_0, of the same names and shapes.

    Raises:
        MmclError: a name or shape differs; the tensor is named.

    >>> task_vector({"w": torch.tensor([3.0]), "n": torch.tensor(7)}, {"w": torch.tensor([1.0]), "n": torch.tensor(0)})
    {'w': tensor([2.])}
    """
    same_structure(finetuned, base)
    return {name: _wide(finetuned[name], base[name]) - _wide(base[name], finetuned[name]) for name in _floating(base)}


class StoredVector(Mapping[str, Tensor]):
    """A task vector that is made a tensor at a time, of weights that are read when asked for (from a disk).

    Args:
        finetuned: at least the names of the base, and shapes of which the base's are the leading part.
        base: theta_0, of floating tensors.

    >>> dict(StoredVector({"w": torch.tensor([3.0, 5.0])}, {"w": torch.tensor([1.0])}))
    {'w': tensor([2.])}
    """

    def __init__(self, finetuned: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> None:
        self._finetuned, self._base = finetuned, base

    def __getitem__(self, name: str) -> Tensor:
        base = self._base[name]
        value = self._finetuned[name][tuple(map(slice, base.shape))].to(base.device)
        return _wide(value, base) - _wide(base, value)

    def __contains__(self, name: object) -> bool:  # the base class would read the tensor
        return name in self._base

    def __iter__(self) -> Iterator[str]:
        return iter(self._base)

    def __len__(self) -> int:
        return len(self._base)


def task_arithmetic(
    base: Mapping[str, Tensor], vectors: Iterable[Mapping[str, Tensor]], scale: float | Sequence[float]
) -> Weights:
    """theta_0 + scale x sum_i tau_i (Ilharco et al., ICLR 2023).

    1 / n is the average of the n models, a negative scale unlearns, and a sequence with one scale for each vector that
    sums to 1 is their weighted average.

    Args:
        base: theta_0.
        vectors: task vectors.
        scale: one for all, or one for each.

    Raises:
        MmclError: a vector does not fit the base, or there are not as many scales as vectors.

    >>> task_arithmetic({"w": torch.tensor([1.0])}, [{"w": torch.tensor([2.0])}, {"w": torch.tensor([4.0])}], 0.5)
    {'w': tensor([4.])}
    """
    factors = iter(scale) if isinstance(scale, Sequence) else itertools.repeat(float(scale))
    merged = widened(base)
    for number, vector in enumerate(vectors, 1):
        factor = next(factors, None)
        if factor is None:
            raise MmclError(f"task_arithmetic: {number - 1} scales, and more task vectors")
        for name, value in _fitting(base, vector, number):
            merged[name].add_(value.to(merged[name]), alpha=float(factor))
    if isinstance(scale, Sequence) and next(factors, None) is not None:
        raise MmclError(f"task_arithmetic: {len(scale)} scales, and fewer task vectors")
    return merged


def magmax(
    base: Mapping[str, Tensor],
    vectors: Iterable[Mapping[str, Tensor]],
    scale: float,
    *,
    later_wins: bool = True,
) -> Weights:
    """theta_0 + scale x the entry of largest magnitude among the task vectors (MagMax; Marczak et al., ECCV 2024).

    Args:
        base: theta_0.
        vectors: task vectors, in the order of their tasks.
        scale: the published runs use 0.5.
        later_wins: which of two entries of equal magnitude stays. The published code keeps the later task's, that of
            FoMo-in-Flux the earlier one's.

    Raises:
        MmclError: a vector does not fit the base.

    >>> vectors = [{"w": torch.tensor([1.0, -3.0, 2.0])}, {"w": torch.tensor([-2.0, 1.0, -2.0])}]
    >>> magmax({"w": torch.zeros(3)}, vectors, 1.0)
    {'w': tensor([-2., -3., -2.])}
    """
    contiguous = torch.contiguous_format
    largest = {name: torch.zeros_like(_wide(base[name]), memory_format=contiguous) for name in _floating(base)}
    for number, vector in enumerate(vectors, 1):
        running_magmax(largest, dict(_fitting(base, vector, number)), later_wins=later_wins)
    return task_arithmetic(base, [largest], scale)


def running_magmax(largest: Weights, vector: Mapping[str, Tensor], *, later_wins: bool = True) -> Weights:
    """One more task for a running MagMax: largest <- where(|tau| >= |largest|, tau, largest).

    After all tasks in turn, starting from zeros, `largest` is what `magmax` scales, in one copy however many there are.

    Args:
        largest: in float32 or wider; written in place and returned.
        vector: the next task vector.
        later_wins: see `magmax`.

    Raises:
        MmclError: names or shapes differ.

    >>> running_magmax({"w": torch.tensor([1.0, -3.0])}, {"w": torch.tensor([-1.0, 2.0])})
    {'w': tensor([-1., -3.])}
    """
    same_structure(largest, vector)
    with torch.no_grad():
        for name, kept in largest.items():
            flat, new = kept.reshape(-1), vector[name].to(kept).reshape(-1)
            for ours, theirs in zip(torch.split(flat, CHUNK), torch.split(new, CHUNK), strict=True):
                ahead = theirs.abs().sub_(ours.abs())
                # 1 or 0: the interpolation picks one of the two exactly, and is faster than a boolean mask.
                ours.lerp_(theirs, ahead.ge_(0) if later_wins else ahead.gt_(0))
            if not kept.is_contiguous():  # then `flat` is a copy
                kept.copy_(flat.view(kept.shape))
    return largest


def ties(
    base: Mapping[str, Tensor],
    vectors: Sequence[Mapping[str, Tensor]],
    density: float,
    scale: float,
    *,
    aggregation: Aggregation = "mean",
    fomo: bool = False,
) -> Weights:
    """theta_0 + scale x the trimmed, sign-elected and disjointly merged vectors (TIES; Yadav et al., NeurIPS 2023).

    Trim: with d entries in a whole vector, those of magnitude at least the (d - int(d x density))-th smallest stay,
    which are int(d x density) + 1 and all that tie with the last one. Elect: the sign of the sum of each entry; where
    that is 0, the sign of the sum of all elected signs. Merge: the entries of the elected sign, and no zeros.

    Args:
        base: theta_0.
        vectors: task vectors; each is read twice, and is in memory as a whole while its threshold is found.
        density: part of each vector that stays, above 0 and at most 1; the paper keeps 0.2.
        scale: of the merged vector.
        aggregation: of the entries that agree: ``mean``, ``sum``, or ``max``, the one of largest magnitude.
        fomo: count from the other end, as FoMo-in-Flux does: magnitude at least the int(d x (1 - density))-th smallest.

    Raises:
        MmclError: a vector does not fit the base, there is none, or `density` is out of range.

    >>> vectors = [{"w": torch.tensor([4.0, 0.1, -3.0])}, {"w": torch.tensor([2.0, 0.2, 5.0])}]
    >>> ties({"w": torch.zeros(3)}, vectors, 0.5, 1.0)
    {'w': tensor([3., 0., 5.])}
    """
    check_density("ties", density)
    if not vectors:
        raise MmclError("ties: there is no task vector")
    names = _floating(base)
    size = sum(base[name].numel() for name in names)
    rank = int(size * _complement(density)) if fomo else size - int(size * density)
    levels = []
    for number, vector in enumerate(vectors, 1):
        values = (value for _, value in _fitting(base, vector, number))
        if rank:
            levels.append(threshold(list(values), rank))
        else:  # everything stays, and only the shapes are looked at: a tensor at a time
            deque(values, maxlen=0)
            levels.append(torch.zeros(()))
    merged = widened(base)
    return elect_and_merge(merged, names, vectors, levels, scale, aggregation)


def slerp(first: Mapping[str, Tensor], second: Mapping[str, Tensor], weight: float) -> Weights:
    """Spherical interpolation of each tensor (Shoemake, SIGGRAPH 1985), from `first` at weight 0 to `second` at 1.

    With omega the angle between the two: sin((1 - w) omega) / sin(omega) x first + sin(w omega) / sin(omega) x second,
    and the straight line where they are as good as parallel (|cos| above 0.9995) or one of them is 0.

    Args:
        first: the weights themselves, not task vectors.
        second: of the same names and shapes; integer tensors come from here, unless `weight` is 0.
        weight: w.

    Raises:
        MmclError: a name or shape differs.

    >>> slerp({"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 1.0])}, 0.5)
    {'w': tensor([0.7071, 0.7071])}
    """
    same_structure(first, second)
    floating = set(_floating(first))
    merged = {}
    for name, value in first.items():
        if name not in floating:
            merged[name] = (second[name] if weight else value).clone()
            continue
        a, b = _wide(value, second[name]), _wide(second[name].to(value.device), value)
        norms = torch.linalg.vector_norm(a) * torch.linalg.vector_norm(b)
        cosine = float((a * b).sum() / norms) if norms > 0 else 1.0
        if abs(cosine) > 0.9995:
            merged[name] = torch.lerp(a, b, weight)
            continue
        omega = math.acos(cosine)
        ratios = math.sin((1 - weight) * omega) / math.sin(omega), math.sin(weight * omega) / math.sin(omega)
        merged[name] = a * ratios[0] + b * ratios[1]
    return merged


def model_stock(base: Mapping[str, Tensor], vectors: Sequence[Mapping[str, Tensor]], *, acute: bool = False) -> Weights:
    """The point between the base and the average that the models' angles ask for (Jang et al., ECCV 2024).

    For each tensor, with c the cosine between two task vectors (the mean over all pairs of n) and
    r = n c / (1 + (n - 1) c): r x average + (1 - r) x theta_0. For two, r = 2 c / (1 + c).

    Args:
        base: theta_0.
        vectors: two task vectors or more.
        acute: leave a tensor at theta_0 where the models moved apart (c < 0). The formula, and this function, then
            throw it beyond theta_0, without bound as c nears -1 / (n - 1).

    Raises:
        MmclError: a vector does not fit the base, or there are fewer than two.

    >>> same = {"w": torch.tensor([2.0, 0.0])}
    >>> model_stock({"w": torch.zeros(2)}, [same, same])
    {'w': tensor([2., 0.])}
    """
    count = len(vectors)
    if count < 2:
        raise MmclError(f"model_stock: {count} task vectors; the angles are those between two or more")
    merged = widened(base)
    for rows_of in zip(*(_fitting(base, vector, number) for number, vector in enumerate(vectors, 1)), strict=True):
        name = rows_of[0][0]
        rows = [value.to(merged[name]) for _, value in rows_of]
        # Angles of float32 vectors, in float32, as in the code of FoMo-in-Flux: its float64 results rest on that. Sums
        # are float64, for in float32 their order shows, which is another one on another processor.
        narrow = [row.float() for row in rows]
        squares = [row.square().sum(dtype=torch.float64) for row in narrow]
        pairs = [(i, j) for i in range(count) for j in range(i)]
        dots = [(narrow[i] * narrow[j]).sum(dtype=torch.float64) for i, j in pairs]
        lengths = [(squares[i] * squares[j]).sqrt() for i, j in pairs]
        cosines = [(dot / (length + CANCEL)).float() for dot, length in zip(dots, lengths, strict=True)]
        cosine = float(torch.stack(cosines).mean())
        if acute and cosine < 0:
            continue
        ratio = count * cosine / (1 + (count - 1) * cosine + CANCEL)
        for row in rows:
            merged[name].add_(row, alpha=ratio / count)
    return merged


def unrolled(base: Mapping[str, Tensor], models: Iterable[Mapping[str, Tensor]], merge: PairMerge) -> Weights:
    """Merge model after model into what came before (temporal merging; Dziadzio et al., CVPR 2025).

    m_0 = theta_0, m_k = merge(theta_0, [theta_k - theta_0, m_{k-1} - theta_0]).

    Args:
        base: theta_0.
        models: theta_1, theta_2, ...
        merge: of two task vectors, the new model's first.

    >>> base, models = {"w": torch.tensor([0.0])}, [{"w": torch.tensor([1.0])}, {"w": torch.tensor([4.0])}]
    >>> unrolled(base, models, lambda base, pair: task_arithmetic(base, pair, 0.5))
    {'w': tensor([2.2500])}
    """
    merged = widened(base)
    for model in models:
        merged = merge(base, [task_vector(model, base), task_vector(merged, base)])
    return merged


def instruction_residual(
    base_cpt: Mapping[str, Tensor], instruct: Mapping[str, Tensor], base: Mapping[str, Tensor]
) -> Weights:
    """theta_base_cpt + (theta_instruct - theta_base): instruction following for a base model that was trained on.

    The three are of one family and one vocabulary.

    Args:
        base_cpt: the base model after continued pretraining.
        instruct: the published instruction-tuned model.
        base: the base model that both come from.

    Raises:
        MmclError: a name or shape differs, as of embeddings with added tokens.

    >>> instruction_residual({"w": torch.tensor([1.5])}, {"w": torch.tensor([3.0])}, {"w": torch.tensor([1.0])})
    {'w': tensor([3.5000])}
    """
    same_structure(base_cpt, base)
    return task_arithmetic(base_cpt, [task_vector(instruct, base)], 1.0)


def _complement(density: float) -> float:
    return round(1 - density, 12)  # 1 - 0.7 is 0.30000000000000004


def _floating(weights: Mapping[str, Tensor]) -> list[str]:
    """Names of what is merged.

    Raises:
        MmclError: a tensor is complex.
    """
    for name, value in weights.items():
        if value.is_complex():
            raise MmclError(f"tensor {name!r} is complex, which merges do not know")
    return [name for name, value in weights.items() if value.is_floating_point()]


def widened(weights: Mapping[str, Tensor]) -> Weights:
    """A copy to write into: floating tensors in float32 or their wider type, the others as they are."""
    return {name: _wide(value, copy=True).contiguous() for name, value in weights.items()}


def _wide(value: Tensor, *others: Tensor, copy: bool = False) -> Tensor:
    """In float32 or the tensors' wider type; what is no floating tensor as it is."""
    value = value.detach()
    if not value.is_floating_point():
        return value.clone() if copy else value
    return value.to(wider_dtype(value, *others), copy=copy)


def _fitting(base: Mapping[str, Tensor], vector: Mapping[str, Tensor], number: int) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a vector, after a look at their names; each shape is looked at in turn."""
    names = _floating(base)
    for name in names:
        if name not in vector:
            raise MmclError(f"tensor {name!r} is missing in task vector {number}")
    for name in vector:
        if name not in base:
            raise MmclError(f"tensor {name!r} of task vector {number} is unknown to the base")
    for name in names:
        value = vector[name].detach()
        if value.shape != base[name].shape:
            raise MmclError(
                f"tensor {name!r} has shape {tuple(value.shape)} in task vector {number} and "
                f"{tuple(base[name].shape)} in the base"
            )
        yield name, value
