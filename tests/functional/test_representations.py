"""Center loss, dark experience and threshold margins on numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch

from mmcl.errors import MmclError
from mmcl.functional import (
    center_loss,
    dark_experience_loss,
    threshold_margin_loss,
    threshold_margins,
    update_centers,
)


def test_centers_follow_the_paper() -> None:
    centers = torch.tensor([[0.0, 0.0], [4.0, 0.0], [9.0, 9.0]])
    features, classes = torch.tensor([[1.0, 1.0], [2.0, 0.0], [2.0, 2.0]]), torch.tensor([0, 1, 1])
    assert center_loss(features, centers[classes]).item() == pytest.approx((2 + 4 + 8) / 2 / 3)
    moved = update_centers(centers, features, classes, rate=0.5)
    # class 1: the sum of (4 - 2, 0) and (4 - 2, -2) over 1 + 2
    expected = torch.tensor([[0.25, 0.25], [4 - 0.5 * 4 / 3, 0.5 * 2 / 3], [9.0, 9.0]])
    torch.testing.assert_close(moved, expected)
    assert centers[0].tolist() == [0, 0]
    assert update_centers(centers, features, classes, rate=0.0).equal(centers)


def test_center_loss_gives_the_centers_no_gradient() -> None:
    features, centers = torch.ones(2, 3, requires_grad=True), torch.zeros(2, 3, requires_grad=True)
    center_loss(features, centers).backward()
    torch.testing.assert_close(features.grad, torch.full((2, 3), 0.5))
    assert centers.grad is None


def test_dark_experience_looks_at_the_columns_of_the_time() -> None:
    logits = torch.arange(12.0).reshape(2, 2, 3).requires_grad_()
    stored = torch.zeros(2, 2, 2, dtype=torch.float16)
    loss = dark_experience_loss(logits, stored)
    torch.testing.assert_close(loss, torch.nn.functional.mse_loss(logits[..., :2], stored.float()))
    loss.backward()
    assert logits.grad is not None and logits.grad[..., 2].abs().sum() == 0 and logits.grad[..., :2].sum() > 0


@pytest.mark.parametrize("tau", [0.0, 1.0, 2.5])
def test_threshold_margins_equal_the_three_cases_written_out(tau: float) -> None:
    """As the published code writes them: masks of the teacher's three states times a hinge each."""
    torch.manual_seed(0)
    student, teacher = (torch.randn(5, 7, 4, dtype=torch.float64) * 2 for _ in range(2))
    mean, std = torch.randn(4, dtype=torch.float64), torch.rand(4, dtype=torch.float64)
    high, low = mean + tau * std, mean - tau * std
    off, on = teacher <= low, teacher >= high
    rest = ~off & ~on
    expected = (
        (student - low).relu() * off
        + ((student - high).relu() + (low - student).relu()) * rest
        + (high - student).relu() * on
    )
    found = threshold_margins(student, teacher, mean, std, tau=tau)
    if tau:  # with tau 0 a teacher at the mean would be off and on
        torch.testing.assert_close(found, expected)
    loss = threshold_margin_loss(student, teacher, mean, std, tau=tau)
    torch.testing.assert_close(loss, found.sum() / (found > 0).sum())


def test_the_teacher_itself_has_no_margin_loss() -> None:
    teacher = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    student = teacher.clone().requires_grad_()
    loss = threshold_margin_loss(student, teacher, teacher.mean(0), teacher.std(0))
    loss.backward()
    assert loss.item() == 0.0 and student.grad is not None and student.grad.abs().sum() == 0


def test_padding_has_no_margin() -> None:
    student, teacher = torch.full((1, 2, 1), 5.0), torch.zeros(1, 2, 1)
    valid = torch.tensor([[True, False]])
    loss = threshold_margin_loss(student * torch.tensor([[[1.0], [9.0]]]), teacher, torch.zeros(1), torch.ones(1))
    assert loss.item() == (4 + 44) / 2
    masked = threshold_margin_loss(student, teacher, torch.zeros(1), torch.ones(1), valid=valid)
    assert masked.item() == 4.0


@pytest.mark.parametrize(
    "call",
    [
        lambda: center_loss(torch.ones(2), torch.ones(2)),
        lambda: update_centers(torch.ones(1, 1), torch.ones(1, 1), torch.zeros(1).long(), rate=2.0),
        lambda: dark_experience_loss(torch.ones(1, 2), torch.ones(1, 3)),
        lambda: threshold_margins(torch.ones(1, 2), torch.ones(1, 3), torch.ones(2), torch.ones(2)),
        lambda: threshold_margins(torch.ones(1, 2), torch.ones(1, 2), torch.ones(2), torch.ones(2), tau=-1.0),
    ],
)
def test_errors(call) -> None:
    with pytest.raises(MmclError):
        call()
