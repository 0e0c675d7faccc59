"""CTP: compatible momentum contrast and topology preservation, as a preset."""

from __future__ import annotations

from collections.abc import Sequence

from mmcl.strategies.momentum_contrast import MomentumContrast
from mmcl.strategies.topology_preservation import TopologyPreservation
from mmcl.strategy import Strategy


class CTP(Strategy):
    """Compatible momentum contrast with topology preservation (Zhu et al., ICCV 2023).

    Loss: the module's own contrast of the batch + `MomentumContrast` + the two parts of `TopologyPreservation`. The
    defaults are those of the published runs on P9D.

    Args:
        momentum_contrast: weight of the contrast with the momentum model.
        cross: weight of the cross-modal topology.
        same: weight of the same-modal topology.
        temperature: of all three, fixed.
        decay: of the momentum model from the second task on.
        first_decay: in the first task.
        alpha: part of the previous task's weights in what the momentum model follows.
        queue_size: features that each queue holds.
        flush: begin each task with empty queues.
        train_mode: leave the momentum model in training mode, as published.
        first_task: preserve the pretrained model's topology in the first task.

    Differences from the published code: those of the two parts. The module's own loss has its own temperature, there
    fixed at 0.07 too. The masked-language loss of the published model, and its distillation, have no place in a model
    of two towers.
    """

    def __init__(
        self,
        momentum_contrast: float = 1.0,
        cross: float = 1.0,
        same: float = 1.0,
        temperature: float = 0.07,
        decay: float = 0.9,
        first_decay: float = 0.995,
        alpha: float = 0.5,
        queue_size: int = 1024,
        flush: bool = False,
        train_mode: bool = False,
        first_task: bool = False,
    ) -> None:
        super().__init__()
        self._parts = (
            MomentumContrast(
                weight=momentum_contrast,
                decay=decay,
                first_decay=first_decay,
                alpha=alpha,
                queue_size=queue_size,
                temperature=temperature,
                flush=flush,
                train_mode=train_mode,
            ),
            TopologyPreservation(cross, same, temperature, first_task),
        )

    def parts(self) -> Sequence[Strategy]:
        return self._parts
