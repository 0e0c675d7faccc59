"""GeRe: a few general samples, replayed, keep the states of the pretrained model's activations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mmcl import distributed
from mmcl.errors import ConfigError, RunError, near
from mmcl.functional.representations import threshold_margins
from mmcl.outputs import Batch, Outputs, valid_places
from mmcl.strategy import DataPass, StepContext, Strategy
from mmcl.stream import Source, Stream, Task

TEACHERS = {"initial": "initial", "previous": "start"}
"""Name of a teacher -> the snapshot that it holds."""
Activation = Literal["tokens", "features", "logits"]


class GeRe(Strategy):
    """General sample replay with a threshold-based margin loss (GeRe; Zhang et al., 2025, arXiv 2508.04676).

    loss + label_weight x the module's own loss on a batch of general samples + weight x mean of the margins by which
    the student's activations have left the teacher's states: off below mean - tau std, on above mean + tau std, at
    rest between. Mean and std of each unit are taken over all general samples and their tokens; margins of 0 take no
    part in the mean.

    Args:
        source: name of one of the stream's sources, or a source: a small fixed set (1,000 documents in the paper).
        weight: of the margin loss. The published code has 1, 100 (its default) and a dynamic one.
        label_weight: of the general samples' own loss; 0 leaves it out.
        tau: width of the state of rest. The published code has 1.
        teacher: ``initial``, the pretrained model, or ``previous``, the model at the start of the task.
        on: the activations: ``tokens`` (the last hidden states), ``features`` or ``logits``; None takes the first of
            these that the module offers.
        batch_size: general samples of a step, over all processes; None takes the source's, then the training batch's.

    Raises:
        ConfigError: an argument is out of range, the module does not offer `on`, or the objective reads the general
            samples' labels as those of the task at hand.

    Differences from the published code: the teacher's activations are computed at every step, not read from the disk.
    Task loss and general loss are summed up, not averaged. The dynamic weight is left out. General samples have a batch
    of their own in every step, where they are mixed into the training data there. Formula and values are those of the
    published code; the paper's text was not compared.
    """

    mean: dict[str, Tensor]
    std: dict[str, Tensor]

    def __init__(
        self,
        source: str | Source = "general",
        weight: float = 100.0,
        label_weight: float = 1.0,
        tau: float = 1.0,
        teacher: Literal["initial", "previous"] = "initial",
        on: Activation | None = None,
        batch_size: int | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("weight", weight), ("label_weight", label_weight), ("tau", tau)):
            if not 0 <= value < math.inf:
                raise ConfigError(f"GeRe: {name} is {value}; it must be 0 or more")
        if teacher not in TEACHERS:
            raise ConfigError(f"GeRe: teacher '{teacher}' is unknown; {near(teacher, TEACHERS)}")
        if on is not None and on not in get_args(Activation):
            raise ConfigError(f"GeRe: on '{on}' is unknown; {near(on, get_args(Activation))}")
        if batch_size is not None and batch_size < 1:
            raise ConfigError(f"GeRe: batch_size is {batch_size}; it must be 1 or more")
        self.name = "gere"
        self.source, self.weight, self.label_weight, self.tau = source, weight, label_weight, tau
        self.on, self.batch_size = on, batch_size
        self.teacher = TEACHERS[teacher]
        self.snapshots = frozenset({self.teacher} if weight else ())
        self.needs = frozenset({on} if on and weight else ())
        self.reads = frozenset({"sources"} if weight else ())
        self.add_state("mean", {}, dtype=None)
        self.add_state("std", {}, dtype=None)
        self._source: Source | None = None

    def setup(self, stream: Stream) -> None:
        if not self.weight and not self.label_weight:
            return
        objective = self.module.objective
        if self.label_weight and objective.of_one_task:
            raise ConfigError(
                f"GeRe: {type(objective).__name__} reads labels as those of the task at hand, which general samples "
                "have not; set label_weight to 0"
            )
        offered = [name for name in get_args(Activation) if name in self.module.provides]
        if self.weight and not offered:
            raise ConfigError(f"GeRe: {type(self.module).__name__} offers none of {', '.join(get_args(Activation))}")
        self.on = self.on or (offered[0] if offered else None)
        source = stream.source(self.source) if isinstance(self.source, str) else self.source
        size = self.batch_size or source.batch_size
        self._source = replace(source, name=f"{self.name}/{source.name}", role="side", share=None, batch_size=size)

    def sources(self, task: Task) -> Sequence[Source]:
        return () if self._source is None else (self._source,)

    def on_task_start(self, task: Task, data: DataPass) -> None:
        if self._source is None or not self.weight or (self.mean and self.teacher == "initial"):
            return
        # At this moment the live network is the one that the snapshot `start` will hold.
        network = self.reach.teacher("initial") if self.teacher == "initial" else self.module.network
        self.mean, self.std = self._statistics(network, self._source)

    def losses(self, context: StepContext) -> Mapping[str, Tensor]:
        if self._source is None:
            return {}
        batch = context.side[self._source.name]
        if self.label_weight:
            batch = self.module.objective.prepare(batch)
        student = context.forward(batch)
        terms = {}
        if self.label_weight:
            terms["labels"] = self.label_weight * context.module_loss(student, batch)
        if self.weight:
            terms["margin"] = self.weight * self._margin(context, student, batch)
        return terms

    def _margin(self, context: StepContext, student: Outputs, batch: Batch) -> Tensor:
        teacher = self._activations(context.teacher(self.teacher, batch))
        total = torch.zeros((), device=self._place)
        count = torch.zeros((), device=self._place)
        for name, own in self._activations(student).items():
            width = len(self.mean[name])  # of a head that has grown since: what the teacher has, too
            mean, std = self.mean[name], self.std[name]
            margins = threshold_margins(own[..., :width], teacher[name][..., :width], mean, std, tau=self.tau)
            margins = margins.masked_fill(~valid_places(own, student, batch)[..., None], 0.0)
            total, count = total + margins.sum(), count + (margins > 0).sum()
        return total / context.reduce(count.detach()).clamp(min=1e-9)

    def _activations(self, outputs: Outputs) -> dict[str, Tensor]:
        if self.on == "features":
            names = self.module.pair or tuple(outputs.features)
            found = {name: outputs.features[name] for name in names if name in outputs.features}
        else:
            value: Tensor | None = getattr(outputs, str(self.on))
            found = {} if value is None else {str(self.on): value}
        if not found:
            raise RunError(f"GeRe: the outputs for the general samples hold no {self.on}")
        return found

    @torch.no_grad()
    def _statistics(self, network: Any, source: Source) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Mean and standard deviation of each unit over all general samples."""
        sums: dict[str, Tensor] = {}
        for batch in self.reach.samples(source):
            outputs = self.module.compute(network, self.module.objective.prepare(batch) if self.label_weight else batch)
            for name, value in self._activations(outputs).items():
                rows = value[valid_places(value, outputs, batch)].double()
                found = torch.stack([torch.ones_like(rows).sum(0), rows.sum(0), rows.square().sum(0)])
                sums[name] = sums[name] + found if name in sums else found
        mean, std = {}, {}
        for name, found in sums.items():
            count, total, squares = distributed.total(found)
            mean[name] = (total / count).float()
            std[name] = (squares / count - (total / count).square()).clamp(min=0).sqrt().float()
        return mean, std

    @property
    def _place(self) -> torch.device:
        return next(iter(self.mean.values())).device
