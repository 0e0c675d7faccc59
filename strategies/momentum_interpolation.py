"""Slow weights that follow the trained ones."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from mmcl.errors import ConfigError
from mmcl.functional.averaging import ema
from mmcl.outputs import Weights
from mmcl.strategy import DataPass, StepContext, Strategy
from mmcl.stream import Task


class MomentumInterpolation(Strategy):
    """Momentum-based weight interpolation: fast weights train, slow ones are evaluated (Stojanovski et al., 2022).

    slow <- decay x slow + (1 - decay) x fast every `interval` optimizer steps of the run. Slow weights start once, as
    the weights before the first task, and go on over the tasks; the fast ones are never overwritten.

    Args:
        decay: tau. The slow copy looks back about interval / (1 - decay) steps; choose it with the length of the
            stream.
        interval: optimizer steps between updates.

    Raises:
        ConfigError: an argument is out of range.

    Differences from the published code: none could be compared; the formula is the paper's. Floating buffers are
    averaged too, integer ones copied. Slow weights are kept in float32, or in the weights' own type where that is
    wider.
    """

    claims = frozenset({"eval_weights"})

    slow: Weights

    def __init__(self, decay: float = 0.999, interval: int = 1) -> None:
        super().__init__()
        if not 0 <= decay <= 1:
            raise ConfigError(f"MomentumInterpolation: decay is {decay}; it must be within 0..1")
        if interval < 1:
            raise ConfigError(f"MomentumInterpolation: interval is {interval}; it must be 1 step or more")
        self.decay = decay
        self.interval = interval
        self.add_state("slow", {}, dtype=None)

    def on_task_start(self, task: Task, data: DataPass) -> None:
        self.slow = {name: _wide(value) for name, value in self.grown(self.slow).items()}

    def on_step_end(self, context: StepContext) -> None:
        if (context.step + 1) % self.interval == 0:
            ema(self.slow, self.weights(), decay=self.decay)

    def eval_weights(self, variant: str = "") -> AbstractContextManager[None]:
        return self.swap(self.slow) if self.slow else nullcontext()


def _wide(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32)) if value.is_floating_point() else value
