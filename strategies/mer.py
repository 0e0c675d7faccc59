"""Interpolation of the trained weights every few steps, beside a replay of earlier data."""

from __future__ import annotations

import logging

import torch

from mmcl.errors import ConfigError
from mmcl.functional.averaging import interpolate
from mmcl.functional.merging import widened
from mmcl.outputs import Weights
from mmcl.strategy import DataPass, StepContext, Strategy
from mmcl.stream import Task

logger = logging.getLogger("mmcl")


class MER(Strategy):
    """Meta-experience replay: every k steps go a part of the way only (Abbes et al., 2025; after Riemer et al., 2019).

    theta <- theta_a + rate x (theta - theta_a) after every `interval` optimizer steps, and theta_a <- theta; theta_a is
    taken before the first step of each window. The method is this together with replay: put `ExperienceReplay` beside
    it, with a share of 0.25 or 0.5.

    Args:
        interval: k. 100 is the default of an independent implementation; the paper's own value could not be confirmed.
        rate: the part of the way, from 0 to 1. 0.1, likewise.

    Raises:
        ConfigError: an argument is out of range.

    Differences from the published code: none could be compared. A task begins a window of its own, and its last,
    unfinished window is left as it is. What trains is interpolated, buffers are not; theta_a is kept in float32 or
    wider. The optimizer's moments are left alone.
    """

    writes = frozenset({"on_step_end"})

    anchor: Weights

    def __init__(self, interval: int = 100, rate: float = 0.1) -> None:
        super().__init__()
        if interval < 1:
            raise ConfigError(f"MER: interval is {interval}; it must be 1 step or more")
        if not 0 <= rate <= 1:
            raise ConfigError(f"MER: rate is {rate}; it must be within 0..1")
        self.interval, self.rate = interval, rate
        self.add_state("anchor", {}, dtype=None)

    def on_task_start(self, task: Task, data: DataPass) -> None:
        self.anchor = widened(self._trained()) if self.rate < 1 else {}

    def on_step_end(self, context: StepContext) -> None:
        if context.task_step == 0 and context.task_steps < self.interval and self.rate < 1:
            assert context.task is not None
            where = (context.task.name, context.task_steps, self.interval)
            logger.warning("MER: task '%s' has %d steps, fewer than the interval of %d: it does nothing there", *where)
        if self.rate == 1 or (context.task_step + 1) % self.interval:
            return
        trained = self._trained()
        interpolate(self.anchor, trained, alpha=self.rate)
        torch._foreach_copy_(list(trained.values()), [self.anchor[name] for name in trained])

    def on_task_end(self, task: Task, data: DataPass) -> None:
        self.anchor = {}  # a copy of the weights that no checkpoint needs

    def _trained(self) -> Weights:
        """What trains, as it is: weights of the network, factors of adapters, prompts."""
        return {str(i): p.detach() for i, p in enumerate(self.reach.parameters()) if p.requires_grad}
