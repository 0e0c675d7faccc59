"""Distillation losses: the student's outputs, similarities or features are held to those of a teacher.

Gradients reach the student's arguments only. Features are not normalised on input; one of length 0 stays 0.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmcl.errors import MmclError
from mmcl.functional._divergence import cross_entropy, divergence
from mmcl.functional._precision import no_autocast, widen

MASKED_DIAGONAL = -1e4
CTP_MASKED_DIAGONAL = -1000.0


def distillation_loss(teacher_logits: Tensor, student_logits: Tensor, *, temperature: float) -> Tensor:
    """Mean over rows of T^2 x cross-entropy between the softened rows (Hinton et al., 2015; the form of ZSCL).

    D(t, u) = T^2 mean_r sum_c -softmax(t_r / T)_c log_softmax(u_r / T)_c. It is the cross-entropy, not the divergence:
    its value includes the teacher's entropy, its gradient is that of T^2 KL.

    Args:
        teacher_logits: (R, C). A class at minus infinity counts for nothing.
        student_logits: (R, C).
        temperature: T, above 0.

    Returns:
        A scalar in float32 or the inputs' wider type.

    >>> even = torch.zeros(3, 4)
    >>> round(distillation_loss(even, even, temperature=2.0).item(), 4)  # 4 log 4
    5.5452
    """
    _check(temperature, teacher_logits=teacher_logits, student_logits=student_logits)
    teacher, student = widen(teacher_logits.detach(), student_logits)
    return cross_entropy(student / temperature, teacher / temperature).mean() * temperature**2


def zscl_loss(
    student_image_features: Tensor,
    teacher_image_features: Tensor,
    teacher_text_features: Tensor,
    *,
    logit_scale: Tensor | float,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Distillation in feature space on reference data (ZSCL; Zheng et al., ICCV 2023, section 4.1).

    Z = s n(student images) n(teacher texts)^T is held to Z_t = s n(teacher images) n(teacher texts)^T by
    `distillation_loss`, over texts and over images. The student's text tower takes no part.

    Args:
        student_image_features: (N, D) of the reference images.
        teacher_image_features: (N, D) of the same images.
        teacher_text_features: (M, D) of the reference texts, which need not belong to the images.
        logit_scale: s, the student's, already exponentiated.
        temperature: T, above 0.

    Returns:
        (image_to_text, text_to_image), two scalars.

    >>> images, texts = torch.eye(2), torch.eye(2)
    >>> [round(x.item(), 4) for x in zscl_loss(images, images, texts, logit_scale=1.0, temperature=1.0)]
    [0.5822, 0.5822]
    """
    _check(temperature, student_image_features=student_image_features, teacher_image_features=teacher_image_features)
    _columns(student_image_features, teacher_text_features, "teacher_text_features")
    student, teacher, texts = widen(
        student_image_features, teacher_image_features.detach(), teacher_text_features.detach()
    )
    with no_autocast(student):
        anchors = logit_scale * normalize(texts).T
        student_logits, teacher_logits = normalize(student) @ anchors, normalize(teacher) @ anchors
        image_to_text = distillation_loss(teacher_logits, student_logits, temperature=temperature)
        text_to_image = distillation_loss(teacher_logits.T, student_logits.T, temperature=temperature)
    return image_to_text, text_to_image


def similarity_distillation_loss(
    student_features: Tensor, teacher_features: Tensor, *, logit_scale: Tensor | float, temperature: float
) -> Tensor:
    """Distillation of the similarities within one modality (the image-image ablation of ZSCL).

    Logits s n(x) n(x)^T with the diagonal replaced by -1e4, then `distillation_loss`.

    Args:
        student_features: (N, D).
        teacher_features: (N, D) of the same inputs; D may differ.
        logit_scale: s, already exponentiated.
        temperature: T, above 0.

    >>> x = torch.eye(3)
    >>> round(similarity_distillation_loss(x, x, logit_scale=10.0, temperature=1.0).item(), 4)  # log 2
    0.6931
    """
    _check(temperature)
    _rows(student_features, teacher_features, "teacher_features")
    student, teacher = widen(student_features, teacher_features.detach())
    with no_autocast(student):
        rows = [normalize(x) for x in (teacher, student)]
        logits = [_mask_diagonal(logit_scale * x @ x.T, MASKED_DIAGONAL) for x in rows]
        return distillation_loss(logits[0], logits[1], temperature=temperature)


