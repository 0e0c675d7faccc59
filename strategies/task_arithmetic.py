"""Task arithmetic: the sum, or the mean, of the tasks' changes."""

from __future__ import annotations

import math

from mmcl.errors import ConfigError
from mmcl.functional.merging import task_arithmetic, task_vector
from mmcl.functional.trimming import layer_scaling
from mmcl.outputs import Weights
from mmcl.strategies._merge import Merge, Rule
from mmcl.stream import Task


class TaskArithmetic(Merge):
    """Evaluate theta_0 + scale x sum_t (theta_t - theta_0) over the tasks so far (Ilharco et al., ICLR 2023).

    One vector, the sum, is kept of all tasks so far.

    Args:
        scale: of the sum; None is one divided by the number of tasks so far, the average of their weights. FoMo-in-Flux
            takes 1, the paper looks for the best value on held-out data.
        rule: ``zero_shot`` is the paper's, each task training from theta_0; the others are those of `EMAMerge`.
        by_layer: scale the merged vector by depth, from one half at the first block to 1 at the last (LiNeS; Wang et
            al., ICLR 2025).

    Raises:
        ConfigError: an argument is out of range, or the rule needs a scale.

    Differences from the published code: vectors are kept in float32 or wider. Running statistics are not merged: they
    are the latest model's.
    """

    def __init__(self, scale: float | None = None, rule: Rule = "zero_shot", by_layer: bool = False) -> None:
        super().__init__(rule)
        if scale is None and rule in ("ema", "fine_tuned"):
            raise ConfigError(f"TaskArithmetic: rule '{rule}' merges two models at a time; give a `scale`")
        if scale is not None and not math.isfinite(scale):
            raise ConfigError(f"TaskArithmetic: scale is {scale}; it must be a finite number")
        self.scale = scale
        self.by_layer = by_layer

    def absorb(self, base: Weights, new: Weights, kept: Weights, task: Task) -> Weights:
        vector = task_vector(new, base)
        return {name: kept[name] + value for name, value in vector.items()} if kept else vector

    def result(self, base: Weights, kept: Weights, task: Task) -> Weights:
        scale = 1 / (self.stream.position(task) + 1) if self.scale is None else self.scale
        return task_arithmetic(base, [layer_scaling(kept) if self.by_layer else kept], scale)

    def carried(self, base: Weights, merged: Weights) -> Weights:
        return task_vector(merged, base)
