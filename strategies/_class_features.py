"""What methods on features of whole classes share: the pass over a task's samples, the label space, what trains."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from mmcl import distributed
from mmcl.errors import ConfigError, RunError, near
from mmcl.modules.labels import LabelSpace
from mmcl.outputs import Batch, Forward, Outputs
from mmcl.strategy import DataPass, StepContext, Strategy
from mmcl.stream import Stream, Task

Trains = Literal["nothing", "first", "all"]
TRAINS: tuple[Trains, ...] = ("nothing", "first", "all")


class ClassFeatures(Strategy):
    """Base of strategies that look at the features of each class's samples when a task ends.

    A class is a column of the label space of the stream: the ordered union of its tasks' class names.

    Args:
        feature: name among the module's features.
    """

    labels: LabelSpace

    def __init__(self, feature: str) -> None:
        super().__init__()
        self.feature = self.represented = feature
        self.needs = frozenset({f"features.{feature}"})
        self.reads = frozenset({"samples"})

    def setup(self, stream: Stream) -> None:
        self.labels = LabelSpace.of(stream)

    def collect(self, task: Task, data: DataPass) -> tuple[Tensor, Tensor]:
        """Features (N, D) and columns (N,) of all samples of a task that have a label, over all ranks, in fixed order.

        Raises:
            RunError: samples without labels, or none at all.
        """
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        with self.evaluating() as encode:
            for batch in data():
                if "labels" not in batch:
                    raise RunError(f"{self.name}: the samples of task '{task.name}' have no labels")
                outputs = encode(batch)
                if self.represented not in outputs.features:
                    raise RunError(f"{self.name}: the samples of task '{task.name}' give no feature '{self.feature}'")
                features = outputs.features[self.represented]
                columns = self._columns(batch).to(features.device)
                real = batch["valid"] & (columns >= 0)
                found.append((features[real].float(), columns[real], batch["__index__"][real]))
        features, columns, places = (distributed.gather(torch.cat(parts)) for parts in zip(*found, strict=True))
        if not len(columns):
            raise RunError(f"{self.name}: task '{task.name}' has no sample with a label")
        order = places.argsort()
        return features[order], columns[order]

    def _columns(self, batch: Batch) -> Tensor:
        rows = zip(batch["domain"].tolist(), batch["labels"].tolist(), batch["__key__"], strict=True)
        return torch.tensor([self.labels.column(task, label, key) for task, label, key in rows])


class FeatureClassifier(ClassFeatures):
    """Base of classifiers on features that are measured when a task ends, not trained, and answer from then on.

    `learn` takes the features of a task's samples; `scores` gives a number for every class of the stream. Outside
    training they take the place of ``outputs.logits``, and of a probe's logits over classes that it names; a class
    without samples so far gets the lowest number there is. Where a probe names none that has samples, nothing changes.

    Args:
        feature: name among the module's features.
        trains: the tasks in which the network, and adapters before this strategy in the list, train: ``nothing``, the
            ``first`` one alone, ``all``.
        with_initial: classify by the features of the pretrained network and the live one, concatenated.
    """

    claims = frozenset({"classifier"})
    unexported = "class statistics"

    counts: Tensor

    def __init__(self, feature: str, trains: Trains, with_initial: bool) -> None:
        super().__init__(feature)
        if trains not in TRAINS:
            raise ConfigError(f"{type(self).__name__}: trains '{trains}' is unknown; {near(trains, TRAINS)}")
        self.trains, self.with_initial = trains, with_initial
        self.idle, self.settles = trains == "nothing", trains != "all"
        if with_initial:
            self.snapshots = frozenset({"initial"})
            self.represented = f"{feature}+initial"
        self.add_state("counts", torch.zeros(0, dtype=torch.int64))

    def learn(self, task: Task, features: Tensor, columns: Tensor) -> None:
        """Take in a task's samples: features (N, D) and columns (N,)."""
        raise NotImplementedError

    def scores(self, features: Tensor) -> Tensor:
        """(B, C) of (B, D) features; the highest is the answer."""
        raise NotImplementedError

    def grow(self, task: Task) -> None:
        if self.trains == "nothing" or (self.trains == "first" and self.stream.position(task) > 0):
            for parameter in self.reach.parameters():
                parameter.requires_grad_(False)

    def on_task_end(self, task: Task, data: DataPass) -> None:
        features, columns = self.collect(task, data)
        self.learn(task, features, columns)
        found = torch.bincount(columns, minlength=len(self.labels.names))
        self.counts = found if not len(self.counts) else self.counts + found

    def wrap_forward(self, next: Forward, batch: Batch, context: StepContext) -> Outputs:
        outputs = next(batch)
        if context.stage == "fit" or self.task is None or self.feature not in outputs.features:
            return outputs
        if self.with_initial:
            pretrained = context.teacher("initial", batch).features[self.feature]
            joined = torch.cat([pretrained, outputs.features[self.feature]], dim=1)
            outputs.features[self.represented] = joined
        if len(self.counts):
            self.answer(outputs)
        return outputs

    def answer(self, outputs: Outputs) -> None:
        """Put the scores in the place of the logits, in their columns."""
        features = outputs.features[self.represented]
        if outputs.logits is not None:
            scores = self.scores(features)
            scores = scores.masked_fill(self.counts == 0, torch.finfo(scores.dtype).min)
            outputs.logits = scores[:, : outputs.logits.shape[1]]
        outputs.rescore = partial(self._rescored, features)

    def known(self, names: Sequence[str], device: torch.device) -> Tensor:
        """(K,) the columns of K named classes, -1 for one without samples so far."""
        place = {name: i for i, name in enumerate(self.labels.names)}
        columns = torch.tensor([place.get(name, -1) for name in names], device=device)
        return columns.masked_fill(self.counts[columns] == 0, -1)

    def _rescored(self, features: Tensor, logits: Tensor, names: Sequence[str]) -> Tensor:
        columns = self.known(names, features.device)
        if bool((columns < 0).all()):
            return logits
        scores = self.scores(features)
        return scores[:, columns].masked_fill(columns < 0, torch.finfo(scores.dtype).min)
