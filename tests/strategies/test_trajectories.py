"""Whole tasks through the real strategies, against recorded trajectories and against the formulas written out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmcl.strategies import (
    ZSCL,
    Distillation,
    LwF,
    WeightConsolidation,
    WeightEnsemble,
    WeightInterpolation,
)
from mmcl.strategy import Strategy

NAMES = ("visual.weight", "visual.bias", "tok.weight", "tproj.weight")


def embed(w: dict[str, Tensor], images: Tensor) -> Tensor:
    return F.normalize(images @ w["visual.weight"].T + w["visual.bias"])


def embed_text(w: dict[str, Tensor], tokens: Tensor) -> Tensor:
    return F.normalize(w["tok.weight"][tokens].mean(dim=1) @ w["tproj.weight"].T)


def distil(teacher: Tensor, student: Tensor) -> Tensor:
    return -4 * ((teacher / 2).softmax(1) * (student / 2).log_softmax(1)).sum(1).mean()


def by_formula(
    data: Any, teacher: str = "", lwf: bool = False, l2: float = 0.0, interval: int = 0, alpha: float = 1.0
) -> tuple[list[Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """(losses, last weights, ensemble) of the loop that the ZSCL parity notes describe."""
    start = {n: data[f"prev.{n}"] for n in NAMES}
    w = {n: v.clone().requires_grad_() for n, v in start.items()}
    fixed = {n: data[f"{teacher}.{n}"] for n in NAMES} if teacher else {}
    average, count, losses = dict(start), 0, []
    optimizer = torch.optim.AdamW(w.values(), weight_decay=0.0)
    for i in range(9):
        classes = data["class_text_tokens"]
        logits = 10 * embed(w, data["images"][i % 3]) @ embed_text(w, classes).T
        loss = F.cross_entropy(logits, data["labels"][i % 3], label_smoothing=0.2)
        if teacher:
            images = data["images"][i % 3] if lwf else data["ref_images"][i % 2]
            texts = embed_text(fixed, classes if lwf else data["ref_text_tokens"])
            theirs, ours = 10 * embed(fixed, images) @ texts.T, 10 * embed(w, images) @ texts.T
            loss = loss + distil(theirs, ours) + distil(theirs.T, ours.T)
        total = loss + l2 * sum(((w[n] - start[n]) ** 2).sum() for n in NAMES)
        losses.append((loss if l2 else total).detach())
        optimizer.zero_grad()
        total.backward()
        optimizer.param_groups[0]["lr"] = data.lr(i)
        optimizer.step()
        if interval and i % interval == 0:
            count += 1
            average = {n: (count * average[n] + w[n].detach()) / (count + 1) for n in NAMES}
            average = {n: alpha * average[n] + (1 - alpha) * start[n] for n in NAMES}
    return losses, {n: v.detach() for n, v in w.items()}, average


def close(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    for name in NAMES:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("recording", "strategies"),
    [
        ("traj_finetune", lambda: []),
        ("traj_zscl_feature_only", lambda: [Distillation(texts="all")]),
        ("traj_zscl_feature_only", lambda: [Distillation(texts="batch")]),
        ("traj_zscl_feature_only", lambda: [ZSCL(interval=None, consolidation=0, cache_images=True)]),
    ],
)
def test_recorded(toolbox: SimpleNamespace, recording: str, strategies: Callable[[], list[Strategy]]) -> None:
    data = toolbox.Data(toolbox.PARITY / "zscl" / f"{recording}.npz")
    run = data.run(*strategies())
    run.begin()
    for i in range(9):
        total = run.train_step(data.batch(i), data.side(i), data.lr(i))
        torch.testing.assert_close(total, data["total_loss_per_step"][i], rtol=1e-9, atol=1e-12)
        flat = torch.cat([run.weights()[n].flatten() for n in NAMES])
        torch.testing.assert_close(flat, data["traj_params_after_each_step"][i], rtol=1e-9, atol=1e-12)
        if "loss_i2t_per_step" in data.arrays:
            torch.testing.assert_close(run.losses[i]["image_to_text"], data["loss_i2t_per_step"][i])
    run.end()
    close(run.weights(), data.weights("saved"))


FORMULAS: list[tuple[str, Callable[[], Sequence[Strategy]], dict[str, Any]]] = [
    ("zscl", lambda: [ZSCL(interval=2)], {"teacher": "init", "l2": 1.0, "interval": 2}),
    ("lwf", lambda: [LwF()], {"teacher": "prev", "lwf": True}),
    ("we", lambda: [WeightEnsemble(2)], {"interval": 2}),
    ("we_wise", lambda: [WeightEnsemble(2, alpha=0.98)], {"interval": 2, "alpha": 0.98}),
    ("wc", lambda: [WeightConsolidation(1.0)], {"l2": 1.0}),
]


@pytest.mark.parametrize(("strategies", "formula"), [x[1:] for x in FORMULAS], ids=[x[0] for x in FORMULAS])
def test_by_formula(data: Any, strategies: Callable[[], list[Strategy]], formula: dict[str, Any]) -> None:
    losses, last, average = by_formula(data, **formula)
    run = data.run(*strategies())
    run.begin()
    torch.testing.assert_close(torch.stack(data.train(run)), torch.stack(losses), rtol=1e-9, atol=1e-12)
    close(run.weights(), last)
    saved = average if "interval" in formula else last
    close(run.evaluated(), saved)
    run.end()
    close(run.weights(), saved)
    close(run.evaluated(), saved)


def test_wise_merge_carries_eight_tenths(data: Any) -> None:
    _, last, _ = by_formula(data)
    run = data.run(WeightInterpolation(0.8, base="start", merge=True))
    run.begin()
    data.train(run)
    run.end()
    wanted = {n: 0.8 * last[n] + 0.2 * data[f"prev.{n}"] for n in NAMES}
    close(run.weights(), wanted)
    close(run.evaluated(), wanted)  # not a second time


def test_the_formulas_written_out_are_the_recorded_ones(data: Any) -> None:
    losses, last, _ = by_formula(data, teacher="init")
    torch.testing.assert_close(torch.stack(losses), data["total_loss_per_step"], rtol=1e-9, atol=1e-12)
    close(last, data.weights("saved"))