def feature_distillation_loss(teacher_features: Tensor, student_features: Tensor) -> Tensor:
    """Mean squared difference of the normalised features (the feature-MSE ablation of ZSCL): mean((n(t) - n(u))^2).

    Args:
        teacher_features: (N, D).
        student_features: (N, D).

    >>> feature_distillation_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 5.0]])).item()
    1.0
    """
    _check(1.0, teacher_features=teacher_features, student_features=student_features)
    teacher, student = widen(teacher_features.detach(), student_features)
    return (normalize(teacher) - normalize(student)).square().mean()


def topology_preservation_loss(
    student_image_features: Tensor,
    student_text_features: Tensor,
    reference_image_features: Tensor,
    reference_text_features: Tensor,
    *,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Topology preservation against the previous task's model (CTP; Zhu et al., ICCV 2023).

    Softmax rows of the similarities v t^T / T and t v^T / T (cross), and v v^T / T and t t^T / T with the diagonal set
    to -1000 before the division (same), are held to the reference model's by KL(reference || student): summed over
    columns, averaged over rows, and over the two matrices. The loss of the paper is cross + same.

    Args:
        student_image_features: (B, D).
        student_text_features: (B, D), row i the text of image i.
        reference_image_features: (B, D) of the previous model.
        reference_text_features: (B, D) of the previous model.
        temperature: T, above 0; the paper trains with 0.07.

    Returns:
        (cross, same), two scalars.

    >>> v, t = torch.eye(3), torch.eye(3).flip(0)
    >>> [x.item() for x in topology_preservation_loss(v, t, v, t, temperature=0.07)]
    [0.0, 0.0]
    """
    _check(temperature, student_image_features=student_image_features, student_text_features=student_text_features)
    for name, reference in (
        ("reference_image_features", reference_image_features),
        ("reference_text_features", reference_text_features),
    ):
        _rows(student_image_features, reference, name)
    v, t, vr, tr = widen(
        student_image_features,
        student_text_features,
        reference_image_features.detach(),
        reference_text_features.detach(),
    )
    with no_autocast(v):
        v, t, vr, tr = normalize(v), normalize(t), normalize(vr), normalize(tr)
        between = v @ t.T
        between_reference = vr @ tr.T
        pairs = ((between_reference, between), (between_reference.T, between.T))
        cross = sum(divergence_loss(reference, x, temperature=temperature) for reference, x in pairs)
        same = sum(
            divergence_loss(
                _mask_diagonal(reference @ reference.T, CTP_MASKED_DIAGONAL),
                _mask_diagonal(x @ x.T, CTP_MASKED_DIAGONAL),
                temperature=temperature,
            )
            for reference, x in ((vr, v), (tr, t))
        )
    return torch.as_tensor(cross) / 2, torch.as_tensor(same) / 2


def divergence_loss(reference_logits: Tensor, student_logits: Tensor, *, temperature: float) -> Tensor:
    """KL(softmax(reference / T) || softmax(student / T)), summed over columns, averaged over rows, without T^2.

    The form of CTP's parts. Its baseline LwF takes it of raw features, over their D values, at T = 0.07.

    Args:
        reference_logits: (R, C). A class at minus infinity counts for nothing.
        student_logits: (R, C).
        temperature: T, above 0.

    >>> round(divergence_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0]]), temperature=1.0).item(), 4)
    0.1201
    """
    _check(temperature, reference_logits=reference_logits, student_logits=student_logits)
    reference, student = widen(reference_logits.detach(), student_logits)
    return divergence(student / temperature, reference / temperature) / len(reference)


def _mask_diagonal(similarities: Tensor, value: float) -> Tensor:
    """A copy with the diagonal at `value`, so that the trivial maximum does not dominate."""
    diagonal = torch.eye(len(similarities), dtype=torch.bool, device=similarities.device)
    return similarities.masked_fill(diagonal, value)


def _check(temperature: float, **tensors: Tensor) -> None:
    """A usable temperature, and matrices of one shape."""
    if not temperature > 0:
        raise MmclError(f"temperature must be above 0, got {temperature}")
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if shapes and (len(set(shapes.values())) > 1 or any(len(shape) != 2 or 0 in shape for shape in shapes.values())):
        told = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise MmclError(f"expected two matrices of one shape with at least one row, got {told}")


def _columns(features: Tensor, other: Tensor, name: str) -> None:
    if other.ndim != 2 or 0 in other.shape or other.shape[1] != features.shape[1]:
        raise MmclError(f"{name} has shape {tuple(other.shape)}, expected (M, {features.shape[1]}) with M above 0")


def _rows(features: Tensor, other: Tensor, name: str) -> None:
    if features.ndim != 2 or other.ndim != 2 or 0 in features.shape or other.shape[0] != features.shape[0]:
        raise MmclError(f"{name} has shape {tuple(other.shape)}, which does not match features {tuple(features.shape)}")
