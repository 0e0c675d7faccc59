"""Low-rank changes, thresholds and their schedule against the parity arrays, and the trajectory that they describe."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from mmcl.errors import MmclError
from mmcl.functional import (
    active_components,
    dora_weight,
    lowrank_delta,
    published_threshold,
    row_norm,
    soft_threshold,
    subspace_overlap,
    threshold_schedule,
    vera_delta,
)

PARITY = Path(__file__).parents[1] / "parity"
BETAS, EPS = (0.9, 0.9999), 1e-8


def arrays(name: str) -> dict[str, Tensor]:
    with np.load(PARITY / name) as data:
        return {key: torch.from_numpy(np.array(data[key])) for key in data.files}


def close(actual: Tensor | None, expected: Tensor) -> None:
    assert actual is not None
    torch.testing.assert_close(actual.detach(), expected, rtol=1e-9, atol=1e-12)


def leaves(given: dict[str, Tensor], *names: str) -> list[Tensor]:
    return [given[name].clone().requires_grad_() for name in names]


def test_gated_layer_parity() -> None:
    a = arrays("codyra/layer_f64.npz")
    x, down, up, gate = leaves(a, "x", "A", "B", "gate")
    y = F.linear(x, a["W"] + lowrank_delta(down, up, gate), a["b"])
    close(y, a["y"])
    (y * a["upstream"]).sum().backward()
    for name, leaf in (("x", x), ("A", down), ("B", up), ("gate", gate)):
        close(leaf.grad, a[f"grad_{name}"])


def test_merge_and_history_of_two_tasks() -> None:
    a = arrays("codyra/layer_f64.npz")
    weight, rows, columns = a["W"], [], []
    for task in ("", "_task2"):
        down, up, gate = (a[f"{name}{task}"] for name in ("A", "B", "gate"))
        if task:
            close(F.linear(a["x"], weight + lowrank_delta(down, up, gate), a["b"]), a["y_task2"])
        active = active_components(down, up, gate)
        rows.append(active[0])
        columns.append(active[1])
        weight = weight + lowrank_delta(down, up, gate)
        close(weight, a[f"W_after_merge{task}"])
        close(torch.cat(rows), a[f"old_lora_A{task}"])
        close(torch.cat(columns, 1), a[f"old_lora_B{task}"])
        assert sum(map(len, rows)) == int(a[f"old_rank{task}"])
        close(lowrank_delta(*active), lowrank_delta(down, up, gate))  # what was dropped changes nothing
    close(F.linear(a["x"], weight, a["b"]), a["y_after_merge_task2"])
    close(a["W"] + lowrank_delta(torch.cat(rows), torch.cat(columns, 1)), weight)


def test_threshold_parity() -> None:
    a = arrays("codyra/threshold_f64.npz")
    for i, kappa in enumerate(a["thresholds"].tolist()):
        close(soft_threshold(a["gate_before"], kappa), a["gate_after_paper_soft_threshold"][i])
        close(published_threshold(a["gate_before"], kappa), a["gate_after_official"][i])


def test_the_published_operator_loses_what_lies_between_one_and_two_thresholds() -> None:
    """It shrinks in place first and zeroes by the shrunk value afterwards; the paper's map is continuous."""
    a = arrays("codyra/threshold_f64.npz")
    before = a["gate_before"]
    for i, kappa in enumerate(a["thresholds"].tolist()):
        between = (before.abs() > kappa) & (before.abs() < 2 * kappa)
        assert bool((a["gate_after_official"][i][between] == 0).all())
        assert bool((a["gate_after_paper_soft_threshold"][i][between] != 0).all())
        elsewhere = ~between & (before.abs() != kappa)
        close(a["gate_after_official"][i][elsewhere], a["gate_after_paper_soft_threshold"][i][elsewhere])
    assert published_threshold(torch.tensor([0.5, -0.5]), 0.5).tolist() == [0.5, -0.5]
    assert soft_threshold(torch.tensor([0.5, -0.5]), 0.5).tolist() == [0, 0]


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=20), st.floats(0, 5))
def test_soft_threshold_is_the_proximal_operator(values: list[float], kappa: float) -> None:
    x = torch.tensor(values, dtype=torch.float64)
    found = soft_threshold(x, kappa)
    torch.testing.assert_close(found, F.softshrink(x, kappa), rtol=0, atol=1e-12)
    objective = lambda z: (z - x).square() / 2 + kappa * z.abs()  # noqa: E731
    for other in (x, torch.zeros_like(x), found + 0.01, found - 0.01):
        assert bool((objective(found) <= objective(other) + 1e-12).all())


