"""A strategy that looks at a run's weights and can cut it, and comparisons of weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmcl import Strategy
from mmcl.outputs import Batch, Forward, Outputs
from mmcl.strategy import DataPass, StepContext
from mmcl.stream import Task
from mmcl.weights import canonical

FIRST_TASK = ("fit", 7)
"""Cut at the first forward of the second task of the cases' streams, where that says all."""


class Cut(BaseException):
    """Ends a run at once, as a killed process does."""


class Watch(Strategy):
    """Keeps the effective weights of moments of a run; may cut it at a forward of a stage."""

    writes = frozenset({"on_task_start"})  # stands first there, so that it sees the start

    def __init__(self, stage: str = "fit", count: int = 0) -> None:
        super().__init__()
        self.stage, self.count = stage, count
        self.seen: dict[str, dict[str, Tensor]] = {}
        self.trained: list[str] = []
        self.context: Any = None

    def wrap_forward(self, next: Forward, batch: Batch, context: StepContext) -> Outputs:
        if context.stage == "test" and not self.seen:
            self.seen["initial"] = self.weights(copy=True)
        if context.stage == self.stage:
            self.count -= 1
            if self.count == 0:
                raise Cut
        return next(batch)

    def on_step_end(self, context: StepContext) -> None:
        self.seen["last step"] = self.weights(copy=True)
        self.trained = [canonical(n) for n, p in self.module.network.named_parameters() if p.requires_grad]

    def on_task_end(self, task: Task, data: DataPass) -> None:
        self.seen[f"end {task.name}"] = self.weights(copy=True)


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[str]:
    """Names of weights whose common leading part differs, or that are new."""
    found = []
    for name, value in after.items():
        old = before.get(name)
        if old is None or not torch.equal(value[tuple(slice(0, size) for size in old.shape)], old):
            found.append(name)
    return found


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")
