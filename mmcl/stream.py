"""What a model is trained on and measured on: sources, budgets, tasks, evaluation sets and the stream of them.

Everything here is a plain description. It opens no shard, so that a stream is cheap to build, compare and print.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mmcl.errors import ConfigError, near
from mmcl.schedule import Schedule

Role = Literal["mixed", "side"]

HELD_OUT = "held_out"
"""Group of an evaluation set that no task trains; retention is measured on these."""


@dataclass(frozen=True)
class Source:
    """Where samples come from: a list of shards, the part of them to use, and how they enter a batch.

    Args:
        shards: paths or URLs of tar files. Brace ranges (``a-{000..003}.tar``) and globs are expanded; order is kept.
        name: what messages and records call it; strategies' sources are found by it.
        role: ``mixed`` sources share one training batch, ``side`` sources arrive as a batch of their own under `name`.
        share: part of the training batch that a mixed source takes. None for a task's own data, which take the rest.
        batch_size: global size of a side batch; None takes the size of the training batch.
        keys: sample keys to keep (a sequence, or the path of a text file with one key a line). None keeps all.
        augment: whether the training transform (random crops and the like) is applied. A source that is cached as
            features must not be augmented.
        fields: batch key -> file extensions to read it from, in order of preference. None uses the standard ones
            (image: jpg jpeg png webp; audio: wav flac ogg mp3; text: txt json; labels: cls).
        labels: class label in the shards -> label in the task, for sources that hold more classes than the task.
        ordered: take the samples in the order of the shards instead of shuffled (task-free streams).
        task: the task of the stream whose data these are, where another one trains on them: rows keep its ``domain``,
            and with it their labels and their language. None: the task at hand.
        stream: read the shards from their beginnings to their ends, over and over, and make no index. For training
            alone, and for shards that cannot be indexed; those that begin with ``pipe:`` are read so in any case.
        share_schedule: factor on `share` over the steps of the task that trains on it; it is asked when a segment
            begins, and 0 leaves the source out of the segment.
    """

    shards: Sequence[str]
    name: str = "train"
    role: Role = "mixed"
    share: float | None = None
    batch_size: int | None = None
    keys: Sequence[str] | str | None = None
    augment: bool = True
    fields: Mapping[str, Sequence[str]] | None = None
    labels: Mapping[int, int] | None = None
    ordered: bool = False
    task: str | None = None
    stream: bool = False
    share_schedule: Schedule | None = None

    def __post_init__(self) -> None:
        if isinstance(self.shards, str) or not self.shards:
            raise ConfigError(f"source '{self.name}': `shards` must be a list with at least one tar file")
        if self.role not in ("mixed", "side"):
            raise ConfigError(f"source '{self.name}': role '{self.role}' is neither 'mixed' nor 'side'")
        if self.share is not None and not 0.0 < self.share <= 1.0:
            raise ConfigError(f"source '{self.name}': share {self.share} is outside (0, 1]")
        if self.role == "side" and self.share is not None:
            raise ConfigError(
                f"source '{self.name}': a side source has a batch of its own; give `batch_size`, not `share`"
            )
        if self.share_schedule is not None and self.share is None:
            raise ConfigError(f"source '{self.name}': `share_schedule` is a factor on `share`; give a share too")
        if self.is_stream and self.keys is not None:
            raise ConfigError(f"source '{self.name}': `keys` are found in an index, and a stream has none")

    @property
    def is_stream(self) -> bool:
        """Whether it is read as a stream, without an index."""
        return self.stream or any(shard.startswith("pipe:") for shard in self.shards)

    @property
    def all(self) -> tuple[Source, ...]:
        """The source; of a joined one its parts too."""
        return (self,)


@dataclass(frozen=True)
class JoinedSource(Source):
    """Several sources that are drawn as one.

    Args:
        parts: the others; their own names, roles and shares do not count.
    """

    parts: Sequence[Source] = ()

    @property
    def all(self) -> tuple[Source, ...]:
        """The source and its parts."""
        return (self, *(whole for part in self.parts for whole in part.all))


@dataclass(frozen=True)
class Budget:
    """How long a task is trained. Exactly one of the four is given.

    Args:
        steps: optimizer steps.
        samples: training samples of all sources together, rounded up to whole batches.
        epochs: passes over the task's own data, rounded up to whole batches.
        tokens: training tokens, for modules whose batches have a fixed number of tokens.
    """

    steps: int | None = None
    samples: int | None = None
    epochs: float | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        given = {k: v for k, v in self._values().items() if v is not None}
        if len(given) != 1:
            names = ", ".join(given) or "none"
            raise ConfigError(f"budget: give exactly one of steps, samples, epochs, tokens (given: {names})")
        ((name, value),) = given.items()
        if value < 0 or not math.isfinite(value):
            raise ConfigError(f"budget: {name} is {value}; it must be 0 or more")

    def _values(self) -> dict[str, float | None]:
        return {"steps": self.steps, "samples": self.samples, "epochs": self.epochs, "tokens": self.tokens}

    def resolve(self, batch_size: int, own_samples: int, own_per_batch: int, sample_tokens: int | None = None) -> int:
        """Optimizer steps of this budget.

        Args:
            batch_size: samples of one optimizer step over all ranks, sources and accumulated batches.
            own_samples: size of the task's own data.
            own_per_batch: how many samples of one step are the task's own.
            sample_tokens: tokens of one sample, where the module's samples have a fixed length.

        Raises:
            ConfigError: `tokens` was given and the module has no fixed length.
        """
        if self.steps is not None:
            return self.steps
        if self.samples is not None:
            return math.ceil(self.samples / batch_size)
        if self.epochs is not None:
            # 1.1 x 100 is a little more than 110 in floating point, which is no further step.
            return math.ceil(self.epochs * own_samples / own_per_batch * (1 - 1e-12))
        assert self.tokens is not None
        if sample_tokens is None:
            raise ConfigError(
                "budget: `tokens` needs a module with a fixed sequence length; give steps, samples or epochs"
            )
        return math.ceil(self.tokens / (batch_size * sample_tokens))

    def __str__(self) -> str:
        ((name, value),) = ((k, v) for k, v in self._values().items() if v is not None)
        return f"{value:g} {name}" if name == "epochs" else f"{value} {name}"


@dataclass(frozen=True)
class Task:
    """One stage of a stream.

    Args:
        name: unique in the stream.
        train: the task's own data. Several sources are concatenated.
        budget: how long it is trained.
        evaluates: the evaluation set that measures this task; None when there is none. It is the column of the score
            matrix that this task trains.
        class_names: names of the classes, in the order of the labels, or the path of a text file with one name a line;
            None for data without labels.
        templates: prompt templates with one ``{}`` for the class name. Training uses the first one.
        language: BCP 47 tag of the task's texts, for modules that ask.
        domain: free name of the data's domain; it reaches the batch as the task's position under ``domain``.
        lr_scale: factor on the module's learning rate (MTIL trains two of its tasks with five times the rate).
        schedule: factor on the learning rate over this task's steps (re-warming, a constant rate), in place of the
            module's.
        mix: further sources that share the task's batches by their shares: earlier or pretraining data, replayed.
        segment: cut the task every so many steps: evaluate, ask strategies for sources again. None: no cuts.
    """

    name: str
    train: Sequence[Source]
    budget: Budget
    evaluates: str | None = None
    class_names: Sequence[str] | str | None = None
    templates: Sequence[str] = ("{}",)
    language: str | None = None
    domain: str | None = None
    lr_scale: float = 1.0
    schedule: Schedule | None = None
    mix: Sequence[Source] = ()
    segment: int | None = None

    def __post_init__(self) -> None:
        if not self.train:
            raise ConfigError(f"task '{self.name}': `train` names no source")
        if any(s.role != "mixed" or s.share is not None for s in self.train):
            raise ConfigError(f"task '{self.name}': own data are mixed sources without a share (they take the rest)")
        if any(s.role != "mixed" or s.share is None for s in self.mix):
            raise ConfigError(f"task '{self.name}': each source of `mix` needs a `share` of the batch")
        if self.segment is not None and self.segment < 1:
            raise ConfigError(f"task '{self.name}': segment {self.segment} is not a positive number of steps")
        if self.segment is None and any(s.share_schedule is not None for s in self.mix):
            raise ConfigError(
                f"task '{self.name}': shares that follow a schedule change at segments; give it `segment`"
            )
        object.__setattr__(self, "class_names", _names(f"task '{self.name}'", self.class_names))
        _check_templates(f"task '{self.name}'", self.templates)

    @property
    def is_stream(self) -> bool:
        """Whether its own data are read as a stream, without an index and of unknown size."""
        return any(source.is_stream for source in self.train)


class TaskSamples(NamedTuple):
    """What a task's own data hold, out of the index alone, in the order of a pass over them.

    Attributes:
        sources: for each sample the number of its source among the task's own.
        keys: sample keys.
        labels: class labels in the task's numbering; None where a source has none.
    """

    sources: Sequence[int]
    keys: Sequence[str]
    labels: Sequence[int] | None


@dataclass(frozen=True)
class EvalSet:
    """Named held-out data with a probe.

    Args:
        name: unique in the stream; the column's name in the score matrix.
        source: the data. Every sample is used exactly once.
        probe: kind of measurement (``zero_shot``, ``retrieval``, ...); a module says which kinds it can do.
        class_names: candidates of a classification, in the order of the labels, or the path of a text file with one
            name a line.
        templates: prompt templates with one ``{}``; their embeddings are averaged.
        group: where reports put the column. ``held_out`` columns make up retention; columns that a task trains
            are found through `Task.evaluates` whatever their group.
        options: keyword arguments of the probe (for instance ``k`` of retrieval).
        subset: samples that `validate` and segments use (a fixed choice); None uses all.
    """

    name: str
    source: Source
    probe: str = "zero_shot"
    class_names: Sequence[str] | str | None = None
    templates: Sequence[str] = ("{}",)
    group: str = HELD_OUT
    options: Mapping[str, Any] = field(default_factory=dict)
    subset: int | None = None

    def __post_init__(self) -> None:
        if self.subset is not None and self.subset < 1:
            raise ConfigError(f"evaluation set '{self.name}': subset {self.subset} is not a positive number of samples")
        if self.source.is_stream:
            raise ConfigError(
                f"evaluation set '{self.name}': its source is a stream, and an evaluation needs an index to use every "
                "sample once; fetch the shards"
            )
        object.__setattr__(self, "class_names", _names(f"evaluation set '{self.name}'", self.class_names))
        _check_templates(f"evaluation set '{self.name}'", self.templates)


class Stream:
    """The ordered tasks and the evaluation sets measured before the first task and after each one.

    Args:
        name: name of the stream, recorded in reports.
        tasks: the stages, in order.
        evals: evaluation sets; all are measured at every row of the score matrix.
        sources: further named sources that strategies may ask for (a reference set, pretraining data).
        protocol: one paragraph for the report: what is trained, what is held out, what the numbers mean.

    Raises:
        ConfigError: no task, or two tasks or evaluation sets of one name, or a task that names an unknown set.
    """

    def __init__(
        self,
        name: str,
        tasks: Sequence[Task],
        evals: Sequence[EvalSet] = (),
        sources: Mapping[str, Source] | None = None,
        protocol: str = "",
    ) -> None:
        self.name = name
        self.tasks = tuple(tasks)
        self.evals = tuple(evals)
        self.sources = dict(sources or {})
        self.protocol = protocol
        if not self.tasks:
            raise ConfigError(f"stream '{name}' has no tasks; give at least one under `tasks`")
        _check_unique(f"stream '{name}'", "tasks", (t.name for t in self.tasks))
        _check_unique(f"stream '{name}'", "evaluation sets", (e.name for e in self.evals))
        columns = {e.name for e in self.evals}
        for task in self.tasks:
            if task.evaluates is not None and task.evaluates not in columns:
                hint = near(task.evaluates, columns)
                raise ConfigError(f"task '{task.name}' evaluates '{task.evaluates}', which the stream lacks; {hint}")

    def source(self, name: str) -> Source:
        """A named source of the stream, for strategies that ask for one.

        Raises:
            ConfigError: the stream has no source of that name.
        """
        if name not in self.sources:
            raise ConfigError(f"stream '{self.name}' has no source '{name}'; {near(name, self.sources)}")
        return self.sources[name]

    def columns(self) -> list[str]:
        """Names of the evaluation sets, in order: the columns of the score matrix."""
        return [e.name for e in self.evals]

    def trained_columns(self) -> list[str | None]:
        """For each task the column that it trains, or None."""
        return [t.evaluates for t in self.tasks]

    def position(self, task: Task) -> int:
        """The task's place in the stream, from 0."""
        return next(i for i, t in enumerate(self.tasks) if t.name == task.name)

    def with_tasks(self, tasks: Iterable[Task]) -> Stream:
        """The same stream with other tasks."""
        return Stream(self.name, tuple(tasks), self.evals, self.sources, self.protocol)

    def joint(self, name: str = "joint") -> Stream:
        """All tasks' data as one task: the usual upper bound. Class names and label spaces must agree.

        Raises:
            ConfigError: the tasks' class names differ, or their budgets are of different kinds.
        """
        first = self.tasks[0]
        if any(t.class_names != first.class_names for t in self.tasks):
            raise ConfigError(f"stream '{self.name}': tasks with different class names cannot be joined")
        train = [replace(s, name=f"{t.name}/{s.name}") for t in self.tasks for s in t.train]
        return self.with_tasks([replace(first, name=name, train=train, budget=_sum(self.tasks), evaluates=None)])

    def __repr__(self) -> str:
        return f"Stream({self.name!r}, {len(self.tasks)} tasks, {len(self.evals)} evaluation sets)"


