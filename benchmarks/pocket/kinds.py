"""Kinds of emoji, a few at a time: a class-incremental stream on embedded pictures, and how `pocket-vit` was made.

`pocket-vit` was pretrained to tell the *names* of all concepts apart in Google's and Fluent's styles. The stream asks
for their *kinds* (Unicode's subgroups: birds, musical instruments, arrows...) in Twitter's style, which pretraining
never saw.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from mmcl.benchmarks.folders import joined
from mmcl.benchmarks.pocket.concepts import PRETRAINING_STYLES, STREAM_STYLE, concepts, missing, picture_keys, shard
from mmcl.errors import ConfigError
from mmcl.stream import Budget, EvalSet, Source, Stream, Task

KINDS = 50
"""The kinds with the most concepts, country flags aside (they are a seventh of all concepts)."""
LEFT_OUT = "country flag"
STEPS = 40
"""Optimizer steps of a task."""
PROTOCOL = (
    "Class-incremental. The {kinds} kinds of emoji with the most concepts (country flags aside) come {each} at a time, "
    "in an order drawn by the seed. The concepts of each group are split 50/50 by the seed: a task trains on the "
    "Twitter-style pictures of first halves, its column measures those of second halves. The model is not told the "
    "task. Columns of kinds that are still to come are 0, and nothing is held out: what is lost shows in the columns "
    "of earlier tasks."
)


def pocket_kinds(seed: int | None = None, classes_per_task: int = 5, steps: int = STEPS) -> Stream:
    """Fifty kinds of emoji in ten tasks, in an unseen drawing style.

    Args:
        seed: of the order of the kinds and of the split of their concepts; None takes the run's seed on the command
            line, and 0 in Python.
        classes_per_task: how many kinds come with a task.
        steps: optimizer steps of each task.

    Raises:
        ConfigError: a number of classes that cannot be.
    """
    if not 1 <= classes_per_task <= KINDS:
        raise ConfigError(f"pocket_kinds: classes_per_task is {classes_per_task}; take 1 to {KINDS}")
    seed = seed or 0
    order = _largest(KINDS)
    random.Random(f"{seed}/kinds").shuffle(order)
    tasks, columns = [], []
    for i in range(0, KINDS, classes_per_task):
        kinds, name = order[i : i + classes_per_task], f"kinds-{i // classes_per_task + 1}"
        own, measured = _sources(kinds, seed, first=True), _sources(kinds, seed, first=False)
        tasks.append(Task(name, own, Budget(steps=steps), name, class_names=kinds))
        columns.append(EvalSet(name, joined(name, measured), "classification", kinds, group="task"))
    protocol = PROTOCOL.format(kinds=KINDS, each=classes_per_task)
    return Stream("pocket_kinds", tasks, columns, protocol=protocol)


def pocket_names(steps: int = 2000) -> Stream:
    """One task that makes pocket-vit: the names of all concepts, in Google's and Fluent's styles.

    Args:
        steps: optimizer steps.
    """
    names = [record["label"] for records in concepts().values() for record in records]
    own = [source for style in PRETRAINING_STYLES for source in _named(style, augment=True)]
    measured = joined(STREAM_STYLE, _named(STREAM_STYLE, augment=False))
    column = EvalSet(STREAM_STYLE, measured, "classification", names)
    task = Task("names", own, Budget(steps=steps), class_names=names)
    protocol = "Pretraining of pocket-vit. The column names all concepts in a style that is not trained."
    return Stream("pocket_names", [task], [column], protocol=protocol)


def _largest(count: int) -> list[str]:
    sizes: dict[str, int] = {}
    for records in concepts().values():
        for record in records:
            sizes[record["kind"]] = sizes.get(record["kind"], 0) + 1
    kinds = [kind for kind in sizes if kind != LEFT_OUT]
    return sorted(kinds, key=lambda kind: (-sizes[kind], kind))[:count]


def _sources(kinds: Sequence[str], seed: int, first: bool) -> list[Source]:
    """The pictures of one half of these kinds, a source for each group that has some."""
    found = []
    for group, records in concepts().items():
        labels = {i: kinds.index(record["kind"]) for i, record in enumerate(records) if record["kind"] in kinds}
        wanted = {f"{STREAM_STYLE}-{records[i]['hexcode']}" for i in labels}
        keys = [key for key in picture_keys(group, seed, first) if key in wanted]
        if keys:
            found.append(Source([shard(STREAM_STYLE, group)], name=group, keys=keys, labels=labels, augment=first))
    return found


def _named(style: str, augment: bool) -> list[Source]:
    """All pictures of a style, a source for each group, labelled with the names of all concepts in turn."""
    found, first = [], 0
    for group, records in concepts().items():
        labels = {i: first + i for i, r in enumerate(records) if (style, r["hexcode"]) not in missing()}
        found.append(Source([shard(style, group)], name=f"{style}-{group}", labels=labels, augment=augment))
        first += len(records)
    return found
