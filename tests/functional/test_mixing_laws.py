"""Velocitune's weights, the two laws of mixtures, and the schedules of FoMo-in-Flux, against the parity arrays."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmcl.errors import ConfigError, MmclError
from mmcl.functional import (
    cmr_law,
    cosine_between,
    dcpt_law,
    meta_peak,
    rsqrt_cooldown,
    velocities,
    velocity_weights,
)
from mmcl.schedule import RsqrtCooldown

PARITY = Path(__file__).parents[1] / "parity"
FITTED = {"E": 1.0, "A": 10.0, "B": 20.0, "C": 0.5, "alpha": 0.4, "beta": 0.3, "gamma": 0.7, "eta": 0.6}


def test_velocitune_parity() -> None:
    a = np.load(PARITY / "text" / "velocitune_f64.npz")
    weights: Any = a["weights_each"][0].tolist()
    for i, losses in enumerate(a["loss_current_each"]):
        found = velocities(losses.tolist(), torch.from_numpy(a["loss_init"]), torch.from_numpy(a["loss_target"]))
        np.testing.assert_allclose(found.numpy(), a["velocity_clipped_each"][i], rtol=1e-9, atol=1e-12)
        weights = velocity_weights(weights, losses.tolist(), a["loss_init"].tolist(), a["loss_target"].tolist())
        np.testing.assert_allclose(weights.numpy(), a["weights_each"][i + 1], rtol=1e-9, atol=1e-12)


def test_a_domain_at_its_target_from_the_start_has_nowhere_to_go() -> None:
    assert velocities([5.0, 1.0], [2.0, 2.0], [2.0, 3.0]).tolist() == [0.0, 0.0]
    found = velocity_weights([0.5, 0.5], [5.0, 2.0], [2.0, 2.0], [2.0, 1.0])
    assert found[1] > found[0] and found.isfinite().all()


@given(st.lists(st.tuples(st.floats(0, 9), st.floats(0, 9), st.floats(0, 9)), min_size=1, max_size=5))
def test_weights_sum_to_one(rows: list[tuple[float, float, float]]) -> None:
    losses, initial, targets = (list(x) for x in zip(*rows, strict=True))
    found = velocity_weights([1 / len(rows)] * len(rows), losses, initial, targets)
    assert math.isclose(float(found.sum()), 1.0) and bool((found > 0).all())


def test_dcpt_law_is_its_formula() -> None:
    for n, d, r, eps in ((1e8, 1e9, 0.3, 0.0), (5e8, 1e10, 1.0, 0.02), (1e8, 1e9, 0.0, 0.1)):
        expected = 1.0 + 10.0 / n**0.4 + 20.0 * r**0.6 / d**0.3 + 0.5 / (r + eps) ** 0.7
        assert math.isclose(dcpt_law(n, d, r, **FITTED, epsilon=eps), expected, rel_tol=1e-12)
        across = dcpt_law(n, d, r, **FITTED, epsilon=eps, F=0.7, K=2.5, mu=0.4)
        assert math.isclose(across, expected + 0.7 / 2.5**0.4, rel_tol=1e-12)
    losses = [dcpt_law(1e8, 1e10, r / 10, **FITTED) for r in range(1, 11)]
    assert losses == sorted(losses, reverse=True)  # more of a corpus, less loss on it


def test_cmr_law_stays_a_share() -> None:
    assert math.isclose(cmr_law(20.0, b0=0.5, b1=-0.9, s=-0.3), 0.5 - 0.9 * 20**-0.3)
    assert cmr_law(1e-9, b0=0.5, b1=-0.9, s=-0.3) == 0.0 and cmr_law(1e9, b0=0.5, b1=0.9, s=0.3) == 1.0


def test_schedules_of_fomo_parity() -> None:
    (case,) = json.loads((PARITY / "metrics" / "fomo_lr_meta_schedules.json").read_text())["cases"]
    given, expected = case["inputs"], case["expected"]
    steps, floor = given["S"], given["min_factor"]
    warmup, cooldown = math.ceil(given["warmup"] * steps), math.ceil(given["cooldown"] * steps)

    def peak(kind: str, task: int) -> float:
        return meta_peak(kind, task, steps, warmup, cooldown, floor)

    def dynamic(step: int, task: int) -> float:
        top = peak("cosine", task)
        if step < warmup:
            return top * (step + 1) / warmup
        return cosine_between(task * steps + step, (task + 1) * steps, (task + 1) * warmup, floor)

    def rsqrt(step: int, peak: float) -> float:
        return rsqrt_cooldown(step, steps, warmup, cooldown, floor, peak)

    schedules = {
        "cosine_independent": lambda s, t: cosine_between(s, steps, warmup, floor),
        "cosine_meta_autoregressive": lambda s, t: cosine_between(s, steps, warmup, floor, peak("cosine", t)),
        "cosine_meta_dynamic": dynamic,
        "rsqrt_independent": lambda s, t: rsqrt(s, 1.0),
        "rsqrt_meta_autoregressive": lambda s, t: rsqrt(s, peak("rsqrt", t)),
        "rsqrt_meta_continued": lambda s, t: rsqrt(s, peak("rsqrt_continued", t)),
    }
    assert schedules.keys() == expected.keys()
    for name, schedule in schedules.items():
        for task in given["tasks"]:
            found = [schedule(step, task) for step in given["steps"]]
            np.testing.assert_allclose(found, expected[name][f"task={task}"], rtol=0, atol=1e-9, err_msg=name)
    whole = RsqrtCooldown(floor=floor)
    found = [whole(step, steps) for step in given["steps"]]
    np.testing.assert_allclose(found, expected["rsqrt_independent"]["task=0"], rtol=0, atol=1e-9)


@given(st.integers(1, 60), st.floats(0, 1), st.floats(0, 1))
def test_rsqrt_stays_within_bounds(steps: int, warmup: float, cooldown: float) -> None:
    schedule = RsqrtCooldown(min(warmup, 0.99), min(cooldown, 0.99), floor=0.0)
    assert all(0 <= schedule(step, steps) <= 1 for step in range(steps))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: velocities([1.0], [1.0, 2.0], [1.0]), "1 losses, 2 initial, 1 targets"),
        (lambda: velocity_weights([-1.0], [1.0], [1.0], [0.0]), "must be 0 or more"),
        (lambda: dcpt_law(0, 1e9, 0.5, **FITTED), "0 parameters"),
        (lambda: dcpt_law(1e8, 1e9, 0.0, **FITTED), "share 0.0"),
        (lambda: dcpt_law(1e8, 1e9, 0.5, **FITTED, K=0.0), "K 0.0"),
        (lambda: cmr_law(0.0, b0=0.1, b1=0.1, s=0.1), "0.0 tokens"),
        (lambda: rsqrt_cooldown(0, 10, 2, 11), "cool-down of 11"),
        (lambda: meta_peak("linear", 1, 10, 2), "kind 'linear'"),
        (lambda: RsqrtCooldown(-1), "RsqrtCooldown: warmup -1"),
    ],
)
def test_errors(call: Any, words: str) -> None:
    with pytest.raises((MmclError, ConfigError), match=words):
        call()
