"""Gradient episodic memory: steps that do not raise the loss on any earlier task's memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from mmcl.errors import ConfigError
from mmcl.functional.gradients import gem_projection
from mmcl.replay import Rule
from mmcl.strategies._memories import _Projection
from mmcl.stream import Task


class GEM(_Projection):
    """Gradient episodic memory (Lopez-Paz & Ranzato, NeurIPS 2017).

    At every optimizer step the gradient of the module's own loss is computed on a batch of each earlier task's memory,
    rows of M. Where the step's gradient g would raise one of the losses (M g has a negative entry), it is replaced by
    the nearest x with M x >= 0. The dual problem over the memories is solved exactly. Gradients of penalties are part
    of g.

    Args:
        size: samples of the memory over the whole stream; each task has an equal part.
        batch_size: samples of each task's reference batch, over all processes; None takes the training batch's size.
        margin: least value of the dual variables: above 0 steps lean towards the memories. The published runs use 0.5.
        rule: how samples are chosen: ``reservoir`` or ``class_balanced``.

    Raises:
        ConfigError: an argument is out of range, the memory has less than a sample for each task, or the objective
            reads labels as those of the task at hand.

    Differences from the published code: the memory holds keys of samples chosen when a task ends, not the last ones
    seen, and a batch of it is drawn at each step, not all of it taken. No 1e-3 is added to the diagonal of M M^T: the
    solver needs none. With accumulated gradients a row of M is the mean of those of the accumulated batches.
    """

    def __init__(self, size: int, batch_size: int | None = None, margin: float = 0.5, rule: Rule = "reservoir") -> None:
        super().__init__(size, batch_size, rule)
        if not 0 <= margin < math.inf:
            raise ConfigError(f"GEM: margin is {margin}; it must be 0 or more")
        self.margin = margin

    def draws(self, tasks: Sequence[Task]) -> Mapping[str, Sequence[Task]]:
        return {task.name: [task] for task in tasks}

    def projected(self, gradient: Tensor, references: Tensor) -> Tensor:
        return gem_projection(gradient, references, margin=self.margin)
