"""Losses, restoration and views of test-time adaptation against the reference arrays and plain loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mmcl.errors import MmclError
from mmcl.functional import (
    consistency_loss,
    nearest_prototypes,
    softmax_entropy,
    stochastic_restore,
    symmetric_cross_entropy,
    view_contrastive_loss,
)
from mmcl.functional.augmentation import random_view

PARITY = Path(__file__).resolve().parent.parent / "parity"
EXACT = {"rtol": 1e-9, "atol": 1e-12}


def arrays(name: str) -> dict[str, Tensor]:
    return {key: torch.from_numpy(value) for key, value in np.load(PARITY / name).items()}


def test_entropy_is_that_of_the_reference_code() -> None:
    data = arrays("tent/entropy.npz")
    logits = data["logits"].requires_grad_()
    found = softmax_entropy(logits)
    torch.testing.assert_close(found, data["entropy"], **EXACT)
    torch.testing.assert_close(found.mean(), data["loss"], **EXACT)
    torch.testing.assert_close(torch.autograd.grad(found.mean(), logits)[0], data["grad_logits"], **EXACT)


def test_consistency_is_that_of_the_reference_code() -> None:
    data = arrays("cotta/consistency_loss_cifar.npz")
    student = data["student_logits"].requires_grad_()
    found = consistency_loss(student, data["teacher_logits"])
    torch.testing.assert_close(found, data["per_sample"], **EXACT)
    torch.testing.assert_close(found.mean(), data["loss"], **EXACT)
    torch.testing.assert_close(torch.autograd.grad(found.mean(), student)[0], data["grad_student"], **EXACT)


def test_symmetric_cross_entropy_is_that_of_the_reference_code() -> None:
    data = arrays("rmt/symmetric_cross_entropy_alpha0.5.npz")
    student, teacher = (data[f"{name}_logits"].requires_grad_() for name in ("student", "teacher"))
    found = symmetric_cross_entropy(student, teacher, float(data["alpha"]))
    torch.testing.assert_close(found, data["per_sample"], **EXACT)
    torch.testing.assert_close(found.mean(), data["loss"], **EXACT)
    grads = torch.autograd.grad(found.mean(), (student, teacher))
    torch.testing.assert_close(grads[0], data["grad_student"], **EXACT)
    torch.testing.assert_close(grads[1], data["grad_teacher"], **EXACT)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_symmetric_cross_entropy_weighs_its_two_directions(alpha: float) -> None:
    s, t = torch.randn(2, 6, 5, dtype=torch.float64).unbind()
    wanted = (1 - alpha) * consistency_loss(s, t) + alpha * consistency_loss(t, s)
    torch.testing.assert_close(symmetric_cross_entropy(s, t, alpha), wanted, **EXACT)


def test_a_masked_class_counts_for_nothing() -> None:
    s, t = torch.randn(2, 3, 6, 5, dtype=torch.float64).unbind()
    live = [x.index_fill(-1, torch.tensor([1, 3]), -torch.inf).requires_grad_() for x in (s, t)]
    kept = [x[..., [0, 2, 4]] for x in (s, t)]
    for loss, count in ((softmax_entropy, 1), (consistency_loss, 2), (symmetric_cross_entropy, 2)):
        found = loss(*live[:count])
        torch.testing.assert_close(found, loss(*kept[:count]), **EXACT)
        for gradient in torch.autograd.grad(found.sum(), live[:count]):
            assert gradient.isfinite().all() and (gradient[..., [1, 3]] == 0).all()


def test_losses_take_half_precision_in_float32() -> None:
    logits = torch.randn(3, 4).bfloat16()
    assert softmax_entropy(logits).dtype == torch.float32
    torch.testing.assert_close(softmax_entropy(logits), softmax_entropy(logits.float()))
    with pytest.raises(MmclError, match="differ"):
        consistency_loss(torch.zeros(2, 3), torch.zeros(2, 4))


@pytest.mark.parametrize("kind", [torch.bool, torch.float64, torch.int64])
def test_restoration_takes_the_source_where_the_mask_is_set(kind: torch.dtype) -> None:
    data = arrays("cotta/two_steps_cifar_noaug_sgd.npz")
    for step in ("step0", "step1"):
        for name in ("0.weight", "4.bias", "8.weight"):
            before = data[f"{step}.student_after_opt.{name}"]
            found = stochastic_restore(before, data[f"param.{name}"], data[f"{step}.mask.{name}"].to(kind))
            torch.testing.assert_close(found, data[f"{step}.student_after_restore.{name}"], rtol=0, atol=0)
    with pytest.raises(MmclError, match="must be equal"):
        stochastic_restore(torch.zeros(2), torch.zeros(2), torch.zeros(1))


def contrast_by_loops(views: Tensor, temperature: float) -> float:
    """The formula as it is written: vectors in the order of the views, one anchor after another."""
    rows, count, _ = views.shape
    flat = [(row, views[row, view].numpy()) for view in range(count) for row in range(rows)]
    flat = [(row, vector / np.linalg.norm(vector)) for row, vector in flat]
    losses = []
    for i, (row, anchor) in enumerate(flat):
        scores = {j: anchor @ other / temperature for j, (_, other) in enumerate(flat) if j != i}
        whole = np.log(sum(np.exp(score) for score in scores.values()))
        positives = [score - whole for j, score in scores.items() if flat[j][0] == row]
        assert len(positives) == count - 1
        losses.append(-np.mean(positives))
    return float(np.mean(losses))


def test_contrast_of_views_is_its_formula_and_leaves_padding_out() -> None:
    views = torch.randn(5, 3, 7, dtype=torch.float64)
    wanted = contrast_by_loops(views, 0.1)
    assert float(view_contrastive_loss(views)) == pytest.approx(wanted, rel=1e-9)
    padded = torch.cat([views, torch.randn(2, 3, 7, dtype=torch.float64)]).requires_grad_()
    valid = torch.tensor([True] * 5 + [False] * 2)
    loss = view_contrastive_loss(padded, valid=valid)
    assert loss.item() == pytest.approx(wanted, rel=1e-9)
    (grad,) = torch.autograd.grad(loss, padded)
    assert bool(grad[:5].abs().sum() > 0) and bool((grad[5:] == 0).all())


def test_the_nearest_prototype_is_the_one_with_the_largest_cosine() -> None:
    features, prototypes = torch.randn(6, 4).requires_grad_(), torch.randn(3, 4)
    found = nearest_prototypes(features, prototypes)
    assert not found.requires_grad
    for feature, row in zip(features, found, strict=True):
        cosines = [torch.cosine_similarity(feature, p, dim=0).item() for p in prototypes]
        assert torch.equal(row, prototypes[int(np.argmax(cosines))])


def test_views_are_a_function_of_the_generator_and_lie_between_0_and_1() -> None:
    pictures = torch.rand(3, 3, 16, 12, dtype=torch.float64) * 1.2 - 0.1
    seeds = range(12)
    views = [random_view(pictures, torch.Generator().manual_seed(seed)) for seed in seeds]
    again = [random_view(pictures, torch.Generator().manual_seed(seed)) for seed in seeds]
    for view, other in zip(views, again, strict=True):
        assert view.shape == pictures.shape and view.dtype == pictures.dtype and torch.equal(view, other)
        assert float(view.min()) >= 0 and float(view.max()) <= 1
    assert not torch.equal(views[0], views[1])
    alone = random_view(pictures[1:2], torch.Generator().manual_seed(5))
    torch.testing.assert_close(alone, views[5][1:2], **EXACT)  # a row's view does not depend on the others


def test_views_keep_what_a_picture_shows() -> None:
    """Of a picture whose right half is bright half of the views are mirrored, and half of the area stays bright."""
    picture = torch.zeros(1, 3, 32, 32)
    picture[..., 16:] = 0.8
    views = torch.cat([random_view(picture, torch.Generator().manual_seed(seed)) for seed in range(200)])
    halves = views[..., :16].mean(dim=(1, 2, 3)), views[..., 16:].mean(dim=(1, 2, 3))
    mirrored = (halves[0] > halves[1]).float().mean()
    assert 0.4 < float(mirrored) < 0.6
    assert 0.3 < float(views.mean()) < 0.5
