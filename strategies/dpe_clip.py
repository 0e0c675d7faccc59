"""DPeCLIP without training: class prototypes find the task, and stand beside the class texts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from mmcl.errors import ConfigError
from mmcl.functional.prototypes import class_means, nearest_mean_logits
from mmcl.outputs import Outputs
from mmcl.strategies._class_features import FeatureClassifier, Trains
from mmcl.stream import Task

SCALE = 100.0
"""CLIP's factor on cosines."""


class DPeCLIP(FeatureClassifier):
    """Prototypes of each task's classes as task discriminator and visual classifier (DPeCLIP; Lu et al., 2024).

    When a task ends, each of its classes leaves the mean mu of its image features. A picture belongs to the task of its
    nearest prototype, among the tasks that have a class in the evaluation set. Of the set's classes with prototypes
    only those of that task can be the answer; they share the probability that the texts give to all classes with
    prototypes, by (1 - weight) softmax(text logits) + weight softmax(100 cos(f(x), mu)). Classes without prototypes
    keep what the texts give them, so that a set of new classes is answered by its texts alone.

    Args:
        weight: of the prototypes against the texts, from 0 to 1. With 0 they only choose the task.
        feature: name among the module's features.
        trains: see `NearestMean`.

    Raises:
        ConfigError: `weight` is outside 0..1, `trains` is unknown, or a task has no class names.

    Differences from the published code: it was not compared. Its prompts, which are trained and
    conditioned on the prototypes, are left out; the mixture with the texts' probabilities and its weight are our own.
    """

    means: list[Tensor]
    owners: list[list[int]]

    def __init__(self, weight: float = 0.5, feature: str = "image", trains: Trains = "nothing") -> None:
        super().__init__(feature, trains, with_initial=False)
        if not 0 <= weight <= 1:
            raise ConfigError(f"DPeCLIP: weight is {weight}; it must be within 0..1")
        self.weight = weight
        self.needs |= {"features.text", "logit_scale"}
        self.add_state("means", [])
        self.add_state("owners", [])

    def learn(self, task: Task, features: Tensor, columns: Tensor) -> None:
        present: list[int] = torch.unique(columns).tolist()
        self.means = [*self.means, class_means(features, columns, classes=present)]
        self.owners = [*self.owners, present]

    def answer(self, outputs: Outputs) -> None:
        outputs.rescore = partial(self._mixed, outputs.features[self.feature])

    def _mixed(self, features: Tensor, logits: Tensor, names: Sequence[str]) -> Tensor:
        columns = self.known(names, features.device)
        known = columns >= 0
        if not bool(known.any()):
            return logits
        visual = torch.stack([self._cosines(features, task, columns) for task in range(len(self.means))])
        nearest = visual.amax(dim=2).argmax(dim=0)
        visual = visual[nearest, torch.arange(len(features), device=features.device)]
        texts = logits.float()
        inside = visual.isfinite()  # candidates with a prototype in the picture's task
        weights = torch.tensor([1 - self.weight, self.weight], device=features.device).log()
        of_texts = texts.masked_fill(~inside, -torch.inf).log_softmax(dim=1) + weights[0]
        of_means = (SCALE * visual).log_softmax(dim=1) + weights[1]
        given = texts.log_softmax(dim=1)
        share = given.masked_fill(~known, -torch.inf).logsumexp(dim=1, keepdim=True)
        found = torch.where(known, torch.logaddexp(of_texts, of_means) + share, given)
        return found.clamp(min=torch.finfo(found.dtype).min)

    def _cosines(self, features: Tensor, task: int, columns: Tensor) -> Tensor:
        """(B, K) cosines with a task's prototypes of K candidates, minus infinity where it has none."""
        places = {column: i for i, column in enumerate(self.owners[task])}
        rows = torch.tensor([places.get(column, -1) for column in columns.tolist()], device=features.device)
        cosines = nearest_mean_logits(features, self.means[task])[:, rows]
        return cosines.masked_fill(rows < 0, -torch.inf)
