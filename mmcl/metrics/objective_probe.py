"""The module's own training loss on held-out data, with masks that stay the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from mmcl.errors import ConfigError, RunError
from mmcl.metrics.probes import Encode, Probe, ProbeResult
from mmcl.outputs import Batch, Outputs
from mmcl.stream import EvalSet


@runtime_checkable
class Measured(Protocol):
    """An objective that can be taken over a whole set: sums of batches, and what becomes of them."""

    def sums(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Additive quantities of one batch, among them ``count``, the whole number of targets that took part."""

    def scores(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Figures of the whole set, among them ``objective``."""


class ObjectiveProbe(Probe):
    """The loss that the module trains on, over an evaluation set, for one target. Lower is better.

    Masks, spans and distractors are made with the samples, from a seed of the set and the sample, so that every
    evaluation sees the same ones. Batches are weighted by their targets.

    Args:
        objective: the module's, which has `sums` and `scores`.
    """

    metric = "objective"
    direction = "lower"

    def __init__(self, objective: Measured) -> None:
        self.objective = objective
        self.protocol = f"the training loss ({type(objective).__name__}) on fixed masks, mean over targets"
        self._sums: dict[str, Tensor] = {}

    @classmethod
    def of(cls, evalset: EvalSet, module: Any) -> ObjectiveProbe:
        if not isinstance(module.objective, Measured):
            raise ConfigError(
                f"evaluation set '{evalset.name}': {type(module.objective).__name__} cannot be taken over a set; "
                "an objective needs the methods `sums` and `scores` for the probe 'objective'"
            )
        return cls(module.objective, **evalset.options)

    def start(self, encode: Encode) -> None:
        """Forget the last pass."""
        self._sums = {}

    def update(self, batch: Batch, outputs: Outputs) -> None:
        """Add a batch."""
        for name, value in self.objective.sums(outputs, batch).items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def compute(self, sum_over_ranks: Callable[[Tensor], Tensor], gather: Callable[[Tensor], Tensor]) -> ProbeResult:
        """The scores over all ranks.

        Raises:
            RunError: no sample of the set has a target.
        """
        sums = {name: sum_over_ranks(torch.as_tensor(value)).cpu() for name, value in sorted(self._sums.items())}
        count = int(sums["count"]) if sums else 0
        if count == 0:
            raise RunError("objective: no sample of the evaluation set has a target")
        scores = self.objective.scores(sums)
        return ProbeResult(scores["objective"], count, scores)
