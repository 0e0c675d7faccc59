"""A run small enough for a test of the walk: a two-layer network on vectors, the real runner and the real Trainer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from moments import cut_after
from torch import nn

from mmcl import Budget, EvalSet, Source, Strategy, Stream, Task
from mmcl import trainer as lightning
from mmcl.metrics.probes import Probe, ProbeResult
from mmcl.modules.base import Module
from mmcl.outputs import Objective, Outputs
from mmcl.runner import Runner, RunOptions
from mmcl.seeds import mix


class SquaredError(Objective):
    def terms(self, outputs: Outputs, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        return {"squared_error": (outputs.logits - batch["labels"]).square().mean()}


class ErrorProbe(Probe):
    metric, direction, protocol = "squared_error", "lower", "mean squared error"

    def start(self, encode: Any) -> None:
        self.total, self.count = torch.zeros((), dtype=torch.float64), 0

    def update(self, batch: dict[str, Any], outputs: Outputs) -> None:
        self.total += (outputs.logits - batch["labels"]).double().square().sum()
        self.count += len(batch["labels"])

    def compute(self, sum_over_ranks: Any, gather: Any) -> ProbeResult:
        return ProbeResult(float(sum_over_ranks(self.total)) / self.count, self.count)


class ToyModule(Module):
    provides, probes = frozenset({"logits"}), frozenset({"toy.ErrorProbe"})

    def __init__(self, lr: float = 1e-2) -> None:
        super().__init__(SquaredError(), lr=lr)
        self.network = self.build_network()

    def build_network(self) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.1), nn.BatchNorm1d(8), nn.Linear(8, 2))

    def compute(self, network: nn.Module, batch: dict[str, Any]) -> Outputs:
        return Outputs(logits=network(batch["image"]), targets=batch.get("labels"))

    def transform(self, sample: dict[str, Any], augment: bool) -> dict[str, Any]:
        return sample


@dataclass
class Plan:
    steps: int


class ToyData:
    """Vectors as a pure function of the task and the position, with the datamodule's interface."""

    batch_size = 8

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def bind(self, transform: Any, **place: Any) -> None:
        self.accumulate = place["accumulate"]

    def check(self) -> None: ...

    def count(self, source: Source) -> int:
        return 32

    def fields(self, source: Source) -> frozenset[str]:
        return frozenset({"image", "labels"})

    def plan(self, task: Task, extra: Sequence[Source]) -> Plan:
        return Plan(task.budget.resolve(8, 32, 8))

    def advance(self, positions: dict[str, int], plan: Plan, steps: int) -> dict[str, int]:
        return {"train": positions.get("train", 0) + steps * 8}

    def _batch(self, *place: Any, size: int = 8) -> dict[str, Any]:
        made = torch.randn(size, 4, generator=torch.Generator().manual_seed(mix(*place)))
        return {"image": made, "labels": made[:, :2] * 2, "valid": torch.ones(size, dtype=torch.bool)}

    def train_loader(self, task: Task, extra: Any, *, positions: Any, segment: int, first_step: int, steps: int) -> Any:
        begin, size = positions.get("train", 0), 8 // self.accumulate
        batches = [self._batch(task.name, begin + 8 * i) for i in range(first_step, steps)]
        cut = [{k: v[a * size : (a + 1) * size] for k, v in b.items()} for b in batches for a in range(self.accumulate)]
        return torch.utils.data.DataLoader(cut, batch_size=None)

    def eval_loader(self, source: Source, limit: int | None = None) -> list[dict[str, Any]]:
        return [self._batch("eval", i, size=limit or 16) for i in range(2)]

    def pass_loader(self, task: Task, **_: Any) -> list[dict[str, Any]]:
        return [self._batch(task.name, 8 * i) for i in range(4)]


PROBE = "toy.ErrorProbe"
SOURCE = Source(["unused.tar"])


def stream(segment: int | None = None) -> Stream:
    tasks = [
        Task("first", [SOURCE], Budget(steps=10), evaluates="own", segment=segment),
        Task("second", [SOURCE], Budget(samples=56)),
    ]
    return Stream("toy", tasks, [EvalSet("own", SOURCE, PROBE), EvalSet("kept", SOURCE, PROBE, subset=4)])


def runner(folder: Path, strategies: Sequence[Strategy] = (), **changes: Any) -> Runner:
    trainer = {"enable_progress_bar": False, "accelerator": "cpu", "log_every_n_steps": 2, **changes.pop("trainer", {})}
    torch.manual_seed(0)
    module = ToyModule(changes.pop("lr", 1e-2))
    options: dict[str, Any] = {"identity": {"lr": module.lr}, "save_every": 3, **changes}
    given = options.pop("stream", None) or stream()
    return Runner(ToyData(given), module, strategies, lightning.make(**trainer), RunOptions(run_dir=folder, **options))


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "time"} for line in lines]


def network(folder: Path, name: str = "last") -> dict[str, torch.Tensor]:
    content: dict[str, Any] = torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
    return content["network"]


class Killed(Exception):
    """Stands for the end of the process."""


def killed_at(folder: Path, step: int, strategies: list[Strategy], **changes: Any) -> None:
    """Run until a step happened, then leave as if the process had died: nothing is saved on the way out."""
    cut_after(runner(folder, strategies, **changes), step)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
