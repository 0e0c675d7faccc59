"""Distillation losses against the parity arrays, their gradients, their precision and their errors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmcl.errors import MmclError
from mmcl.functional import (
    distillation_loss,
    divergence_loss,
    feature_distillation_loss,
    similarity_distillation_loss,
    topology_preservation_loss,
    zscl_loss,
)

PARITY = Path(__file__).parents[1] / "parity"


def arrays(name: str) -> dict[str, Tensor]:
    with np.load(PARITY / name) as data:
        return {key: torch.from_numpy(data[key].copy()) for key in data.files}


def close(actual: Tensor, expected: Tensor, rtol: float = 1e-9, atol: float = 1e-12) -> None:
    torch.testing.assert_close(actual.detach(), expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize(
    ("name", "rtol", "grad_rtol", "atol"), [("f64_0", 1e-9, 1e-9, 1e-12), ("f32_0", 2e-5, 1e-4, 1e-6)]
)
def test_distillation_parity(name: str, rtol: float, grad_rtol: float, atol: float) -> None:
    a = arrays(f"zscl/distillation_{name}.npz")
    temperature = float(a["T"])
    for side, flip in (("i2t", False), ("t2i", True)):
        student = a["student_logits"].clone().requires_grad_()
        pair = (a["teacher_logits"].T, student.T) if flip else (a["teacher_logits"], student)
        loss = distillation_loss(*pair, temperature=temperature)
        loss.backward()
        close(loss, a[f"loss_{side}"], rtol, atol)
        close(student.grad, a[f"grad_student_{side}"], grad_rtol, atol)


def test_step_parity() -> None:
    a = arrays("zscl/step_loss_f64.npz")
    scale, temperature = a["logit_scale_log"].exp(), float(a["T"])
    image, text, student = (
        a[key].clone().requires_grad_() for key in ("image_feat", "class_text_feat", "student_ref_image_feat")
    )
    logits = scale * F.normalize(image) @ F.normalize(text).T
    ce = F.cross_entropy(logits, a["labels"], label_smoothing=float(a["label_smoothing"]))
    i2t, t2i = zscl_loss(
        student,
        a["teacher_ref_image_feat"],
        a["teacher_ref_text_feat"],
        logit_scale=scale,
        temperature=temperature,
    )
    (ce + i2t + t2i).backward()
    for value, key in ((ce, "loss_ce"), (i2t, "loss_i2t"), (t2i, "loss_t2i"), (ce + i2t + t2i, "loss_total")):
        close(value, a[key])
    close(image.grad, a["grad_image_feat"])
    close(text.grad, a["grad_class_text_feat"])
    close(student.grad, a["grad_student_ref_image_feat"])


def test_divergence_form_differs_by_the_teachers_entropy() -> None:
    a = arrays("zscl/step_loss_f64.npz")
    scale, temperature = a["logit_scale_log"].exp(), float(a["T"])
    teacher = scale * F.normalize(a["teacher_ref_image_feat"]) @ F.normalize(a["teacher_ref_text_feat"]).T
    entropy = distillation_loss(teacher, teacher, temperature=temperature)
    close(a["loss_i2t"] - entropy, a["kl_form_i2t"])


def test_ablation_parity() -> None:
    a = arrays("zscl/step_loss_f64.npz")
    student = a["student_ref_image_feat"].clone().requires_grad_()
    loss = similarity_distillation_loss(
        student,
        a["teacher_ref_image_feat"],
        logit_scale=a["logit_scale_log"].exp(),
        temperature=float(a["T"]),
    )
    loss.backward()
    close(loss, a["loss_img_img"])
    close(student.grad, a["grad_student_ref_image_feat_img_img"])

    student = a["student_ref_image_feat"].clone().requires_grad_()
    loss = feature_distillation_loss(a["teacher_ref_image_feat"], student)
    loss.backward()
    close(loss, a["loss_feature_mse"])
    close(student.grad, a["grad_student_ref_image_feat_mse"])


@pytest.mark.parametrize("part", [0, 1])
def test_topology_preservation_parity(part: int) -> None:
    a = arrays("ctp/components_f64.npz")
    image, text = (a[f"student_{kind}_feat_raw"].clone().requires_grad_() for kind in ("image", "text"))
    losses = topology_preservation_loss(
        image,
        text,
        a["reference_image_feat_raw"],
        a["reference_text_feat_raw"],
        temperature=float(a["tau"]),
    )
    losses[part].backward()
    name = ("tp_cross", "tp_same")[part]
    close(losses[part], a[f"loss_{name}"])
    close(image.grad, a[f"grad_image_{name}"])
    close(text.grad, a[f"grad_text_{name}"])


def test_only_the_student_receives_a_gradient() -> None:
    features = [torch.randn(4, 3, requires_grad=True) for _ in range(4)]
    scale = torch.tensor(10.0, requires_grad=True)
    i2t, t2i = zscl_loss(*features[:3], logit_scale=scale, temperature=2.0)
    cross, same = topology_preservation_loss(features[0], features[3], *features[1:3], temperature=0.1)
    (i2t + t2i + cross + same + feature_distillation_loss(features[1], features[0])).backward()
    assert features[0].grad is not None and features[3].grad is not None and scale.grad is not None
    assert features[1].grad is None and features[2].grad is None


def test_low_precision_inputs_are_computed_in_float32() -> None:
    student, teacher, texts = (torch.randn(6, 16).bfloat16() for _ in range(3))
    loss = zscl_loss(student, teacher, texts, logit_scale=100.0, temperature=2.0)
    exact = zscl_loss(student.double(), teacher.double(), texts.double(), logit_scale=100.0, temperature=2.0)
    assert loss[0].dtype == torch.float32
    torch.testing.assert_close(torch.stack(loss).double(), torch.stack(exact), rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = zscl_loss(student, teacher, texts, logit_scale=100.0, temperature=2.0)
    assert torch.equal(torch.stack(under_autocast), torch.stack(loss))


def test_large_scales_stay_finite() -> None:
    student = torch.randn(5, 8, requires_grad=True)
    i2t, t2i = zscl_loss(student, torch.randn(5, 8), torch.randn(700, 8), logit_scale=100.0, temperature=0.01)
    (i2t + t2i).backward()
    assert torch.isfinite(student.grad).all()


def test_a_feature_of_length_0_has_a_similarity_of_0() -> None:
    """As in the losses that the modules train with, so that distillation is not what ends a run."""
    student, teacher, texts = torch.randn(3, 4, 3, dtype=torch.float64).unbind()
    student[1] = 0
    student.requires_grad_()
    i2t, t2i = zscl_loss(student, teacher, texts, logit_scale=10.0, temperature=2.0)
    z, wanted = (10.0 * F.normalize(x) @ F.normalize(texts).T for x in (student, teacher))
    assert (z[1] == 0).all()
    close(i2t, distillation_loss(wanted, z.detach(), temperature=2.0))
    close(t2i, distillation_loss(wanted.T, z.detach().T, temperature=2.0))
    parts = (
        *topology_preservation_loss(student, texts, teacher, texts, temperature=0.07),
        similarity_distillation_loss(student, teacher, logit_scale=10.0, temperature=1.0),
        feature_distillation_loss(teacher, student),
    )
    (gradient,) = torch.autograd.grad(i2t + t2i + torch.stack(parts).sum(), student)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("loss", [distillation_loss, divergence_loss])
def test_a_masked_class_counts_for_nothing(loss) -> None:
    teacher, student = torch.randn(2, 5, 4, dtype=torch.float64).unbind()
    masked = torch.tensor([False, True, False, False])
    live = student.masked_fill(masked, -torch.inf).requires_grad_()
    expected = loss(teacher[:, ~masked], student[:, ~masked], temperature=2.0)
    found = loss(teacher.masked_fill(masked, -torch.inf), live, temperature=2.0)
    close(found, expected)
    (gradient,) = torch.autograd.grad(found, live)
    assert gradient.isfinite().all() and (gradient[:, masked] == 0).all() and gradient[:, ~masked].abs().sum() > 0
    # The student's chance of what the teacher rules out lowers its others, as in torch's own divergence.
    unmasked = loss(teacher.masked_fill(masked, -torch.inf), student, temperature=2.0)
    chances = (teacher.masked_fill(masked, -torch.inf) / 2).softmax(dim=1)
    kl = F.kl_div((student / 2).log_softmax(dim=1), chances, reduction="batchmean")
    entropy = -torch.special.xlogy(chances, chances).sum(dim=1).mean()
    close(unmasked, kl if loss is divergence_loss else 4 * (kl + entropy))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: distillation_loss(x, x, temperature=0.0), "temperature must be above 0"),
        (lambda x: distillation_loss(x, x[:, :2], temperature=1.0), r"student_logits \(4, 2\)"),
        (lambda x: distillation_loss(x[:0], x[:0], temperature=1.0), "at least one row"),
        (lambda x: zscl_loss(x, x, x[:, :2], logit_scale=1.0, temperature=1.0), "teacher_text_features"),
        (lambda x: zscl_loss(x, x[:3], x, logit_scale=1.0, temperature=1.0), "teacher_image_features"),
        (lambda x: similarity_distillation_loss(x, x[:3], logit_scale=1.0, temperature=1.0), "teacher_features"),
        (lambda x: feature_distillation_loss(x, x[:, :2]), "student_features"),
        (lambda x: topology_preservation_loss(x, x, x, x[:3], temperature=1.0), "reference_text_features"),
    ],
)
def test_errors(call, words: str) -> None:
    with pytest.raises(MmclError, match=words):
        call(torch.randn(4, 3))
