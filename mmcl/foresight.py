"""What a fit will ask of its data, task by task, looked at before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mmcl.compose import speaking
from mmcl.errors import ConfigError
from mmcl.outputs import MEMBERS, Objective
from mmcl.strategy import Batches, Strategy
from mmcl.stream import Source, Stream, Task


def foresee(stream: Stream, objective: Objective, strategies: Sequence[Strategy], data: Any, batches: Batches) -> None:
    """Refuse what some task of a fit cannot do, however late in the stream it stands.

    Args:
        stream: its tasks.
        objective: the module's.
        strategies: the flat list, each after its `setup`.
        data: the stream's data.
        batches: how they are made.

    Raises:
        ConfigError: names the task, the strategy or source, and what to do.
    """
    for task in stream.tasks:
        extra = list(task.mix)
        for strategy in strategies:
            _check_reads(task, strategy, data)
            if task is not stream.tasks[-1]:
                _check_keys(task, strategy, data)
            with speaking(strategy):
                asked = strategy.foresee(task, batches)
                for source in strategy.sources(task):  # a memory has none yet; its shards are those of earlier tasks
                    data.count(source)
            if "sources" in strategy.reads:
                _check_indexed(f"task '{task.name}'", asked, strategy)
            extra += asked
        check_shares(task, extra, data)
        if objective.of_one_task and data.plan(task, extra).steps:
            _check_labels_are_own(task, extra, objective, data)


def check_shares(task: Task, extra: Sequence[Source], data: Any) -> None:
    """Refuse shares that cannot be in some segment of a task.

    Args:
        task: the task.
        extra: mixed and side sources.
        data: the stream's data.

    Raises:
        ConfigError: they are above 1 together, too small for a sample, or change where a task is not cut.
    """
    steps = data.plan(task, extra).steps
    scheduled = [source for source in extra if source.share_schedule is not None]
    segment = cut_for_schedules(task, scheduled)
    if not scheduled:
        return
    if task.budget.epochs is not None:
        raise ConfigError(
            f"task '{task.name}': the share of source '{scheduled[0].name}' changes, so a budget in epochs says "
            "nothing; give steps or samples"
        )
    for begin in range(0, steps, segment):
        data.plan(task, sources_at(extra, begin, steps))


def cut_for_schedules(task: Task, sources: Sequence[Source]) -> int:
    """The length of a task's segments, at which shares that follow a schedule change; 0: it is not cut.

    Raises:
        ConfigError: it is not cut, and some share follows a schedule.
    """
    if task.segment is None and any(source.share_schedule is not None for source in sources):
        raise ConfigError(f"task '{task.name}': shares that follow a schedule change at segments; give it `segment`")
    return task.segment or 0


def sources_at(sources: Sequence[Source], step: int, steps: int) -> list[Source]:
    """Sources with the shares that they have from a step of a task on; those with a share of 0 are left out.

    Args:
        sources: of the task and of strategies.
        step: where a segment begins, counted from the task's start.
        steps: steps of the task.

    Raises:
        ConfigError: a schedule takes a share outside [0, 1].
    """
    found = []
    for source in sources:
        if source.share_schedule is None or source.share is None:
            found.append(source)
            continue
        share = source.share * source.share_schedule(step, steps)
        if not 0.0 <= share <= 1.0:
            raise ConfigError(
                f"source '{source.name}': its schedule makes the share {share:g} at step {step}; it must be in [0, 1]"
            )
        if share:
            found.append(replace(source, share=share, share_schedule=None))
    return found


def _check_reads(task: Task, strategy: Strategy, data: Any) -> None:
    """Refuse own data of a task that lack what a strategy goes through them for."""
    where, title = f"task '{task.name}'", strategy.title
    if strategy.reads - {"sources"}:
        _check_indexed(where, task.train, strategy)
    for part in (part for source in task.train for part in source.all if "labels" in strategy.reads):
        if not data.has_labels(part):
            raise ConfigError(
                f"{where}: the samples of {data.title(part)} have no labels, which {title} as it is set needs; "
                f"add a member such as {MEMBERS['labels']}, or set {title} otherwise"
            )


def _check_keys(task: Task, strategy: Strategy, data: Any) -> None:
    """Refuse own data of a task of which a later one could not find again what a strategy keeps."""
    for part in (part for source in task.train for part in source.all if "keys" in strategy.reads):
        key = data.double_key(part)
        if key is not None:
            raise ConfigError(
                f"task '{task.name}': two samples of {data.title(part)} have the key '{key}', and {strategy.title} "
                "finds samples by their keys; give the samples of all shards of a source different keys"
            )


def _check_indexed(where: str, sources: Sequence[Source], strategy: Strategy) -> None:
    for source in sources:
        if any(part.is_stream for part in source.all):
            raise ConfigError(
                f"{where}: source '{source.name}' is a stream, and {strategy.title} as it is set goes through "
                "it outside of training, which takes an index; fetch its shards and leave out `stream`"
            )


def _check_labels_are_own(task: Task, extra: Sequence[Source], objective: Objective, data: Any) -> None:
    """Refuse to mix rows with another task's labels into batches whose labels are read as the task's own."""
    for source in extra:
        others = [part for part in source.all if part.task not in (None, task.name)] if source.role == "mixed" else []
        for part in others:
            if data.has_labels(part):
                raise ConfigError(
                    f"task '{task.name}': source '{source.name}' has labels of task '{part.task}', and "
                    f"{type(objective).__name__} reads labels as those of the task at hand; take another objective, or "
                    "leave labels out of the `fields` of that source"
                )
