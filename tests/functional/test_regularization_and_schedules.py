"""Weight penalties and learning-rate multipliers against the parity arrays."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mmcl.errors import ConfigError, MmclError
from mmcl.functional import constant, ewc_penalty, infinite, l2_gradients, l2_penalty, rewarm, warmup_cosine
from mmcl.schedule import Infinite, Rewarm

PARITY = Path(__file__).parents[1] / "parity"


def arrays(name: str) -> dict[str, Tensor]:
    with np.load(PARITY / name) as data:
        return {key: torch.from_numpy(data[key].copy()) for key in data.files}


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual.detach(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_l2_gradients_are_those_of_autograd(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    params = {name: torch.randn(4, 3, dtype=dtype, requires_grad=True) for name in "ab"}
    anchor = {name: torch.randn(4, 3, dtype=dtype) for name in "ab"}
    penalty = l2_penalty(params, anchor)
    expected = dict(zip(params, torch.autograd.grad(penalty, list(params.values())), strict=True))
    found = list(l2_gradients(params, anchor))
    assert all(torch.equal(gradient, expected[name]) and not gradient.requires_grad for name, _, gradient in found)
    assert torch.equal(torch.stack([part for _, part, _ in found]).sum(), penalty)


def test_l2_parity() -> None:
    a = arrays("zscl/l2_weight_consolidation.npz")
    names = [key.removeprefix("theta.") for key in a if key.startswith("theta.")]
    params = {name: a[f"theta.{name}"].clone().requires_grad_() for name in names}
    loss = l2_penalty(params, {name: a[f"theta0.{name}"] for name in names})
    loss.backward()
    close(loss, a["loss"])
    for name in names:
        close(params[name].grad, a[f"grad.{name}"])


def test_ewc_parity() -> None:
    a = arrays("ewc/ewc_f64.npz")
    params = {name: a[f"theta.{name}"].clone().requires_grad_() for name in ("weight", "bias")}
    fisher = {name: a[f"fisher_empirical_per_sample.{name}"] for name in params}
    loss = ewc_penalty(params, {"weight": a["W"], "bias": a["b"]}, fisher)
    loss.backward()
    close(loss, a["penalty_half_sum"])
    for name, param in params.items():
        close(param.grad, a[f"penalty_grad.{name}"])


def test_cosine_parity() -> None:
    cases = arrays("zscl/cosine_lr.npz")
    assert len(cases) == 4
    for name, expected in cases.items():
        base, warmup, steps = re.fullmatch(r"lr_base(.+)_warm(\d+)_steps(\d+)", name).groups()
        rates = [float(base) * warmup_cosine(i, int(steps), int(warmup)) for i in range(int(steps) + 1)]
        torch.testing.assert_close(torch.tensor(rates, dtype=torch.float64), expected, rtol=1e-9, atol=1e-18)


@given(st.integers(1, 200), st.integers(0, 200), st.integers(0, 400))
def test_multipliers_stay_within_bounds(total: int, warmup: int, step: int) -> None:
    warmup = min(warmup, total)
    for schedule in (warmup_cosine, constant):
        value = schedule(step, total, warmup)
        assert 0.0 <= value <= 1.0
        if step < min(warmup, total - 1):
            assert value < 1.0 or step == warmup - 1
    assert step < total or warmup_cosine(step, total, warmup) == 0.0


def test_penalty_is_zero_at_the_anchor_and_wide() -> None:
    params = {"w": torch.full((4,), 300.0, dtype=torch.float16)}
    assert l2_penalty(params, params).item() == 0.0
    far = l2_penalty(params, {"w": torch.zeros(4, dtype=torch.float16)})
    assert far.dtype == torch.float32 and far.item() == 4 * 300.0**2


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: l2_penalty({"w": torch.zeros(2)}, {}), "'w' is missing"),
        (lambda: l2_penalty({}, {}), "no weights"),
        (lambda: ewc_penalty({"w": torch.zeros(2)}, {"w": torch.zeros(2)}, {"w": torch.zeros(3)}), r"\(3,\)"),
        (lambda: warmup_cosine(-1, 10), "step -1"),
        (lambda: warmup_cosine(0, 10, 11), "warm-up must fit"),
        (lambda: constant(0, 0), "total_steps 0"),
    ],
)
def test_errors(call, words: str) -> None:
    with pytest.raises(MmclError, match=words):
        call()


def test_rewarm_and_infinite_parity() -> None:
    cases = arrays("text/lr_schedules_f64.npz")
    assert len(cases) == 4
    for name, expected in cases.items():
        total, warmup, *more = (int(n) for n in re.findall(r"_[Twca](\d+)", f"_{name}"))
        rates = [float(x) for x in re.findall(r"(?:max|const|min)([\d.e-]+?)(?=_|$)", name)]
        if name.startswith("rewarm"):
            found = [rates[0] * rewarm(t, total, warmup, rates[1] / rates[0]) for t in range(total + 1)]
        else:
            level, floor = rates[1] / rates[0], rates[2] / rates[0]
            found = [rates[0] * infinite(t, total, warmup, *more, level, floor) for t in range(total + 1)]
        torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), expected, rtol=1e-9, atol=1e-18)


def test_infinite_says_what_does_not_fit() -> None:
    for phases in ((5, 4, 2), (-1, 4, 2)):
        with pytest.raises(MmclError):
            infinite(0, 10, *phases, 0.5, 0.1)
    with pytest.raises(MmclError, match=r"floor 0\.6 and level 0\.5"):
        infinite(0, 10, 1, 1, 1, 0.5, 0.6)
    assert [infinite(t, 4, 0, 0, 0, 0.5, 0.1) for t in range(5)] == [0.5] * 5


def test_schedules_of_a_stream() -> None:
    first, later = Infinite(warmup=2, cooldown=0.5, level=0.5), Infinite(warmup=0, cooldown=0, anneal=0.3, level=0.5)
    rates = [first(step, 10) for step in range(10)]
    assert rates[:2] == [0.5, 1.0] and rates[6:] == [0.5] * 4 and rates[2:7] == sorted(rates[2:7], reverse=True)
    assert [later(step, 10) for step in range(7)] == [0.5] * 7 and later(9, 10) == pytest.approx(0.1)
    again = Rewarm(warmup=0.2, floor=0.1)
    assert [again(step, 10) for step in (0, 1)] == [0.5, 1.0] and again(9, 10) == pytest.approx(0.1)
    assert all(0 < schedule(step, 1) <= 1 for schedule in (first, later, again) for step in range(1))
    for wrong in ({"warmup": 0.7, "cooldown": 0.6}, {"anneal": -1}, {"floor": 0.9}, {"level": 1.5}):
        with pytest.raises(ConfigError, match="Infinite"):
            Infinite(**wrong)
    with pytest.raises(ConfigError, match="Rewarm"):
        Rewarm(floor=2)
