"""The papers' formulas written out in numpy, against ours on random inputs of odd shapes, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from mmcl.functional import (
    coda_prompt,
    distillation_loss,
    divergence_loss,
    interpolate,
    momentum_contrast_loss,
    prefix_attention,
    published_threshold,
    running_average,
    soft_threshold,
    threshold_schedule,
    topology_preservation_loss,
    zscl_loss,
)
from mmcl.functional.prompts import domain_distances, key_similarities, select_prompts, vote_prompts

Array = npt.NDArray[np.float64]


@pytest.fixture(params=range(3))
def draw(request: pytest.FixtureRequest) -> Callable[..., Array]:
    random = np.random.default_rng(request.param)
    return lambda *shape: random.normal(size=shape)


def torched(*arrays: Array) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(array) for array in arrays)


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-9, atol=1e-12)


def unit(x: Array) -> Array:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def log_softmax(x: Array) -> Array:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def soft_cross_entropy(targets: Array, logits: Array) -> float:
    return float(np.mean(-(np.exp(log_softmax(targets)) * log_softmax(logits)).sum(-1)))


def divergence(targets: Array, logits: Array) -> float:
    return soft_cross_entropy(targets, logits) - soft_cross_entropy(targets, targets)


def diagonal_cross_entropy(logits: Array) -> float:
    return float(-np.mean(np.diagonal(log_softmax(logits))))


@pytest.mark.parametrize(
    ("images", "texts", "width", "scale", "t"), [(1, 1, 3, 100, 2), (7, 11, 16, 100, 2), (4, 1, 5, 1, 0.5)]
)
def test_zscl(draw: Any, images: int, texts: int, width: int, scale: float, t: float) -> None:
    student, teacher, text = draw(images, width), draw(images, width), draw(texts, width)
    z, wanted = (scale * unit(x) @ unit(text).T / t for x in (student, teacher))
    found = zscl_loss(*torched(student, teacher, text), logit_scale=scale, temperature=t)
    close(found[0], t**2 * soft_cross_entropy(wanted, z))
    close(found[1], t**2 * soft_cross_entropy(wanted.T, z.T))
    rows = torched(wanted.T.copy(), z.T.copy())
    close(distillation_loss(rows[0].T, rows[1].T, temperature=t), t**2 * soft_cross_entropy(wanted / t, z / t))
    close(divergence_loss(rows[0].T, rows[1].T, temperature=t), divergence(wanted / t, z / t))


@pytest.mark.parametrize(("batch", "queue", "t"), [(1, 0, 0.07), (1, 3, 1.0), (5, 0, 0.07), (6, 17, 0.5)])
def test_ctp(draw: Any, batch: int, queue: int, t: float) -> None:
    v, w, vm, wm = (draw(batch, 4) for _ in range(4))
    images, texts = unit(draw(queue, 4)).T, unit(draw(queue, 4)).T
    forth, back = (unit(a) @ np.hstack([unit(b).T, q]) / t for a, b, q in ((v, wm, texts), (w, vm, images)))
    found = momentum_contrast_loss(*torched(v, w, vm, wm, images, texts), temperature=t)
    close(found, (diagonal_cross_entropy(forth) + diagonal_cross_entropy(back)) / 2)

    def within(x: Array) -> Array:
        similarity = unit(x) @ unit(x).T
        np.fill_diagonal(similarity, -1000.0)
        return similarity / t

    between, before = unit(v) @ unit(w).T / t, unit(vm) @ unit(wm).T / t
    cross, same = topology_preservation_loss(*torched(v, w, vm, wm), temperature=t)
    close(cross, (divergence(before, between) + divergence(before.T, between.T)) / 2)
    close(same, (divergence(within(vm), within(v)) + divergence(within(wm), within(w))) / 2)


def test_weight_ensemble_with_wise_and_reptile(draw: Any) -> None:
    """W <- (k W + theta) / (k + 1), then a W + (1 - a) W_0; and a <- a + eps (fast - a), fast <- a every k steps."""
    start = draw(2, 3)
    (average,) = torched(start.copy())
    expected = start
    for k in range(1, 7):
        sample = draw(2, 3)
        running_average({"w": average}, {"w": torch.from_numpy(sample)}, count=k)
        interpolate({"w": average}, {"w": torch.from_numpy(start)}, alpha=1 - 0.98)
        expected = 0.98 * (k * expected + sample) / (k + 1) + 0.02 * start
        close(average, expected)
    anchor, fast = start.copy(), start.copy()
    ours, live = torched(start.copy(), start.copy())
    for step in range(1, 12):
        change = draw(2, 3)
        fast, live = fast + change, live + torch.from_numpy(change)
        if step % 3 == 0:
            anchor = anchor + 0.3 * (fast - anchor)
            fast = anchor.copy()
            live = interpolate({"w": ours}, {"w": live}, alpha=0.3)["w"].clone()
        close(live, fast)


@pytest.mark.parametrize(
    ("total", "dense", "notches", "top"),
    [(501, 0.5, 50, 0.01), (7, 0.3, 3, 0.2), (13, 0.0, 1, 0.1), (60, 1.0, 5, 0.1), (0, 0.5, 5, 0.1)],
)
def test_codyra(draw: Any, total: int, dense: float, notches: int, top: float) -> None:
    values, begins = np.linspace(0, top, notches), dense * total
    every, index = int((total - begins) // notches), 0
    kappas, applied = [], []
    for i in range(total):
        if every and i >= begins and i % every == 0:
            index = min(index + 1, notches - 1)
        kappas.append(values[index])
        applied.append(i > begins)
    schedule = threshold_schedule(total, dense, notches, top)
    close(schedule.kappa, kappas)
    assert schedule.applied.tolist() == applied
    gate = np.concatenate([draw(50) * top, [top, -top, 2 * top, 0.0]])
    close(soft_threshold(torch.from_numpy(gate), top), np.where(np.abs(gate) > top, gate - np.sign(gate) * top, 0))
    moved = gate.copy()
    moved[gate > top] -= top
    moved[gate < -top] += top
    moved[np.abs(moved) < top] = 0
    close(published_threshold(torch.from_numpy(gate), top), moved)


@pytest.mark.parametrize(
    ("batch", "pool", "width", "length", "top"), [(1, 1, 1, 1, 1), (4, 6, 8, 3, 2), (3, 10, 5, 2, 10)]
)
def test_prompts(draw: Any, batch: int, pool: int, width: int, length: int, top: int) -> None:
    query, keys, attend, prompts = draw(batch, width), draw(pool, width), draw(pool, width), draw(pool, length, width)
    cosines = unit(query) @ unit(keys).T
    close(key_similarities(*torched(query, keys)), cosines)
    chosen = np.argsort(-cosines, axis=1, kind="stable")[:, :top]
    assert select_prompts(*torched(query, keys), top).tolist() == chosen.tolist()
    votes = np.argsort(-np.bincount(chosen.ravel(), minlength=pool), kind="stable")[:top]
    assert vote_prompts(torch.from_numpy(chosen), pool).tolist() == [votes.tolist()] * batch
    weights = (unit(query[:, None] * attend) * unit(keys)).sum(-1)
    close(coda_prompt(*torched(query, attend, keys, prompts)), np.einsum("bm,mld->bld", weights, prompts))
    centres = draw(3, 4, width)
    nearest = np.abs(query[None, :, None] - centres[:, None]).sum(-1).min(-1)
    close(domain_distances(*torched(query, centres)), nearest)
    q, k, v = (draw(batch, 2, 5, 4) for _ in range(3))
    before_k, before_v = (draw(batch, 2, length, 4) for _ in range(2))
    all_k, all_v = np.concatenate([before_k, k], 2), np.concatenate([before_v, v], 2)
    expected = np.exp(log_softmax(q @ all_k.swapaxes(-1, -2) / 2)) @ all_v
    close(prefix_attention(*torched(q, k, v, before_k, before_v)), expected)
