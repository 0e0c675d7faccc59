"""A memory of earlier tasks that holds keys of samples, not their tensors.

A kept sample is read from its shard, decoded and augmented anew whenever it is drawn, like any other, so that a buffer
of a million samples takes as much memory as their names do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from mmcl.errors import ConfigError, near
from mmcl.functional.selection import equal_quotas, herding, k_means_exemplars, quotas
from mmcl.stream import JoinedSource, Source, Task, TaskSamples

Rule = Literal["reservoir", "class_balanced", "herding", "k_means"]


class Kept(NamedTuple):
    """One sample of the memory: the number of its source in its task, its key, its class in the task or None."""

    source: int
    key: str
    label: int | None


Group = tuple[str, int | None]


def some(samples: TaskSamples, places: Sequence[int]) -> TaskSamples:
    """Those of a task's samples that stand at these places."""
    labels = None if samples.labels is None else [samples.labels[i] for i in places]
    return TaskSamples([samples.sources[i] for i in places], [samples.keys[i] for i in places], labels)


@dataclass
class ReplayBuffer:
    """Keeps `size` samples of the tasks so far.

    ``reservoir``: every sample seen has the same chance, as in reservoir sampling, but by hashes: those with the
    smallest hash of (seed, task, source, key) stay, which needs no random state and does not depend on an order.
    ``class_balanced``: the same within each class of each task, classes sharing the memory evenly. ``herding`` and
    ``k_means``: each task gets its part of the memory by its size, filled by `mmcl.functional.selection.herding` (for
    each class, where there are labels) or `k_means_exemplars` of features; older tasks are cut to their new part.

    Args:
        size: samples to keep.
        rule: how they are chosen.
        seed: of the hashes and of k-means.

    Attributes:
        kept: task -> its samples, in the order in which a smaller memory would keep them.
        seen: task -> samples that it had.

    Raises:
        ConfigError: an unknown rule, or a size below 1.
    """

    size: int
    rule: Rule = "reservoir"
    seed: int = 0
    kept: dict[str, list[Kept]] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.rule not in get_args(Rule):
            raise ConfigError(f"replay rule '{self.rule}' is unknown; {near(self.rule, get_args(Rule))}")
        if self.size < 1:
            raise ConfigError(f"replay: a buffer of {self.size} samples; it must hold 1 or more")

    @property
    def needs_features(self) -> bool:
        """Whether `add` wants features."""
        return self.rule in ("herding", "k_means")

    def add(self, task: str, samples: TaskSamples, features: Tensor | None = None) -> None:
        """Take in a task that has ended.

        Args:
            task: its name.
            samples: what it holds.
            features: (N, D) of all of them, in the same order, for ``herding`` and ``k_means``; see `some`.

        Raises:
            ConfigError: ``class_balanced`` without labels.
        """
        if self.rule == "class_balanced" and samples.labels is None:
            raise ConfigError(f"replay: rule class_balanced needs labels, and task '{task}' has none; use reservoir")
        labels = [None] * len(samples.keys) if samples.labels is None else samples.labels
        new = [Kept(*sample) for sample in zip(samples.sources, samples.keys, labels, strict=True)]
        self.seen[task] = len(new)
        if self.needs_features:
            assert features is not None and len(features) == len(new)
            self.kept[task] = [new[i] for i in self._exemplars(task, samples, features)]
            for name, quota in zip(self.kept, quotas([self.seen[n] for n in self.kept], self.size), strict=True):
                self.kept[name] = self.kept[name][:quota]
            return
        self.kept[task] = sorted(new, key=lambda sample: self._hash(task, sample))
        groups: dict[Group, list[Kept]] = {}
        for name, kept in self.kept.items():
            for sample in kept:
                groups.setdefault((name, sample.label if self.rule == "class_balanced" else None), []).append(sample)
        for name in self.kept:
            self.kept[name] = []
        for (name, _), chosen in self._smallest(groups).items():
            self.kept[name] += chosen

    def _smallest(self, groups: Mapping[Group, list[Kept]]) -> dict[Group, list[Kept]]:
        if self.rule == "class_balanced":
            parts = equal_quotas([len(group) for group in groups.values()], self.size)
            return {name: group[:part] for (name, group), part in zip(groups.items(), parts, strict=True)}
        everything = [(self._hash(name[0], sample), name, sample) for name, group in groups.items() for sample in group]
        found: dict[Group, list[Kept]] = {}
        for _, name, sample in sorted(everything, key=lambda entry: entry[0])[: self.size]:
            found.setdefault(name, []).append(sample)
        return found

    def _exemplars(self, task: str, samples: TaskSamples, features: Tensor) -> list[int]:
        quota = quotas([*self.seen.values()], self.size)[-1]
        if self.rule == "k_means":
            generator = torch.Generator().manual_seed(int.from_bytes(self._digest(task, "k-means"), "little") >> 1)
            return k_means_exemplars(features, quota, generator).tolist()
        if samples.labels is None:
            return herding(features, quota).tolist()
        labels = torch.tensor(samples.labels)
        classes = [torch.nonzero(labels == c)[:, 0] for c in sorted(set(samples.labels))]
        orders = [rows[herding(features[rows], len(rows))].tolist() for rows in classes]
        depth = max(len(order) for order in orders)
        # One of each class in turn, so that a cut takes from all classes alike.
        return [order[i] for i in range(depth) for order in orders if i < len(order)][:quota]

    def _hash(self, task: str, sample: Kept) -> bytes:
        return self._digest(task, sample.source, sample.key)

    def _digest(self, *parts: object) -> bytes:
        return hashlib.blake2b(repr((self.seed, *parts)).encode(), digest_size=8).digest()

    def source(self, tasks: Sequence[Task], name: str, **changes: Any) -> Source | None:
        """One source with all that is kept; None where that is nothing.

        Args:
            tasks: of the stream.
            name: of the source.
            changes: further fields of it: `share` of the batch, or `role` and `batch_size`.
        """
        parts: list[Source] = []
        for task in tasks:
            for number, own in enumerate(_own(task)):
                keys = [sample.key for sample in self.kept.get(task.name, ()) if sample.source == number]
                if keys:
                    parts.append(replace(own, name=name, keys=tuple(keys), task=task.name, ordered=False))
        return _joined(parts, changes) if parts else None

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: lists and numbers."""
        return {
            "kept": {task: [list(sample) for sample in kept] for task, kept in self.kept.items()},
            "seen": dict(self.seen),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        self.kept = {task: [Kept(*sample) for sample in kept] for task, kept in state["kept"].items()}
        self.seen = dict(state["seen"])


def unfilled(tasks: Sequence[Task], name: str, **changes: Any) -> list[Source]:
    """What a memory of some tasks will be drawn from, before it holds anything: all that they have; nothing of none.

    Args:
        tasks: that will have ended.
        name: of the source.
        changes: further fields of it, as in `ReplayBuffer.source`.
    """
    parts = [replace(own, name=name, task=task.name, ordered=False) for task in tasks for own in _own(task)]
    return [_joined(parts, changes)] if parts else []


def _own(task: Task) -> list[Source]:
    """A task's own sources, as `TaskSamples` numbers them: what is drawn as one is taken apart."""
    alone = [{f.name: getattr(part, f.name) for f in fields(Source)} for own in task.train for part in own.all]
    return [Source(**part) for part in alone]


