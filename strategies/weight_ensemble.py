"""Running mean of the weights along a task."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext

import torch

from mmcl.errors import ConfigError
from mmcl.functional.averaging import interpolate, running_average
from mmcl.outputs import Weights
from mmcl.strategy import DataPass, StepContext, Strategy
from mmcl.stream import Task

logger = logging.getLogger("mmcl")


class WeightEnsemble(Strategy):
    """Evaluate and carry on the mean of the weights along a task (ZSCL; Zheng et al., ICCV 2023, section 4.2).

    W_k = (k W_{k-1} + theta) / (k + 1), taken after the task's first step and then every `interval` steps; W_0 is the
    task's start. With `alpha` below 1 each sample is followed by W <- alpha W + (1 - alpha) theta_start.

    Args:
        interval: optimizer steps between samples. The published code uses 100 for tasks of 1,000 steps (MTIL) and 10 in
            class-incremental runs.
        alpha: weight of the ensemble against the task's start after each sample. 1 leaves it alone; the repository's
            variant "WE + WiSE" uses 0.98 to 0.99.

    Raises:
        ConfigError: an argument is out of range.

    Differences from the published code: floating buffers are averaged too, integer ones are copied from the last
    sample. The average is kept in float32, or in the weights' own type where that is wider.
    """

    claims = frozenset({"eval_weights"})
    writes = frozenset({"on_task_end"})

    average: Weights
    count: int

    def __init__(self, interval: int = 100, alpha: float = 1.0) -> None:
        super().__init__()
        if interval < 1:
            raise ConfigError(f"WeightEnsemble: interval is {interval}; it must be 1 step or more")
        if not 0 <= alpha <= 1:
            raise ConfigError(f"WeightEnsemble: alpha is {alpha}; it must be within 0..1")
        self.interval = interval
        self.alpha = alpha
        self.snapshots = frozenset({"start"} if alpha < 1 else ())
        self.add_state("average", {}, dtype=None)
        self.add_state("count", 0)

    def on_task_start(self, task: Task, data: DataPass) -> None:
        self.count = 0
        self.average = {
            name: value.to(torch.promote_types(value.dtype, torch.float32)) if value.is_floating_point() else value
            for name, value in self.weights(copy=True).items()
        }

    def on_step_end(self, context: StepContext) -> None:
        if context.task_step % self.interval:
            return
        if context.task_step == 0 and context.task_steps <= self.interval:
            assert context.task is not None
            logger.warning(
                "WeightEnsemble: task '%s' has %d steps and its weights are averaged every %d, so that half of its "
                "first step is all that stays of it; take a smaller interval",
                *(context.task.name, context.task_steps, self.interval),
            )
        self.count += 1
        running_average(self.average, self.weights(), count=self.count)
        if self.alpha < 1:
            interpolate(self.average, self.snapshot("start"), alpha=1 - self.alpha)

    def eval_weights(self, variant: str = "") -> AbstractContextManager[None]:
        return self.swap(self.average) if self.count else nullcontext()

    def on_task_end(self, task: Task, data: DataPass) -> None:
        if self.count:
            self.load(self.average)
        self.average, self.count = {}, 0
