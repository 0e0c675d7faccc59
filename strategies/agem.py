"""Averaged gradient episodic memory: steps that do not raise the mean loss on a memory of earlier tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from mmcl.functional.gradients import agem_projection
from mmcl.replay import Rule
from mmcl.strategies._memories import _Projection
from mmcl.stream import Task


class AGEM(_Projection):
    """Averaged gradient episodic memory (A-GEM; Chaudhry et al., ICLR 2019).

    At every optimizer step a batch is drawn from the memories of all earlier tasks; r is the gradient of the module's
    own loss on it. Where the step's gradient g points away from it, g . r < 0, g <- g - (g . r / r . r) r. Gradients of
    penalties are part of g.

    Args:
        size: samples of the memory over the whole stream; each task has an equal part.
        batch_size: of the reference batch, over all processes; None takes that of the training batch.
        rule: how samples are chosen: ``reservoir`` or ``class_balanced``.

    Raises:
        ConfigError: an argument is out of range, the memory has less than a sample for each task, or the objective
            reads labels as those of the task at hand.

    Differences from the published code: the memory holds keys; samples are read and augmented anew. Samples of a task
    are chosen when it ends, out of all that it has, where the code takes them as they come. With accumulated gradients
    the reference is the mean of those of the accumulated batches.
    """

    def __init__(self, size: int, batch_size: int | None = None, rule: Rule = "reservoir") -> None:
        super().__init__(size, batch_size, rule)

    def draws(self, tasks: Sequence[Task]) -> Mapping[str, Sequence[Task]]:
        return {"memory": tasks}

    def projected(self, gradient: Tensor, references: Tensor) -> Tensor:
        return agem_projection(gradient, references[0])
