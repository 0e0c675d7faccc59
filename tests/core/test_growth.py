"""Weights from before a head grew: teachers keep their own number of rows, averages and anchors take the new ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from torch import nn

from mmcl import Budget, Stream, Task, weights
from mmcl.errors import RunError
from mmcl.outputs import Outputs
from mmcl.schedule import Constant
from mmcl.strategies import Distillation, LwF, MomentumInterpolation, WeightInterpolation
from mmcl.stream import EvalSet


def net(rows: int) -> nn.Sequential:
    torch.manual_seed(rows)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, rows))


def test_older_weights_in_todays_shapes() -> None:
    old, now = net(2), net(5)
    found = weights.grown(weights.read(now, copy=True), weights.read(old))
    assert torch.equal(found["1.weight"][:2], old[1].weight) and torch.equal(found["1.weight"][2:], now[1].weight[2:])
    assert torch.equal(found["0.weight"], old[0].weight)
    assert not torch.equal(now[1].weight[:2], old[1].weight)  # a copy


def test_a_teacher_gets_the_rows_of_its_weights() -> None:
    old, teacher = net(2), net(5)
    with pytest.raises(RunError):
        weights.write(teacher, weights.read(old))
    weights.resize(teacher, weights.read(old))
    weights.write(teacher, weights.read(old))
    x = torch.randn(6, 3)
    assert torch.equal(teacher(x), old(x))


class Growing(toy.ToyModule):
    """Two more outputs with every task; targets are repeated."""

    distillable = ("logits",)

    def grow(self, task: Task) -> None:
        old: Any = self.network[3]
        more = nn.Linear(8, old.out_features + 2)
        with torch.no_grad():
            more.weight[: old.out_features] = old.weight
            more.bias[: old.out_features] = old.bias
        self.network[3] = more

    def build_network(self) -> nn.Module:
        made = super().build_network()
        if hasattr(self, "network"):
            made[3] = nn.Linear(8, self.network[3].out_features)  # type: ignore[index]
        return made

    def compute(self, network: nn.Module, batch: dict[str, Any]) -> Outputs:
        outputs = super().compute(network, batch)
        assert outputs.logits is not None
        return outputs

    def loss(self, outputs: Outputs, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        assert outputs.logits is not None
        wanted = batch["labels"].repeat(1, outputs.logits.shape[1] // 2)
        return {"squared_error": (outputs.logits - wanted).square().mean()}


@pytest.mark.parametrize(
    "build",
    [
        lambda: [LwF(), MomentumInterpolation(0.9)],
        lambda: [Distillation("initial", None), WeightInterpolation(0.5)],
    ],
)
def test_strategies_serve_a_head_that_grows(tmp_path: Path, build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy, "ToyModule", Growing)
    kept = EvalSet("kept", toy.SOURCE, "toy.ErrorProbe")
    tasks = [Task(name, [toy.SOURCE], Budget(steps=4)) for name in ("first", "second")]
    monkeypatch.setattr(toy.ErrorProbe, "update", _leading)
    results = toy.runner(tmp_path, build(), stream=Stream("growing", tasks, [kept])).fit()
    assert results["run"]["status"] == "finished"
    assert toy.network(tmp_path)["3.weight"].shape == (6, 8)


def _leading(self: Any, batch: dict[str, Any], outputs: Outputs) -> None:
    assert outputs.logits is not None
    self.total += (outputs.logits[:, :2] - batch["labels"]).double().square().sum()
    self.count += len(batch["labels"])


def test_a_task_brings_its_own_schedule(tmp_path: Path) -> None:
    tasks = [
        Task("one", [toy.SOURCE], Budget(steps=6)),
        Task("two", [toy.SOURCE], Budget(steps=6), schedule=Constant()),
    ]
    toy.runner(tmp_path, stream=Stream("rates", tasks)).fit()
    steps = [line for line in toy.metrics(tmp_path) if line["kind"] == "step"]
    one, two = ([line["lr"] for line in steps if line["task"] == task] for task in ("one", "two"))
    assert len(set(one)) > 1 and set(two) == {1e-2}
    # Descriptions of tasks are compared and recorded: equal schedules look equal.
    assert Constant(0.1) == Constant(0.1) != Constant(0.2) and repr(Constant(0.1)) == "Constant(warmup=0.1)"