def test_schedule_parity() -> None:
    cases = arrays("codyra/threshold_schedule.npz")
    names = [key.removeprefix("threshold_") for key in cases if key.startswith("threshold_")]
    assert len(names) == 5
    for name in names:
        total, dense, num, kmax = re.fullmatch(r"total(\d+)_dense(.+)_num(\d+)_kmax(.+)", name).groups()
        kappa, applied = threshold_schedule(int(total), float(dense), int(num), float(kmax))
        close(kappa, cases[f"threshold_{name}"])
        assert torch.equal(applied, cases[f"applied_{name}"])


@pytest.mark.parametrize("total", [0, 1, 2, 7])
def test_short_schedules(total: int) -> None:
    kappa, applied = threshold_schedule(total, 0.5, 50, 0.005)
    assert len(kappa) == len(applied) == total
    assert not kappa.any()  # too short for 50 notches


@pytest.mark.parametrize("operator", [soft_threshold, published_threshold])
def test_trajectory_of_one_layer(operator) -> None:
    """The loop of the fixture's README, against the same loop in NumPy with gradients and AdamW by hand."""
    random = np.random.default_rng(3)
    total, rate, kmax = 60, 5e-2, 0.05
    weight, bias = random.normal(size=(4, 5)), random.normal(size=4)
    inputs, labels = random.normal(size=(12, 5)), random.integers(0, 4, 12)
    given = {"A": random.normal(size=(6, 5)), "B": np.zeros((4, 6)), "g": random.normal(size=(1, 6))}
    kappa, applied = threshold_schedule(total, 0.5, 10, kmax)

    expected = {name: value.copy() for name, value in given.items()}
    moments = {name: (np.zeros_like(v), np.zeros_like(v)) for name, v in given.items()}
    lambdas, index, dense = np.linspace(0, kmax, 10), 0, 0.5 * total
    for i in range(total):
        if i >= dense and i % int((total - dense) // 10) == 0:
            index = min(index + 1, 9)
        low = inputs @ expected["A"].T
        logits = inputs @ weight.T + bias + (low * expected["g"]) @ expected["B"].T
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        p[np.arange(12), labels] -= 1
        back = p / 12
        grads = {
            "A": ((back @ expected["B"]) * expected["g"]).T @ inputs,
            "B": back.T @ (low * expected["g"]),
            "g": ((back @ expected["B"]) * low).sum(0, keepdims=True),
        }
        lr = rate / 2 * (1 + math.cos(math.pi * i / total))
        for name, gradient in grads.items():
            first, second = moments[name]
            first += (1 - BETAS[0]) * (gradient - first)
            second += (1 - BETAS[1]) * (gradient**2 - second)
            corrected = np.sqrt(second / (1 - BETAS[1] ** (i + 1))) + EPS
            expected[name] -= lr * (first / (1 - BETAS[0] ** (i + 1))) / corrected
        if i > dense:
            g, k = expected["g"], lambdas[index]
            if operator is soft_threshold:
                expected["g"] = np.where(np.abs(g) > k, g - np.sign(g) * k, 0)
            else:
                up, down = g > k, g < -k
                g[up] -= k
                g[down] += k
                g[np.abs(g) < k] = 0

    own = {name: torch.from_numpy(value.copy()).requires_grad_() for name, value in given.items()}
    optimizer = torch.optim.AdamW(list(own.values()), lr=rate, betas=BETAS, eps=EPS, weight_decay=0)
    x, w, b, y = (torch.from_numpy(v) for v in (inputs, weight, bias, labels))
    for i in range(total):
        optimizer.param_groups[0]["lr"] = rate / 2 * (1 + math.cos(math.pi * i / total))
        optimizer.zero_grad()
        F.cross_entropy(F.linear(x, w + lowrank_delta(own["A"], own["B"], own["g"]), b), y).backward()
        optimizer.step()
        if applied[i]:
            with torch.no_grad():
                own["g"].copy_(operator(own["g"], float(kappa[i])))
    for name, value in own.items():
        torch.testing.assert_close(value.detach(), torch.from_numpy(expected[name]), rtol=1e-8, atol=1e-11)
    assert 0 < int((own["g"] == 0).sum()) < 6  # some are pruned and some are left


@pytest.mark.parametrize("method", ["lora", "dora", "vera"])
def test_fomo_layers_parity(method: str) -> None:
    a = arrays(f"peft/{method}_scale1_f64.npz")
    scale = float(a["scale"])
    names = {"lora": ["lora_A", "lora_B"], "dora": ["lora_A", "lora_B", "magnitude"], "vera": ["vera_d", "vera_b"]}
    x, *trained = leaves(a, "x", *names[method])
    if method == "lora":
        weight = a["W"] + lowrank_delta(*trained, scale=scale)
    elif method == "dora":
        weight = dora_weight(a["W"], *trained, scale=scale)
    else:
        weight = a["W"] + vera_delta(a["frozen_A"], a["frozen_B"], *trained, scale=scale)
    y = F.linear(x, weight, a["b"])
    close(y, a["y"])
    (y * a["upstream"]).sum().backward()
    close(x.grad, a["grad_x"])
    for name, leaf in zip(names[method], trained, strict=True):
        close(leaf.grad, a[f"grad_{name}"])


def test_dora_is_the_weight_itself_at_first() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        weight = torch.randn(7, 5).to(dtype)
        weight[2] = 0
        down, up = torch.randn(3, 5).to(dtype), torch.zeros(7, 3, dtype=dtype)
        assert torch.equal(dora_weight(weight, down, up, row_norm(weight)).to(dtype), weight)


def test_scale_and_wide_types() -> None:
    down, up, gate = torch.randn(2, 5), torch.randn(4, 2), torch.randn(2)
    full = lowrank_delta(down, up, gate)
    torch.testing.assert_close(lowrank_delta(down, up, gate, scale=2.5), 2.5 * full)
    torch.testing.assert_close(lowrank_delta(down, up, torch.ones(1, 2)), lowrank_delta(down, up))
    with torch.autocast("cpu", torch.bfloat16):
        for product in (lowrank_delta(down, up, gate), lowrank_delta(down.bfloat16(), up.bfloat16(), gate)):
            assert product.dtype == torch.float32
        assert torch.equal(lowrank_delta(down, up, gate), full)  # a merge under autocast loses nothing


def test_overlap_is_zero_for_orthogonal_rows_and_has_o_lora_s_gradient() -> None:
    rows = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    close(subspace_overlap(rows[:2], rows[2:]), torch.tensor(0.0, dtype=torch.float64))
    down, earlier = torch.randn(2, 6, dtype=torch.float64, requires_grad=True), torch.randn(5, 6, dtype=torch.float64)
    subspace_overlap(down, earlier).backward()
    close(down.grad, (earlier @ down.detach().T).sign().T @ earlier)
    parts = [subspace_overlap(down, part) for part in earlier.split(2)]
    close(sum(parts), subspace_overlap(down, earlier).detach())  # a sum over tasks


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: lowrank_delta(torch.zeros(2, 5), torch.zeros(4, 3)), "the ranks differ"),
        (lambda: lowrank_delta(torch.zeros(2, 5), torch.zeros(4, 2), torch.zeros(3)), "3 gates"),
        (lambda: vera_delta(torch.zeros(2, 5), torch.zeros(4, 2), torch.zeros(3), torch.zeros(4)), "3 gates"),
        (lambda: soft_threshold(torch.zeros(2), -1.0), "the threshold is -1.0"),
        (lambda: published_threshold(torch.zeros(2), float("nan")), "the threshold is nan"),
        (lambda: threshold_schedule(5, 1.5, 50, 0.1), "dense_fraction is 1.5"),
        (lambda: threshold_schedule(5, 0.5, 0, 0.1), "0 thresholds"),
    ],
)
def test_errors(call, words: str) -> None:
    with pytest.raises(MmclError, match=words):
        call()
