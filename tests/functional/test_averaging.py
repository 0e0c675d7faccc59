"""Averages of weights: parity arrays, properties, precision, tied and whole-number tensors, errors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mmcl.errors import MmclError
from mmcl.functional import ema, fisher_interpolate, interpolate, running_average

PARITY = Path(__file__).parents[1] / "parity"
NUMBERS = st.floats(-1e3, 1e3, allow_nan=False, width=64)


def arrays(name: str) -> dict[str, Tensor]:
    with np.load(PARITY / name) as data:
        return {key: torch.from_numpy(data[key].copy()) for key in data.files}


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


def test_weight_ensemble_parity() -> None:
    a = arrays("we/merge_we_f64.npz")
    average = {"weight": a["init_weight"].clone(), "bias": a["init_bias"].clone()}
    for n in range(6):
        new = {"weight": a["sample_weights"][n], "bias": a["sample_biases"][n]}
        assert running_average(average, new, count=n + 1) is average
        close(average["weight"], a["we_weight_after_each"][n])
        close(average["bias"], a["we_bias_after_each"][n])


def test_moving_average_quirk_is_interpolation_with_swapped_roles() -> None:
    a = arrays("we/moving_avg_f64.npz")
    model = {"w": a["model_weight_before"].clone()}
    interpolate(model, {"w": a["avg_model_weight"]}, alpha=1 - float(a["alpha"]))
    close(model["w"], a["model_weight_after"])


def test_wise_parity() -> None:
    a = arrays("wise/wise_ft_f64.npz")
    for k, alpha in enumerate(a["alphas"].tolist()):
        merged = interpolate(
            {name: a[f"theta0.{name}"].clone() for name in "wb"},
            {name: a[f"theta1.{name}"] for name in "wb"},
            alpha=alpha,
        )
        for name in "wb":
            close(merged[name], a[f"plain.{name}"][k])


def test_fisher_weighted_wise_parity() -> None:
    a = arrays("wise/wise_ft_f64.npz")
    fishers = [{"w": a[f"fisher{i}.w"]} for i in (0, 1)]
    for k, alpha in enumerate(a["alphas"].tolist()):
        start = {name: a[f"theta0.{name}"].clone() for name in "wb"}
        end = {name: a[f"theta1.{name}"] for name in "wb"}
        assert fisher_interpolate(start, end, *fishers, alpha=alpha, floor=float(a["fisher_floor"])) is start
        for name in "wb":
            close(start[name], a[f"fisher_weighted.{name}"][k])


def test_fisher_weighted_interpolation_of_tied_narrow_and_whole_numbers() -> None:
    shared = torch.zeros(2, dtype=torch.bfloat16)
    start = {"a": shared, "b": shared, "n": torch.tensor(1)}
    end = {"a": torch.ones(2), "b": torch.ones(2), "n": torch.tensor(2)}
    fisher = {name: torch.tensor([1.0, 0.0]) for name in "ab"}
    fisher_interpolate(start, end, fisher, fisher, alpha=0.25)
    assert shared.tolist() == [0.25, 0.25] and start["n"] == 2


@pytest.mark.parametrize("decay", ["0.9", "0.999", "0.9998"])
@pytest.mark.parametrize("every", [1, 5])
def test_ema_parity(decay: str, every: int) -> None:
    a = arrays("mwi/ema_f64.npz")
    slow = {"w": a["fast_init"].clone()}
    for step, fast in enumerate(a["fast_after_each_step"], 1):
        if step % every == 0:
            ema(slow, {"w": fast}, decay=float(decay))
        close(slow["w"], a[f"slow_tau{decay}_every{every}"][step - 1])


@given(st.lists(st.lists(NUMBERS, min_size=3, max_size=3), min_size=1, max_size=8))
def test_running_average_is_the_plain_mean(samples: list[list[float]]) -> None:
    values = torch.tensor(samples, dtype=torch.float64)
    average = {"w": torch.full((3,), torch.pi, dtype=torch.float64)}
    for count, value in enumerate(values):
        running_average(average, {"w": value}, count=count)
    torch.testing.assert_close(average["w"], values.mean(0), rtol=1e-9, atol=1e-9)


@given(st.lists(NUMBERS, min_size=1, max_size=5), st.lists(NUMBERS, min_size=1, max_size=5))
def test_interpolation_is_exact_at_its_ends(left: list[float], right: list[float]) -> None:
    size = min(len(left), len(right))
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        start, end = (torch.tensor(values[:size], dtype=dtype) for values in (left, right))
        assert torch.equal(interpolate({"w": start.clone()}, {"w": end}, alpha=0.0)["w"], start)
        assert torch.equal(interpolate({"w": start.clone()}, {"w": end}, alpha=1.0)["w"], end)


@given(NUMBERS, NUMBERS, st.floats(0, 1))
def test_ema_and_interpolation_agree(first: float, second: float, decay: float) -> None:
    def make(value: float) -> dict[str, Tensor]:
        return {"w": torch.tensor([value], dtype=torch.float64)}

    torch.testing.assert_close(
        ema(make(first), make(second), decay=decay)["w"],
        interpolate(make(first), make(second), alpha=1 - decay)["w"],
        rtol=0,
        atol=0,
    )


def test_a_float32_average_moves_under_bfloat16_training() -> None:
    slow = {"w": torch.ones(1)}
    for _ in range(100):
        ema(slow, {"w": torch.tensor([2.0], dtype=torch.bfloat16)}, decay=0.999)
    assert slow["w"].dtype == torch.float32
    assert slow["w"].item() == pytest.approx(2 - 0.999**100, rel=1e-5)


def test_interpolation_of_bfloat16_rounds_once() -> None:
    start, end = torch.randn(50).bfloat16(), torch.randn(50).bfloat16()
    expected = (start.double() * 0.7 + end.double() * 0.3).float().bfloat16()
    result = interpolate({"w": start}, {"w": end}, alpha=0.3)["w"]
    assert result is start
    torch.testing.assert_close(result, expected, rtol=1e-2, atol=1e-6)
    assert (result == expected).float().mean() > 0.95


def test_whole_numbers_are_copied() -> None:
    old, new = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    new.num_batches_tracked.fill_(7)
    new.running_mean.fill_(4.0)
    state = dict(old.state_dict())
    running_average(state, new.state_dict(), count=1)
    assert old.num_batches_tracked.item() == 7 and old.running_mean.tolist() == [2.0, 2.0]
    untouched = interpolate({"n": torch.tensor(1)}, {"n": torch.tensor(2)}, alpha=0.0)
    assert untouched["n"].item() == 1


def test_tied_weights_are_averaged_once() -> None:
    shared = torch.zeros(3)
    interpolate({"a": shared, "b": shared}, {"a": torch.ones(3), "b": torch.ones(3)}, alpha=0.5)
    assert shared.tolist() == [0.5, 0.5, 0.5]


def test_parameters_of_a_module_are_written_in_place() -> None:
    layer = nn.Linear(2, 2)
    weight = layer.weight
    interpolate(
        dict(layer.named_parameters()), {k: torch.zeros_like(v) for k, v in layer.state_dict().items()}, alpha=1
    )
    assert layer.weight is weight and weight.requires_grad and not weight.any()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ema({"w": torch.zeros(2)}, {}, decay=0.5), "'w' is missing in the second"),
        (lambda: ema({}, {"w": torch.zeros(2)}, decay=0.5), "'w' is missing in the first"),
        (lambda: running_average({"w": torch.zeros(2)}, {"w": torch.zeros(3)}, count=1), r"'w' has shape \(2,\)"),
        (lambda: running_average({"w": torch.zeros(2)}, {"w": torch.zeros(2)}, count=-1), "count"),
        (lambda: ema({"w": torch.zeros(2)}, {"w": torch.zeros(2)}, decay=1.5), "decay"),
        (lambda: interpolate({"w": torch.zeros(2)}, {"w": torch.zeros(2)}, alpha=float("nan")), "alpha"),
        (lambda: fisher_interpolate({}, {}, {"w": torch.zeros(2)}, {"w": torch.zeros(2)}, alpha=0.5), "'w' is missing"),
        (lambda: fisher_interpolate({}, {}, {}, {}, alpha=0.5, floor=0.0), "floor above 0"),
        (lambda: ema({"w": torch.zeros(2).half()}, {"w": torch.zeros(2)}, decay=0.5), "keep averages in float32"),
    ],
)
def test_errors(call, words: str) -> None:
    with pytest.raises(MmclError, match=words):
        call()


def test_nothing_is_written_before_an_error() -> None:
    average = {"n": torch.tensor(1), "w": torch.zeros(2).bfloat16()}
    with pytest.raises(MmclError):
        ema(average, {"n": torch.tensor(5), "w": torch.ones(2)}, decay=0.5)
    assert average["n"].item() == 1
