"""Changes of a weight with few parameters: low-rank products, their gates and thresholds, DoRA, VeRA.

Shapes: a weight is (out, in), `down` (A) is (rank, in), `up` (B) is (out, rank). Products run in float32 or the inputs'
wider type, whatever autocast says: a change that is merged in half precision is lost.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmcl.errors import MmclError
from mmcl.functional._precision import no_autocast, widen


class ThresholdSchedule(NamedTuple):
    """What `threshold_schedule` gives: for each iteration the threshold in force, and whether it is applied."""

    kappa: Tensor
    applied: Tensor


def lowrank_delta(down: Tensor, up: Tensor, gate: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
    """Low-rank change of a weight, scale * B diag(g) A (LoRA; Hu et al., ICLR 2022; with gates CoDyRA).

    Args:
        down: A, (rank, in).
        up: B, (out, rank).
        gate: g, rank values in any shape; None is all ones.
        scale: plain factor (LoRA's alpha / rank).

    Returns:
        (out, in).

    Raises:
        MmclError: the ranks differ.

    >>> lowrank_delta(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0], [3.0]]), torch.tensor([0.5])).tolist()
    [[0.5, 1.0], [1.5, 3.0]]
    """
    _check_ranks(down, up, gate)
    with no_autocast(up):
        if gate is None:
            low, high = widen(down, up)
        else:
            low, high, weights = widen(down, up, gate)
            high = high * weights.reshape(1, -1)
        return (high @ low) * scale if scale != 1 else high @ low


def active_components(down: Tensor, up: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    """The components that a gate has left, with the gate multiplied into A: what a merged task leaves as its history.

    Args:
        down: A, (rank, in).
        up: B, (out, rank).
        gate: g, rank values in any shape.

    Returns:
        (k, in) rows g_i A_i and (out, k) columns B_i of the k components with g_i != 0.

    Raises:
        MmclError: the ranks differ.

    >>> rows, columns = active_components(torch.eye(2), torch.ones(3, 2), torch.tensor([0.0, 2.0]))
    >>> rows.tolist(), tuple(columns.shape)
    ([[0.0, 2.0]], (3, 1))
    """
    _check_ranks(down, up, gate)
    weights = gate.reshape(-1)
    kept = weights != 0
    return down[kept] * weights[kept, None], up[:, kept]


def soft_threshold(values: Tensor, kappa: float | Tensor) -> Tensor:
    """Proximal operator of kappa * |x|: x - sign(x) kappa where |x| > kappa, else 0.

    >>> soft_threshold(torch.tensor([-3.0, 0.5, 1.0, 2.5]), 1.0).tolist()
    [-2.0, 0.0, 0.0, 1.5]
    """
    _check_kappa(kappa)
    return torch.where(values.abs() > kappa, values - values.sign() * kappa, torch.zeros_like(values))


def published_threshold(values: Tensor, kappa: float | Tensor) -> Tensor:
    """What the published code of CoDyRA computes in place of `soft_threshold`.

    Entries above kappa lose kappa, those below -kappa gain it, and then every entry with |x| < kappa becomes 0: what
    lay between kappa and 2 kappa is shrunk first and zeroed afterwards, and what is kappa exactly stays.

    >>> published_threshold(torch.tensor([-3.0, 0.5, 1.0, 1.5, 2.5]), 1.0).tolist()
    [-2.0, 0.0, 1.0, 0.0, 1.5]
    """
    _check_kappa(kappa)
    moved = torch.where(values > kappa, values - kappa, values)
    moved = torch.where(values < -kappa, values + kappa, moved)
    return torch.where(moved.abs() < kappa, torch.zeros_like(moved), moved)


def threshold_schedule(total: int, dense_fraction: float, notches: int, kappa_max: float) -> ThresholdSchedule:
    """Thresholds of CoDyRA over the iterations of a task.

    The values are linspace(0, kappa_max, notches), and the first is in force during the dense phase. From iteration
    dense = dense_fraction * total on, every int((total - dense) // notches) iterations take the next one, beginning at
    once. The operator is applied after the optimizer's step of the iterations strictly after `dense`. Where the rest is
    shorter than `notches` iterations, the threshold stays 0.

    Args:
        total: iterations of the task.
        dense_fraction: part of them without a threshold.
        notches: number of values.
        kappa_max: the last value.

    Returns:
        `kappa` (total,) float64 and `applied` (total,) bool.

    Raises:
        MmclError: a number is out of range.

    >>> kappa, applied = threshold_schedule(6, 0.5, 3, 0.2)
    >>> kappa.tolist(), applied.int().tolist()
    ([0.0, 0.0, 0.0, 0.1, 0.2, 0.2], [0, 0, 0, 0, 1, 1])
    """
    if total < 0 or notches < 1:
        raise MmclError(
            f"a schedule of {total} iterations and {notches} thresholds; there must be 0 or more, 1 or more"
        )
    if not 0 <= dense_fraction <= 1:
        raise MmclError(f"dense_fraction is {dense_fraction}; it must be within 0..1")
    _check_kappa(kappa_max)
    values = torch.linspace(0, kappa_max, notches, dtype=torch.float64)
    dense = dense_fraction * total
    step = int((total - dense) // notches)
    index, places = 0, []
    for i in range(total):
        if step and i >= dense and i % step == 0:
            index = min(index + 1, notches - 1)
        places.append(index)
    applied = torch.arange(total, dtype=torch.float64) > dense
    return ThresholdSchedule(values[torch.tensor(places, dtype=torch.int64)], applied)


def row_norm(weight: Tensor) -> Tensor:
    """(out,) lengths of a weight's rows, in float32 or wider.

    >>> row_norm(torch.tensor([[3.0, 4.0], [0.0, 2.0]])).tolist()
    [5.0, 2.0]
    """
    (wide,) = widen(weight)
    length: Tensor = torch.linalg.vector_norm(wide, dim=1)
    return length


def dora_weight(weight: Tensor, down: Tensor, up: Tensor, magnitude: Tensor, *, scale: float = 1.0) -> Tensor:
    """Weight of DoRA, m V / ||V|| by rows with V = W + scale * B A (Liu et al., ICML 2024).

    The norm is one of each row (output unit) and is taken as a constant in the gradient.

    Args:
        weight: W, (out, in), frozen.
        down: A, (rank, in).
        up: B, (out, rank).
        magnitude: m, (out,); it starts as the norm of W's rows, with which the result is W itself.
        scale: plain factor on B A.

    Returns:
        (out, in). A row of zeros stays zero.

    >>> w = torch.tensor([[3.0, 4.0]])
    >>> dora_weight(w, torch.ones(1, 2), torch.zeros(1, 1), torch.tensor([10.0])).tolist()
    [[6.0, 8.0]]
    """
    delta = lowrank_delta(down, up, scale=scale)
    wide, change, length = widen(weight, delta, magnitude)
    moved = wide + change
    norm = row_norm(moved.detach())
    # The quotient comes first: it is exactly 1 where nothing has moved.
    return moved * (length / norm.where(norm > 0, torch.ones_like(norm)))[:, None]


def vera_delta(down: Tensor, up: Tensor, rank_scale: Tensor, row_scale: Tensor, *, scale: float = 1.0) -> Tensor:
    """Change of VeRA, scale * diag(b) B_f diag(d) A_f (Kopiczko et al., ICLR 2024).

    Args:
        down: A_f, (rank, in), random and frozen, shared by layers.
        up: B_f, (out, rank), likewise.
        rank_scale: d, (rank,), trained.
        row_scale: b, (out,), trained.
        scale: plain factor.

    Returns:
        (out, in).

    Raises:
        MmclError: the ranks differ.

    >>> vera_delta(torch.eye(2), torch.ones(1, 2), torch.tensor([1.0, 2.0]), torch.tensor([0.5])).tolist()
    [[0.5, 1.0]]
    """
    delta = lowrank_delta(down, up, rank_scale, scale=scale)
    wide, rows = widen(delta, row_scale)
    return rows[:, None] * wide


def subspace_overlap(down: Tensor, earlier: Tensor) -> Tensor:
    """Sum of |A_i A^T| over earlier tasks i: 0 where the new rows are orthogonal to theirs (O-LoRA; Wang et al., 2023).

    Args:
        down: A of the task at hand, (rank, in).
        earlier: rows of all earlier tasks, (k, in); no gradient.

    Returns:
        A scalar in float32 or wider.

    >>> subspace_overlap(torch.tensor([[1.0, 1.0]]), torch.tensor([[2.0, 0.0], [0.0, -3.0]])).item()
    5.0
    """
    low, fixed = widen(down, earlier.detach())
    with no_autocast(low):
        return (fixed @ low.T).abs().sum()


def _check_ranks(down: Tensor, up: Tensor, gate: Tensor | None) -> None:
    gates = up.shape[1] if gate is None else gate.numel()
    if down.shape[0] != up.shape[1] or gates != down.shape[0]:
        shapes = f"down {tuple(down.shape)}, up {tuple(up.shape)}" + ("" if gate is None else f", {gates} gates")
        raise MmclError(f"the ranks differ: {shapes}")


def _check_kappa(kappa: float | Tensor) -> None:
    if not isinstance(kappa, Tensor) and not kappa >= 0:
        raise MmclError(f"the threshold is {kappa}; it must be 0 or more")