def _joined(parts: Sequence[Source], changes: Mapping[str, Any]) -> Source:
    first = {f.name: getattr(parts[0], f.name) for f in fields(Source)}
    return JoinedSource(**{**first, **changes}, parts=tuple(parts[1:]))


@dataclass
class TaskMemories:
    """A memory of its own for each task, which does not change once the task has ended.

    Args:
        size: samples of each.
        rule: how they are chosen: ``reservoir`` or ``class_balanced``, see `ReplayBuffer`.
        seed: of the hashes.

    Attributes:
        of: task -> its memory, in the order in which the tasks ended.

    Raises:
        ConfigError: a rule that needs features, or a size below 1.
    """

    size: int
    rule: Rule = "reservoir"
    seed: int = 0
    of: dict[str, ReplayBuffer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if ReplayBuffer(self.size, self.rule).needs_features:
            raise ConfigError(f"replay: rule {self.rule} needs features; take reservoir or class_balanced")

    def add(self, task: str, samples: TaskSamples) -> None:
        """Take in a task that has ended."""
        memory = ReplayBuffer(self.size, self.rule, self.seed)
        memory.add(task, samples)
        self.of[task] = memory

    def source(self, tasks: Sequence[Task], name: str, **changes: Any) -> Source | None:
        """One source with the memories of `tasks`, one task after another; None where there are none."""
        whole = ReplayBuffer(self.size, self.rule, self.seed)
        for memory in self.of.values():
            whole.kept.update(memory.kept)
        return whole.source(tasks, name, **changes)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: lists and numbers."""
        return {task: memory.state() for task, memory in self.of.items()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        self.of = {task: ReplayBuffer(self.size, self.rule, self.seed) for task in state}
        for task, memory in self.of.items():
            memory.load(state[task])
