"""The module's own training loss on held-out data, with masks that stay the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from mmcl.errors import ConfigError, RunError, near
from mmcl.metrics.probes import Encode, Probe, ProbeResult
from mmcl.outputs import Batch, Outputs
from mmcl.stream import EvalSet


@runtime_checkable
class Measured(Protocol):
    """An objective that can be taken over a whole set: sums of batches, and what becomes of them.

    Attributes:
        figures: what `scores` gives, by name, and whether more or less of it is better.
    """

    figures: Mapping[str, Literal["higher", "lower"]]

    def sums(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Additive quantities of one batch, among them ``count``, the whole number of targets that took part."""

    def scores(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Figures of the whole set, among them ``objective``."""


class ObjectiveProbe(Probe):
    """The loss that the module trains on, over an evaluation set, for one target, or another figure of its objective.

    Masks, spans and distractors are made with the samples, from a seed of the set and the sample, so that every
    evaluation sees the same ones. Batches are weighted by their targets.

    Args:
        objective: the module's, which has `figures`, `sums` and `scores`.
        metric: the figure that goes into the score matrix: ``objective``, the loss, or ``contrastive_accuracy``, ...

    Raises:
        ConfigError: the objective has no such figure.
    """

    def __init__(self, objective: Measured, metric: str = "objective") -> None:
        if metric not in objective.figures:
            raise ConfigError(f"objective: option metric '{metric}' is unknown; {near(str(metric), objective.figures)}")
        self.objective = objective
        self.metric = metric
        self.direction = objective.figures[metric]
        what = "the training loss" if metric == "objective" else f"{metric} of the training objective"
        self.protocol = f"{what} ({type(objective).__name__}) on fixed masks, mean over targets"
        self._sums: dict[str, Tensor] = {}

    @classmethod
    def of(cls, evalset: EvalSet, module: Any) -> ObjectiveProbe:
        if not isinstance(module.objective, Measured):
            raise ConfigError(
                f"{type(module.objective).__name__} cannot be taken over a set; an objective needs `figures`, `sums` "
                "and `scores` for the probe 'objective'"
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
            RunError: no sample of the set has a target, or the figure is not finite.
        """
        sums = {name: sum_over_ranks(torch.as_tensor(value)).cpu() for name, value in sorted(self._sums.items())}
        count = int(sums["count"]) if sums else 0
        if count == 0:
            raise RunError(f"objective: no sample of {self.where} has a target")
        scores = self.objective.scores(sums)
        if not math.isfinite(scores[self.metric]):
            raise RunError(f"objective: the {self.metric} of {self.where} is {scores[self.metric]}")
        return ProbeResult(scores[self.metric], count, scores)
