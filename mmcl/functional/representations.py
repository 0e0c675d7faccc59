"""Losses on what a model makes of its inputs: features near their classes, and outputs and activations as they were."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcl.errors import MmclError
from mmcl.functional._precision import widen


def center_loss(features: Tensor, centers: Tensor) -> Tensor:
    """Mean over rows of half the squared distance to the class's centre (Wen et al., ECCV 2016).

    Args:
        features: (B, D).
        centers: (B, D), the centre of each row's class; no gradient.

    Returns:
        A scalar in float32 or wider. The paper writes the sum over a batch; most implementations take the mean.

    >>> center_loss(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0]])).item()
    2.0
    """
    if features.dim() != 2 or features.shape != centers.shape:
        raise MmclError(f"expected two (B, D) tensors, got {tuple(features.shape)} and {tuple(centers.shape)}")
    own, fixed = widen(features, centers.detach())
    return (own - fixed).square().sum(1).mean() / 2


@torch.no_grad()
def update_centers(centers: Tensor, features: Tensor, classes: Tensor, *, rate: float = 0.5) -> Tensor:
    """Centres after a batch (Wen et al., ECCV 2016): c_j <- c_j - rate x sum_{i of class j} (c_j - x_i) / (1 + n_j).

    Args:
        centers: (C, D).
        features: (B, D).
        classes: (B,) the row's centre, 0..C-1.
        rate: alpha, from 0 to 1. The paper uses 0.5.

    Returns:
        (C, D), new; classes that the batch lacks keep their centre.

    >>> update_centers(torch.zeros(2, 1), torch.tensor([[3.0], [3.0]]), torch.tensor([1, 1])).tolist()
    [[0.0], [1.0]]
    """
    if not 0 <= rate <= 1:
        raise MmclError(f"rate must be within 0..1, got {rate}")
    fixed, rows = widen(centers, features)
    away = torch.zeros_like(fixed).index_add_(0, classes, fixed[classes] - rows)
    count = torch.bincount(classes, minlength=len(fixed)).to(fixed.dtype)
    return fixed - rate * away / (1 + count)[:, None]


def dark_experience_loss(logits: Tensor, stored: Tensor) -> Tensor:
    """Mean squared difference between the answers of now and those kept with the samples (DER; Buzzega et al., 2020).

    Args:
        logits: (B, ..., C) of the model.
        stored: (B, ..., C0) of the model that put the samples into the memory; no gradient. A head that has grown since
            is compared in its first C0 columns.

    Returns:
        A scalar in float32 or wider.

    >>> dark_experience_loss(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[1.0, 1.0]])).item()
    2.0
    """
    width = stored.shape[-1]
    if logits.shape[:-1] != stored.shape[:-1] or width > logits.shape[-1]:
        raise MmclError(f"logits {tuple(logits.shape)} do not cover the stored ones {tuple(stored.shape)}")
    own, kept = widen(logits[..., :width], stored.detach())
    return (own - kept).square().mean()


def threshold_margins(student: Tensor, teacher: Tensor, mean: Tensor, std: Tensor, *, tau: float = 1.0) -> Tensor:
    """By how much each activation of the student is outside the state of the teacher's (GeRe; Zhang et al., 2025).

    A unit is off below mean - tau std, on above mean + tau std, and at rest between. An activation is held to the side
    of the thresholds on which the teacher's was, not to its value.

    Args:
        student: (..., D).
        teacher: (..., D) of the same inputs; no gradient.
        mean: (D,) of the teacher's activations over the general samples.
        std: (D,) likewise.
        tau: width of the state of rest. The published code has 1.

    Returns:
        (..., D) in float32 or wider, 0 where the state is the teacher's.

    >>> mean, std, teacher = torch.zeros(1), torch.ones(1), torch.tensor([[2.0], [0.5], [-2.0]])
    >>> threshold_margins(torch.tensor([[0.25], [1.5], [-7.0]]), teacher, mean, std)[:, 0].tolist()
    [0.75, 0.5, 0.0]
    """
    if student.shape != teacher.shape or mean.shape != student.shape[-1:] or std.shape != mean.shape:
        raise MmclError(
            f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)}, mean {tuple(mean.shape)} and std "
            f"{tuple(std.shape)} do not fit together"
        )
    if not tau >= 0:
        raise MmclError(f"tau must be 0 or more, got {tau}")
    own, other, middle, width = widen(student, teacher.detach(), mean.detach(), std.detach())
    low, high = middle - tau * width, middle + tau * width
    above, below = (own - high).relu(), (low - own).relu()
    rest = torch.where(other >= high, (high - own).relu(), above + below)
    return torch.where(other <= low, (own - low).relu(), rest)


def threshold_margin_loss(
    student: Tensor,
    teacher: Tensor,
    mean: Tensor,
    std: Tensor,
    *,
    tau: float = 1.0,
    valid: Tensor | None = None,
) -> Tensor:
    """Threshold-based margin loss of GeRe: the mean of `threshold_margins` over those that are not 0.

    Args:
        student: (..., D).
        teacher: (..., D) of the same inputs; no gradient.
        mean: (D,) of the teacher's activations over the general samples.
        std: (D,) likewise.
        tau: width of the state of rest.
        valid: (...), bool; padding takes no part.

    Returns:
        A scalar; 0 where no activation has left its state.

    >>> mean, std, teacher = torch.zeros(1), torch.ones(1), torch.tensor([[2.0], [0.5], [-2.0]])
    >>> threshold_margin_loss(torch.tensor([[0.25], [1.5], [-7.0]]), teacher, mean, std).item()
    0.625
    """
    margins = threshold_margins(student, teacher, mean, std, tau=tau)
    if valid is not None:
        margins = margins.masked_fill(~valid[..., None], 0.0)
    return margins.sum() / (margins > 0).sum().clamp(min=1)
