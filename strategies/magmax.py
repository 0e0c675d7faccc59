"""MagMax: of all tasks, the change of largest magnitude."""

from __future__ import annotations

import math

import torch

from mmcl.errors import ConfigError
from mmcl.functional.merging import running_magmax, task_arithmetic, task_vector, widened
from mmcl.outputs import Weights
from mmcl.strategies._merge import Merge, Rule
from mmcl.stream import Task


class MagMax(Merge):
    """Evaluate theta_0 + scale x the entry of largest magnitude among the tasks' changes (Marczak et al., ECCV 2024).

    tau_t = theta_t - theta_0; of each entry the tau of largest magnitude stays, the later one's where two are equal.
    One vector is kept of all tasks so far.

    Args:
        scale: of the merged vector. All published runs use 0.5.
        rule: ``sequential`` is the published one, each task training on from the last one's weights; the others are
            those of `EMAMerge`.

    Raises:
        ConfigError: an argument is out of range.

    Differences from the published code: it trains the image tower alone, which is the module's choice here. Vectors are
    kept in float32 or wider. Running statistics are not merged: they are the latest model's.
    """

    stays = frozenset({"sequential", "zero_shot"})

    def __init__(self, scale: float = 0.5, rule: Rule = "sequential") -> None:
        super().__init__(rule)
        if not math.isfinite(scale):
            raise ConfigError(f"MagMax: scale is {scale}; it must be a finite number")
        self.scale = scale

    def absorb(self, base: Weights, new: Weights, kept: Weights, task: Task) -> Weights:
        largest = widened(kept) if kept else {name: torch.zeros_like(value) for name, value in widened(base).items()}
        return running_magmax(largest, task_vector(new, base))

    def result(self, base: Weights, kept: Weights, task: Task) -> Weights:
        return task_arithmetic(base, [kept], self.scale)

    def carried(self, base: Weights, merged: Weights) -> Weights:
        return task_vector(merged, base)
