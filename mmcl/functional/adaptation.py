"""Test-time adaptation: losses on predictions without labels, and the restoration of weights.

Every loss gives one number a row, so that rows which are padding can be left out of the mean. Rows are (..., C) logits;
softmax and logarithm are taken in float32 or the inputs' wider type, and a class at minus infinity counts for nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mmcl.errors import MmclError
from mmcl.functional._divergence import cross_entropy
from mmcl.functional._precision import no_autocast, widen


def softmax_entropy(logits: Tensor) -> Tensor:
    """Entropy of each row's prediction: -sum_c p_c log p_c, p = softmax(logits) (TENT; Wang et al., ICLR 2021).

    Args:
        logits: (..., C).

    Returns:
        (...), a number for each row.

    >>> round(softmax_entropy(torch.zeros(1, 4)).item(), 4)  # log 4
    1.3863
    """
    (rows,) = widen(logits)
    return cross_entropy(rows, rows)


def consistency_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Cross-entropy of each student row with the teacher's prediction (CoTTA; Wang et al., CVPR 2022).

    -sum_c softmax(t)_c log softmax(s)_c. The published code's ImageNet variant is `symmetric_cross_entropy` at alpha
    0.5.

    Args:
        student_logits: s, (..., C).
        teacher_logits: t, (..., C).

    Returns:
        (...), a number for each row; its mean is the loss.

    >>> round(consistency_loss(torch.zeros(1, 4), torch.tensor([[9.0, 0, 0, 0]])).item(), 4)
    1.3863
    """
    student, teacher = _pair(student_logits, teacher_logits)
    return cross_entropy(student, teacher)


def symmetric_cross_entropy(student_logits: Tensor, teacher_logits: Tensor, alpha: float = 0.5) -> Tensor:
    """Cross-entropy both ways (RMT; Doebler et al., CVPR 2023, after Wang et al., ICCV 2019).

    (1 - alpha) (-sum_c softmax(t)_c log softmax(s)_c) + alpha (-sum_c softmax(s)_c log softmax(t)_c).

    Args:
        student_logits: s, (..., C).
        teacher_logits: t, (..., C); gradients flow to it where it wants them.
        alpha: weight of the reverse term. The published code uses 0.5.

    Returns:
        (...), a number for each row; its mean is the loss.

    >>> a, b = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    >>> bool(torch.isclose(symmetric_cross_entropy(a, b, 0.0), consistency_loss(a, b)))
    True
    """
    student, teacher = _pair(student_logits, teacher_logits)
    return (1 - alpha) * cross_entropy(student, teacher) + alpha * cross_entropy(teacher, student)


def stochastic_restore(parameter: Tensor, source: Tensor, mask: Tensor) -> Tensor:
    """The parameter with the source's values where the mask is set (CoTTA; Wang et al., CVPR 2022).

    source x mask + parameter x (1 - mask), for masks of 0 and 1.

    Args:
        parameter: of any shape.
        source: of the same shape.
        mask: of the same shape, boolean, or numbers that are 0 or 1; CoTTA draws it from Bernoulli(p).

    Returns:
        A new tensor; nothing is written.

    >>> stochastic_restore(torch.tensor([1.0, 2.0]), torch.tensor([5.0, 6.0]), torch.tensor([0, 1]))
    tensor([1., 6.])
    """
    if not parameter.shape == source.shape == mask.shape:
        shapes = [tuple(t.shape) for t in (parameter, source, mask)]
        raise MmclError(f"stochastic_restore: parameter, source and mask have shapes {shapes}; they must be equal")
    return torch.where(mask.bool(), source, parameter)


def nearest_prototypes(features: Tensor, prototypes: Tensor) -> Tensor:
    """For each feature the prototype with the largest cosine similarity, without gradients (RMT).

    Args:
        features: (B, D).
        prototypes: (P, D).

    Returns:
        (B, D) rows of `prototypes`.

    >>> nearest_prototypes(torch.tensor([[3.0, 1.0]]), torch.eye(2))
    tensor([[1., 0.]])
    """
    with torch.no_grad(), no_autocast(features):
        rows, anchors = widen(features, prototypes)
        nearest = (F.normalize(rows, dim=1) @ F.normalize(anchors, dim=1).T).argmax(dim=1)
    return prototypes.detach()[nearest]


def view_contrastive_loss(views: Tensor, *, valid: Tensor | None = None, temperature: float = 0.1) -> Tensor:
    """Contrastive loss among several views of each row (RMT; the form of SupCon, Khosla et al., 2020).

    Every vector is held to the other views of its row against all vectors but itself: for each anchor the log-softmax
    of cosine / temperature over the others, averaged over its V - 1 positives; the loss is minus the mean over anchors.

    Args:
        views: (B, V, F), not normalised; RMT's are nearest prototype, test feature and augmented feature, projected.
        valid: (B,) False for rows that take no part.
        temperature: tau; RMT uses 0.1.

    Returns:
        A scalar.

    >>> round(view_contrastive_loss(torch.eye(2)[:, None].expand(2, 3, 2), temperature=1.0).item(), 4)
    1.1326
    """
    rows, count, _ = views.shape
    (flat,) = widen(views.transpose(0, 1).reshape(count * rows, -1))
    flat = F.normalize(flat, dim=1)
    kept = torch.ones(rows, dtype=torch.bool, device=views.device) if valid is None else valid
    kept = kept.repeat(count)
    owner = torch.arange(rows, device=views.device).repeat(count)
    self_ = torch.eye(len(flat), dtype=torch.bool, device=views.device)
    with no_autocast(flat):
        scores = (flat @ flat.T) / temperature
    scores = scores.masked_fill(self_ | ~kept[None, :], -torch.inf).log_softmax(dim=1)
    positive = (owner[:, None] == owner[None, :]) & ~self_
    means = scores.masked_fill(~positive, 0.0).sum(dim=1) / (count - 1)
    return -means[kept].mean()


def _pair(student_logits: Tensor, teacher_logits: Tensor) -> tuple[Tensor, ...]:
    if student_logits.shape != teacher_logits.shape:
        raise MmclError(
            f"student logits {tuple(student_logits.shape)} and teacher logits {tuple(teacher_logits.shape)} differ"
        )
    return widen(student_logits, teacher_logits)
