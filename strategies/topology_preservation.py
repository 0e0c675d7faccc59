"""Who is near whom, as the last task's model saw it."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from mmcl.errors import ConfigError, RunError
from mmcl.functional.distillation import topology_preservation_loss
from mmcl.outputs import Outputs
from mmcl.strategy import StepContext, Strategy
from mmcl.stream import Stream


class TopologyPreservation(Strategy):
    """Hold the similarities within a batch to the previous task's model (CTP; Zhu et al., ICCV 2023, section 3.3).

    Softmax rows, at temperature T, of image-text similarities (cross-modal) and of image-image and text-text
    similarities without their diagonals (same-modal) are held to those of the model before the task by
    KL(previous || student), averaged over rows and over the two matrices.

    Args:
        cross: weight of the cross-modal part. The paper has 1.
        same: weight of the same-modal part, likewise.
        temperature: T, fixed.
        first_task: hold the first task too, to the pretrained model. The paper trains from towers that do not know one
            another, where there is nothing to hold; a pretrained CLIP has.

    Raises:
        ConfigError: an argument is out of range, or the module compares no pair of features.

    Differences from the published code: none in the formula; the rows of all processes take part, as there.
    """

    def __init__(
        self, cross: float = 1.0, same: float = 1.0, temperature: float = 0.07, first_task: bool = False
    ) -> None:
        super().__init__()
        for name, value in (("cross", cross), ("same", same)):
            if not 0 <= value < math.inf:
                raise ConfigError(f"TopologyPreservation: {name} is {value}; a weight is 0 or more")
        if not 0 < temperature < math.inf:
            raise ConfigError(f"TopologyPreservation: temperature is {temperature}; it must be positive")
        self.parts_of = {"cross_modal": cross, "same_modal": same}
        self.temperature, self.first_task = temperature, first_task
        self.active = cross > 0 or same > 0
        self.needs = frozenset({"features"} if self.active else ())
        self.snapshots = frozenset({"start"} if self.active else ())

    def setup(self, stream: Stream) -> None:
        if self.active and self.module.pair is None:
            raise ConfigError(f"{self.title}: {type(self.module).__name__} compares no pair of features")

    def losses(self, context: StepContext) -> Mapping[str, Tensor]:
        assert context.task is not None
        if not self.active or (self.stream.position(context.task) == 0 and not self.first_task):
            return {}
        student = self._pair(context, context.outputs)
        reference = self._pair(context, context.teacher("start", context.batch))
        values = topology_preservation_loss(*student, *reference, temperature=self.temperature)
        return {n: weight * v for (n, weight), v in zip(self.parts_of.items(), values, strict=True) if weight}

    def _pair(self, context: StepContext, outputs: Outputs) -> list[Tensor]:
        """The two features of all processes' pairs."""
        pair = self.module.pair
        if missing := [name for name in pair if name not in outputs.features]:
            raise RunError(f"{self.title}: the batch has no {' and no '.join(missing)} to compare")
        found = [context.gather(outputs.features[name]) for name in pair]
        if "valid" in context.batch:
            kept = context.gather(context.batch["valid"])
            found = [features[kept] for features in found]
        return found
