"""Samples of earlier tasks in every batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmcl import distributed
from mmcl.errors import ConfigError
from mmcl.replay import ReplayBuffer, Rule, some, unfilled
from mmcl.strategy import Batches, DataPass, Strategy
from mmcl.stream import Source, Stream, Task


class ExperienceReplay(Strategy):
    """Part of every batch is drawn from a memory of earlier tasks (Chaudhry et al., 2019: tiny episodic memories).

    The memory changes when a task ends and holds keys, not tensors: what is replayed is read from the earlier tasks'
    shards and augmented anew, and counts in the module's own loss with its own labels and language.

    Args:
        size: samples of the memory.
        share: part of the batch that is replayed from the second task on. One half is the usual choice; FoMo-in-Flux
            has 0.33.
        rule: how samples are chosen, see `mmcl.replay.ReplayBuffer`.
        feature: name among the module's features that ``herding`` and ``k_means`` look at.

    Raises:
        ConfigError: an argument is out of range, or the module does not offer the feature that the rule looks at.

    Differences from the published code: the reservoir is drawn by hashes of the samples' names over all tasks, where
    the code draws while it trains; each sample of a task that ended has the same chance either way.
    """

    def __init__(self, size: int, share: float = 0.5, rule: Rule = "reservoir", feature: str = "image") -> None:
        super().__init__()
        if not 0 < share < 1:
            raise ConfigError(f"ExperienceReplay: share is {share}; it must be above 0 and below 1")
        if size < 1:
            raise ConfigError(f"ExperienceReplay: size is {size}; it must be 1 or more")
        self.buffer = ReplayBuffer(size, rule)
        self.share, self.feature = share, feature
        self.reads = frozenset({"samples", "keys"} | ({"labels"} if rule == "class_balanced" else set()))
        if self.buffer.needs_features:
            self.needs = frozenset({f"features.{feature}"})

    def setup(self, stream: Stream) -> None:
        self.buffer.seed = self.reach.seed

    def sources(self, task: Task) -> Sequence[Source]:
        found = self.buffer.source(self.stream.tasks, self.name, share=self.share)
        return [] if found is None else [found]

    def foresee(self, task: Task, batches: Batches) -> Sequence[Source]:
        return unfilled(self.stream.tasks[: self.stream.position(task)], self.name, share=self.share)

    def on_task_end(self, task: Task, data: DataPass) -> None:
        samples, features = self.reach.task_samples(task), None
        if self.buffer.needs_features:
            features, places = self._features(data)
            samples = some(samples, places)  # the others cannot be decoded
        self.buffer.add(task.name, samples, features)

    @torch.no_grad()
    def _features(self, data: DataPass) -> tuple[Tensor, list[int]]:
        """(N, D) features, and the place of each row among the task's samples."""
        rows, places = [], []
        for batch in data():
            rows.append(self.wrapped(batch).features[self.feature][batch["valid"]].float())
            places.append(batch["__index__"][batch["valid"]])
        found, index = distributed.gather(torch.cat(rows)), distributed.gather(torch.cat(places))
        order = index.argsort()
        return found[order], index[order].tolist()

    def export_state(self) -> dict[str, Any]:
        return self.buffer.state()

    def import_state(self, state: Mapping[str, Any]) -> None:
        self.buffer.load(state)
