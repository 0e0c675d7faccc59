"""Image classifiers on coloured squares, as cases for the tests of all modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import tiny

from mmcl import Budget, EvalSet, Source, Stream, Task
from mmcl.datamodules.write import write_shard
from mmcl.modules import ImageClassifierModule
from mmcl.modules.base import Module

NAMES = (("red", "green"), ("blue", "grey"))
"""Class-incremental: the names of each task."""


def module(head: Literal["masked", "growing"], model: str, **settings: Any) -> Module:
    return ImageClassifierModule(
        model, random_init=True, head=head, image_size=32, crop=1.0, freeze_norm=False, lr=3e-3, **settings
    )


def source(folder: Path, name: str, first: int) -> Source:
    """The samples of one task's two classes."""
    return Source([str(folder / f"{name}.tar")], labels={first: 0, first + 1: 1})


def stream(folder: Path, broken: Sequence[int] = ()) -> Stream:
    """Two colours, then two others; the third column, of a task's classes in another style, is trained by none.

    Args:
        folder: for the shards.
        broken: numbers of training samples that are no pictures.
    """
    _write(folder, broken)
    tasks = [
        Task(f"task-{i}", [source(folder, "train", 2 * i)], Budget(steps=6), evaluates=f"set-{i}", class_names=names)
        for i, names in enumerate(NAMES)
    ]
    evals = [
        EvalSet(f"set-{i}", source(folder, "test", 2 * i), "classification", names, group="trained")
        for i, names in enumerate(NAMES)
    ]
    return Stream("classes", tasks, [*evals, EvalSet("held", source(folder, "held", 0), "classification", NAMES[0])])


def domains(folder: Path) -> Stream:
    """The same four classes in two styles."""
    _write(folder)
    names = [name for pair in NAMES for name in pair]

    def shards(name: str) -> Source:
        return Source([str(folder / f"{name}.tar")])

    tasks = [
        Task(name, [shards(name)], Budget(steps=6), evaluates=f"{name}-set", class_names=names)
        for name in ("train", "held")
    ]
    evals = [
        EvalSet(f"{name}-set", shards(name), "classification", names, group="trained") for name in ("train", "held")
    ]
    test = EvalSet("test", shards("test"), "classification", names, options={"metric": "task_top1"})
    return Stream("domains", tasks, [*evals, test])


def _write(folder: Path, broken: Sequence[int] = ()) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, style, count in (("train", "dots", 32), ("test", "dots", 12), ("held", "stripes", 16)):
        samples = list(_samples(style, count, seed=len(name)))
        for number in broken if name == "train" else ():
            samples[number]["png"] = b"no picture"
        write_shard(folder / f"{name}.tar", samples)


def _samples(style: str, count: int, seed: int) -> Iterator[dict[str, Any]]:
    for sample in tiny.pictures(style, count, seed):
        yield {key: value for key, value in sample.items() if key != "txt"}


CASES: dict[str, tuple[Callable[[], Module], Callable[[Path], Stream]]] = {
    "classes": (lambda: module("masked", "test_resnet"), stream),
    "classes-growing": (lambda: module("growing", "test_vit", train_classes="seen"), stream),
    "domains": (lambda: module("growing", "test_vit"), domains),
}