def _sum(tasks: Sequence[Task]) -> Budget:
    budgets = [t.budget for t in tasks]
    for kind in ("steps", "samples", "tokens"):
        if all(getattr(b, kind) is not None for b in budgets):
            return Budget(**{kind: sum(getattr(b, kind) for b in budgets)})
    epochs = {b.epochs for b in budgets}
    if len(epochs) == 1 and None not in epochs:
        return budgets[0]
    raise ConfigError("joint: the tasks' budgets are of different kinds; give all of them in steps or samples")


def _check_unique(where: str, what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ConfigError(f"{where} has two {what} named '{name}'; names must be unique")
        if not name:
            raise ConfigError(f"{where}: one of the {what} has an empty name")
        seen.add(name)


def _names(where: str, names: Sequence[str] | str | None) -> tuple[str, ...] | None:
    if names is None:
        return None
    if isinstance(names, str):
        try:
            names = Path(names).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{where}: class names cannot be read from '{names}' ({error})") from error
    if not names:
        raise ConfigError(f"{where}: `class_names` is empty; give at least one name")
    for i, name in enumerate(names):
        if not name.strip():
            raise ConfigError(f"{where}: class name {i} is empty")
    return tuple(names)


def _check_templates(where: str, templates: Sequence[str]) -> None:
    if isinstance(templates, str) or not templates:
        raise ConfigError(f"{where}: `templates` must be a list with at least one template")
    for template in templates:
        if template.count("{}") != 1:
            raise ConfigError(f"{where}: template '{template}' must contain {{}} exactly once, for the class name")
