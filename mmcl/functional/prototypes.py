"""Classification by what is known of each class's features: means, Gaussians, and what corrects them over tasks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcl.errors import MmclError
from mmcl.functional._precision import no_autocast, widen
from mmcl.functional.alignment import align_classifier, alignment_loss
from mmcl.functional.ridge import random_projection_ridge

__all__ = [
    "align_classifier",
    "alignment_loss",
    "class_gaussians",
    "class_means",
    "class_sums",
    "cosine_face_loss",
    "nearest_mean_logits",
    "random_projection_ridge",
    "shifted_means",
    "subspace_logits",
    "synthesized_means",
]

JITTER = 1e-4
"""What SLCA adds to the diagonal of a covariance."""


def class_sums(features: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """(C, D) sums of the features of each class and (C,) their numbers, in float64; they add up over tasks and ranks.

    >>> class_sums(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([0, 0, 1]), 2)
    (tensor([[3.],
            [3.]], dtype=torch.float64), tensor([2, 1]))
    """
    sums = features.new_zeros(num_classes, features.shape[1], dtype=torch.float64)
    return sums.index_add_(0, labels, features.double()), torch.bincount(labels, minlength=num_classes)


def class_means(features: Tensor, labels: Tensor, *, classes: Sequence[int] | None = None) -> Tensor:
    """The mean of each class's features: the prototypes of nearest-class-mean classifiers.

    Args:
        features: (N, D), not normalised.
        labels: (N,).
        classes: whose means, in this order; None takes those that have samples, in ascending order.

    Returns:
        (C, D) in float32 or the features' wider type, summed in float64.

    Raises:
        MmclError: a class without samples, or shapes that do not fit.

    >>> class_means(torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 5.0]]), torch.tensor([1, 1, 4]))
    tensor([[2., 0.],
            [0., 5.]])
    """
    chosen = _classes(features, labels, classes)
    (wide,) = widen(features)
    return torch.stack([wide[labels == c].mean(dim=0, dtype=torch.float64) for c in chosen]).to(wide.dtype)


def nearest_mean_logits(features: Tensor, means: Tensor) -> Tensor:
    """(N, C) cosines of (N, D) features and (C, D) class means; the nearest mean is the answer.

    >>> nearest_mean_logits(torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 3.0]]))
    tensor([[1., 0.]])
    """
    rows, centres = widen(features, means)
    with no_autocast(rows):
        return F.normalize(rows, dim=-1) @ F.normalize(centres, dim=-1).T


def class_gaussians(
    features: Tensor, labels: Tensor, *, classes: Sequence[int] | None = None, jitter: float = JITTER
) -> tuple[Tensor, Tensor]:
    """Mean and covariance of each class's features (SLCA; Zhang et al., ICCV 2023).

    Args:
        features: (N, D), not normalised.
        labels: (N,).
        classes: see `class_means`.
        jitter: added to the diagonals, so that a class of few samples can be drawn from.

    Returns:
        (C, D) means and (C, D, D) covariances with divisor n - 1, in float32 or the features' wider type; the
        covariance of a class of one sample is the jitter alone.

    Raises:
        MmclError: a class without samples, or shapes that do not fit.

    >>> means, covariances = class_gaussians(torch.tensor([[0.0], [2.0]]), torch.tensor([0, 0]), jitter=0.0)
    >>> means, covariances
    (tensor([[1.]]), tensor([[[2.]]]))
    """
    chosen = _classes(features, labels, classes)
    (wide,) = widen(features)
    means, covariances = [], []
    eye = torch.eye(features.shape[1], dtype=torch.float64, device=features.device)
    with no_autocast(wide):
        for c in chosen:
            rows = wide[labels == c].double()
            means.append(rows.mean(dim=0))
            centred = rows - means[-1]
            covariances.append(centred.T @ centred / max(len(rows) - 1, 1) + jitter * eye)
    return torch.stack(means).to(wide.dtype), torch.stack(covariances).to(wide.dtype)


def synthesized_means(old: Tensor, new: Tensor, new_there: Tensor) -> Tensor:
    """Means of old classes in a subspace that their samples were never seen in (EASE; Zhou et al., CVPR 2024).

    Each old class is a mixture of the new ones, by the softmax of their cosines where both are known.

    Args:
        old: (O, D) means of old classes in a subspace that knows both.
        new: (N, D) means of new classes in the same one.
        new_there: (N, E) means of the new classes in the other subspace.

    Returns:
        (O, E).

    >>> synthesized_means(torch.tensor([[1.0, 0.0]]), torch.eye(2)[:1], torch.tensor([[3.0, 4.0]]))
    tensor([[3., 4.]])
    """
    a, b, c = widen(old, new, new_there)
    return nearest_mean_logits(a, b).softmax(dim=1) @ c


def subspace_logits(features: Tensor, means: Tensor, own: Tensor, *, alpha: float = 0.1) -> Tensor:
    """Cosine in a class's own subspace, and a little of the others' (EASE; Zhou et al., CVPR 2024).

    logit = cos(own) + alpha / (T - 1) x sum of the other T - 1 cosines.

    Args:
        features: (N, T, D), what each task's adapter gives.
        means: (C, T, D), measured or from `synthesized_means`.
        own: (C,) the subspace of each class's task.
        alpha: of the others. The published code has 0.1.

    Returns:
        (N, C).

    >>> x = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    >>> subspace_logits(x, x.repeat(2, 1, 1), torch.tensor([0, 1]))
    tensor([[1.1000, 1.1000]])
    """
    rows, centres = widen(features, means)
    with no_autocast(rows):
        cosines = torch.einsum("ntd,ctd->nct", F.normalize(rows, dim=-1), F.normalize(centres, dim=-1))
    inside = cosines.gather(2, own[None, :, None].expand(len(rows), -1, 1))[..., 0]
    return inside + (cosines.sum(dim=2) - inside) * (alpha / max(rows.shape[1] - 1, 1))


def shifted_means(means: Tensor, before: Tensor, after: Tensor, *, sigma: float = 4.0) -> Tensor:
    """Old means moved by the drift of the features near them (SSIAT; Tan et al., CVPR 2024; Yu et al., CVPR 2020).

    mu <- mu + sum_i w_i (after_i - before_i) / sum_i w_i with w_i = exp(-|before_i - mu|^2 / (2 sigma^2)).

    Args:
        means: (C, D) in the model before the task.
        before: (N, D) features that it gave the new task's samples.
        after: (N, D) features of the same samples in the model after it.
        sigma: width of the neighbourhood. The published code has 4.

    >>> shifted_means(torch.zeros(1, 2), torch.zeros(3, 2), torch.ones(3, 2))
    tensor([[1., 1.]])
    """
    centres, old, new = widen(means, before, after)
    with no_autocast(centres):
        distance = (centres.square().sum(1)[:, None] + old.square().sum(1) - 2 * centres @ old.T).clamp(min=0)
        shares = (-distance / (2 * sigma**2)).softmax(dim=1)  # far from every sample the plain quotient is 0 / 0
        return centres + shares @ (new - old)


def cosine_face_loss(cosines: Tensor, targets: Tensor, *, scale: float = 20.0, margin: float = 0.0) -> Tensor:
    """Cross-entropy of scaled cosines, the target's reduced by a margin (CosFace; Wang et al., 2018; used by SSIAT).

    Args:
        cosines: (N, C) of the classes that are trained.
        targets: (N,).
        scale: SSIAT has 20.
        margin: SSIAT has 0.

    >>> cosine_face_loss(torch.tensor([[1.0, 1.0]]), torch.tensor([0]))
    tensor(0.6931)
    """
    (wide,) = widen(cosines)
    own = F.one_hot(targets, wide.shape[1]).to(wide.dtype)
    return F.cross_entropy(scale * (wide - margin * own), targets)


def _classes(features: Tensor, labels: Tensor, classes: Sequence[int] | None) -> list[int]:
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise MmclError(f"features {tuple(features.shape)} and labels {tuple(labels.shape)} do not match")
    present: list[int] = torch.unique(labels).tolist()
    chosen = present if classes is None else list(classes)
    for c in chosen:
        if c not in present:
            raise MmclError(f"class {c} has no samples")
    if not chosen:
        raise MmclError("there is no class: no samples were given")
    return chosen
