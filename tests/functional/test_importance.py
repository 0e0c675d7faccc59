"""Fisher information, path integrals and their consolidation against the parity arrays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmcl.errors import MmclError
from mmcl.functional import (
    approximate_path,
    consolidate_importance,
    ewc_gradients,
    ewc_penalty,
    fisher_diagonal,
    path_integral,
    squared_output_norm,
    synaptic_importance,
)

PARITY = Path(__file__).parents[1] / "parity"


@pytest.fixture(scope="module")
def arrays() -> dict[str, Tensor]:
    with np.load(PARITY / "ewc" / "ewc_f64.npz") as data:
        return {key: torch.from_numpy(data[key].copy()) for key in data.files}


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def per_sample(a: dict[str, Tensor], labels: Tensor) -> Iterator[dict[str, Tensor]]:
    """Gradients of the cross-entropy of each sample with the given labels, by autograd."""
    for x, y in zip(a["X"], labels, strict=True):
        weight, bias = (a[name].clone().requires_grad_() for name in "Wb")
        loss = F.cross_entropy((x @ weight.T + bias)[None], y[None])
        yield dict(zip(("weight", "bias"), torch.autograd.grad(loss, (weight, bias)), strict=True))


def logits(a: dict[str, Tensor]) -> Tensor:
    return a["X"] @ a["W"].T + a["b"]


def test_empirical_and_predicted_fisher(arrays: dict[str, Tensor]) -> None:
    for labels, name in ((arrays["Y"], "empirical"), (logits(arrays).argmax(1), "pred")):
        found = fisher_diagonal(per_sample(arrays, labels))
        for part, value in found.items():
            close(value, arrays[f"fisher_{name}_per_sample.{part}"])


def test_expected_fisher(arrays: dict[str, Tensor]) -> None:
    chances = logits(arrays).softmax(1)
    gradients = [g for y in range(4) for g in per_sample(arrays, torch.full((12,), y))]
    found = fisher_diagonal(gradients, weights=chances.T.flatten())
    for part, value in found.items():
        close(value, arrays[f"fisher_true.{part}"])


def test_squared_gradients_of_batches(arrays: dict[str, Tensor]) -> None:
    size = int(arrays["batch_size"])
    singles = list(per_sample(arrays, arrays["Y"]))
    batches = [
        {name: torch.stack([g[name] for g in singles[i : i + size]]).mean(0) for name in singles[0]}
        for i in range(0, 12, size)
    ]
    for found in (fisher_diagonal(singles, batch_size=size), fisher_diagonal(batches)):
        for part, value in found.items():
            close(value, arrays[f"fisher_batch_mean_grad.{part}"])


def test_gradients_that_are_not_zeroed_are_no_fisher_information(arrays: dict[str, Tensor]) -> None:
    """MagMax's function: predicted labels, batch j squares the sum of the first j gradients, divided by 16 of 12."""
    singles = list(per_sample(arrays, logits(arrays).argmax(1)))
    size, total, running = int(arrays["batch_size"]), torch.zeros(4, 5, dtype=torch.float64), 0.0
    for i in range(0, 12, size):
        running = running + torch.stack([g["weight"] for g in singles[i : i + size]]).mean(0)
        total += size * running**2
    recorded = arrays["fisher_magmax_official.weight"]
    close(total / ((12 // size + 1) * size), recorded)
    for batch_size in (1, size):
        ours = fisher_diagonal(singles, batch_size=batch_size)["weight"]
        assert not torch.allclose(ours, recorded, rtol=0.05)


def test_a_last_batch_may_be_smaller_and_types_widen() -> None:
    gradients = [{"w": torch.tensor([x], dtype=torch.bfloat16)} for x in (1.0, 3.0, 5.0)]
    found = fisher_diagonal(gradients, batch_size=2)["w"]
    assert found.dtype == torch.float32 and found.item() == (2.0**2 + 5.0**2) / 2


@pytest.mark.parametrize(
    ("rule", "gamma", "name"),
    [
        ("online", 1.0, "online_gamma1.0"),
        ("online", 0.9, "online_gamma0.9"),
        ("halves", 1.0, "half_half_from_zero"),
        ("mean", 1.0, "running_mean"),
    ],
)
def test_consolidation(arrays: dict[str, Tensor], rule: str, gamma: float, name: str) -> None:
    held: dict[str, Tensor] = {}
    for t, fisher in enumerate(arrays["task_fishers"]):
        held = consolidate_importance(held, {"w": fisher}, rule=rule, gamma=gamma, count=t)  # type: ignore[arg-type]
        close(held["w"], arrays[name][t])


def test_consolidation_of_what_has_grown_or_is_frozen() -> None:
    old = {"head": torch.ones(1, 2), "kept": torch.ones(3)}
    found = consolidate_importance(old, {"head": torch.ones(3, 2), "new": torch.ones(1)}, gamma=0.5)
    assert found["head"].tolist() == [[1.5, 1.5], [1, 1], [1, 1]]
    assert found["kept"].tolist() == [0.5] * 3 and found["new"].tolist() == [1]
    assert old["head"].tolist() == [[1, 1]]


def test_penalty_by_hand_is_that_of_autograd(arrays: dict[str, Tensor]) -> None:
    params = {name: arrays[f"theta.{name}"].clone().requires_grad_() for name in ("weight", "bias")}
    fisher = {name: arrays[f"fisher_empirical_per_sample.{name}"] for name in params}
    anchor = {"weight": arrays["W"], "bias": arrays["b"]}
    found = list(ewc_gradients(params, anchor, fisher))
    close(torch.stack([part for _, part, _ in found]).sum(), arrays["penalty_half_sum"])
    ewc_penalty(params, anchor, fisher).backward()
    for name, _, gradient in found:
        close(gradient, arrays[f"penalty_grad.{name}"])
        close(gradient, params[name].grad)


def test_synaptic_intelligence_over_a_run_of_plain_sgd(arrays: dict[str, Tensor]) -> None:
    """The formulas of Zenke et al. along six full steps; under plain SGD the shortcut equals the path."""
    weight, start, lr = arrays["W"].clone(), arrays["W"].clone(), 0.1
    path: dict[str, Tensor] = {}
    short: dict[str, Tensor] = {}
    losses = []
    for _ in range(6):
        live = weight.clone().requires_grad_()
        loss = F.cross_entropy(arrays["X"] @ live.T, arrays["Y"])
        (gradient,) = torch.autograd.grad(loss, live)
        losses.append(loss.item())
        path_integral(path, {"w": gradient}, {"w": -lr * gradient})
        approximate_path(short, {"w": gradient}, lr=lr)
        weight = weight - lr * gradient
    close(path["w"], short["w"])
    end = F.cross_entropy(arrays["X"] @ weight.T, arrays["Y"]).item()
    assert path["w"].sum().item() == pytest.approx(losses[0] - end, rel=0.1)  # it tells where the loss went
    for damping in (0.1, 1.0):
        found = synaptic_importance(path, {"w": start}, {"w": weight}, damping=damping)["w"]
        close(found, path["w"] / ((weight - start) ** 2 + damping))


def test_a_way_that_raised_the_loss_is_not_important() -> None:
    path = path_integral({}, {"w": torch.tensor([1.0, 1.0])}, {"w": torch.tensor([0.5, -0.5])})
    assert path["w"].tolist() == [-0.5, 0.5]
    path_integral(path, {"w": torch.tensor([1.0, 1.0])}, {"w": torch.tensor([0.1, -0.1])})
    found = synaptic_importance(path, {"w": torch.zeros(2)}, {"w": torch.tensor([0.6, -0.6])}, damping=0.64)
    torch.testing.assert_close(found["w"], torch.tensor([0.0, 0.6]))


def test_output_norms_leave_out_padding_and_other_tasks_columns() -> None:
    frames = torch.tensor([[[3.0, 4.0], [1.0, 0.0]], [[2.0, 0.0], [9.0, 9.0]]])
    valid = torch.tensor([[True, True], [True, False]])
    assert squared_output_norm(frames, valid=valid).tolist() == [13.0, 4.0]
    assert squared_output_norm(frames, valid=torch.tensor([True, False])).tolist() == [13.0, 0.0]
    candidates = torch.tensor([[True, False], [False, True]])
    assert squared_output_norm(frames, candidates=candidates).tolist() == [5.0, 40.5]
    assert squared_output_norm(frames[:, 0], candidates=candidates).tolist() == [9.0, 0.0]
    assert squared_output_norm(frames[:, 0].half()).dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: fisher_diagonal([]), "no gradients"),
        (lambda: fisher_diagonal([{"w": torch.ones(1)}], batch_size=0), "batch_size"),
        (lambda: fisher_diagonal([{"w": torch.ones(1)}], batch_size=2, weights=[1.0]), "1 with weights"),
        (lambda: consolidate_importance({}, {}, rule="sum"), "rule 'sum' is unknown"),  # type: ignore[arg-type]
        (lambda: synaptic_importance({}, {}, {}, damping=0.0), "damping must be above 0"),
        (lambda: synaptic_importance({"w": torch.ones(1)}, {}, {}), "'w' is missing"),
    ],
)
def test_errors(call, words: str) -> None:
    with pytest.raises(MmclError, match=words):
        call()
