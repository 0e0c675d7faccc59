"""Strategies that end a run, or send its process a signal, at a chosen moment and change nothing else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from mmcl import StepContext, Strategy, Task, distributed
from mmcl.outputs import Batch, Forward, Outputs
from mmcl.runner import Runner
from mmcl.strategy import DataPass

Moment = tuple[Literal["fit", "end", "test"], int, int]
"""Where, in which task (from 0), and after how many steps of it or batches of the evaluation."""


class Cut(BaseException):
    """Ends a run at once, as a killed process does: nothing is saved."""


def cut_after(made: Runner, step: int) -> None:
    """Run until a step happened and was saved where that is due, then raise `Cut`."""
    inner = made.engine.after_step

    def after_step(engine: Any, batch: Batch) -> None:
        inner(engine, batch)
        if engine.step == step:
            raise Cut

    made.engine.after_step = after_step
    with pytest.raises(Cut):
        made.fit()


class CutAt(Strategy):
    """Raises `Cut` in a task's training, at the end of it or in the evaluation that follows.

    Args:
        moment: None never does; a run that goes on after a cut has the strategies that it had.
    """

    def __init__(self, moment: Moment | None = None) -> None:
        super().__init__()
        self.moment = moment
        self._batches = 0

    def wrap_forward(self, next: Forward, batch: Batch, context: StepContext) -> Outputs:
        if self.moment is not None and self.moment[0] == context.stage and self._in_task():
            self._batches += 1
            if self.moment[2] == (context.task_step if context.stage == "fit" else self._batches - 1):
                raise Cut
        return next(batch)

    def on_task_end(self, task: Task, data: DataPass) -> None:
        if self.moment is not None and self.moment[0] == "end" and self._in_task():
            raise Cut

    def _in_task(self) -> bool:
        return self.moment is not None and self.task is self.stream.tasks[self.moment[1]]


class Overflow(Strategy):
    """Lets the gradient of a task's `batch`-th batch overflow, so that a gradient scaler skips the step.

    Args:
        batch: which one of each task, from 0.
        cut: ends the run before the next batch of the second task.
    """

    def __init__(self, batch: int, cut: bool = False) -> None:
        super().__init__()
        self.batch, self.cut = batch, cut
        self._task: Task | None = None
        self._batches = 0

    def losses(self, context: StepContext) -> dict[str, Tensor]:
        if self._task is not context.task:
            self._task, self._batches = context.task, 0
        number, self._batches = self._batches, self._batches + 1
        if self.cut and number > self.batch and self.task is not self.stream.tasks[0]:
            raise Cut
        if number != self.batch:
            return {}
        weight = next(p for p in self.reach.parameters() if p.requires_grad).flatten()[0] * 1.0
        weight.register_hook(lambda gradient: gradient + torch.inf)
        return {"nothing": weight * 0.0}


class SignalAt(Strategy):
    """Signal at the `count`-th forward of a stage, unless the file `done` is there.

    Args:
        signum: the signal.
        stage: ``fit`` or ``test``.
        count: which forward of this process.
        done: made before the signal is sent; each process leaves its id beside it as ``rank-N``.
        rank: which process sends it.
    """

    def __init__(self, signum: int, stage: str, count: int, done: str, rank: int = 0) -> None:
        super().__init__()
        self.signum, self.stage, self.count, self.done, self.rank = signum, stage, count, done, rank
        self._seen = 0

    def wrap_forward(self, next: Forward, batch: Batch, context: StepContext) -> Outputs:
        done = Path(self.done)
        if context.stage == self.stage and not done.exists():
            self._seen += 1
            (done.parent / f"rank-{distributed.rank()}").write_text(str(os.getpid()))
            if self._seen == self.count and distributed.rank() == self.rank:
                done.touch()
                os.kill(os.getpid(), self.signum)
        return next(batch)
