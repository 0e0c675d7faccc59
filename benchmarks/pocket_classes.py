"""Class-incremental streams on real pictures: Fashion-MNIST in five tasks, or with the digits of MNIST in ten.

Xiao, Rasul and Vollgraf (2017), arXiv:1708.07747; LeCun, Cortes and Burges (1998). The pictures come with
`mmcl data get fashion-mnist mnist`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from mmcl import assets
from mmcl.datamodules.index import load_index
from mmcl.errors import ConfigError, near
from mmcl.stream import Budget, EvalSet, Source, Stream, Task

CLASSES = {
    "fashion-mnist": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    "mnist": tuple(f"digit {label}" for label in range(10)),
}
"""Data set -> its ten classes in the order of their labels."""
TITLES = {"fashion-mnist": "Fashion-MNIST's ten classes", "mnist": "MNIST's ten digits"}
TEST = {"fashion-mnist": 1_000, "mnist": 892}
"""Data set -> test pictures of its rarest class."""
TRAIN = {"fashion-mnist": 6_000, "mnist": 5_421}
"""Data set -> training pictures of its rarest class."""
STEPS = 40
"""Optimizer steps of a task."""
PROTOCOL = (
    "Class-incremental. {sets} come {each} at a time, in the order of their labels: each task trains on {train}, "
    "drawn by the seed. A task's column holds test pictures of its classes; the model is not "
    "told the task. Columns of classes that are still to come are 0, and nothing is held out: what is lost shows in "
    "the columns of earlier tasks. The columns use {test} pictures of each class."
)
FEW = "the first {} training pictures of each of its classes"


def pocket_classes(
    steps: int = STEPS,
    test: int = 250,
    classes_per_task: int = 2,
    sets: Sequence[str] = ("fashion-mnist",),
    train: int | None = None,
) -> Stream:
    """Fashion-MNIST, two classes at a time.

    Args:
        steps: optimizer steps of each task.
        test: how many pictures of each class are measured, the first ones of the test set.
        classes_per_task: how many classes come with a task.
        sets: data sets, one after the other: ``fashion-mnist`` and ``mnist``.
        train: how many pictures of each class are trained on, the first ones of the training set; None: all.

    Raises:
        ConfigError: a number or a set that cannot be, or the pictures were not fetched.
    """
    for name in sets:
        if name not in CLASSES:
            raise ConfigError(f"pocket_classes: {name!r} is no data set of it; {near(name, CLASSES)}")
        for what, number, most in (("test", test, TEST[name]), ("train", train, TRAIN[name])):
            if number is not None and not 1 <= number <= most:
                has = f"the {what} set of {name} has 1 to {most} pictures of each class"
                raise ConfigError(f"pocket_classes: {what} is {number}; {has}")
    if not sets or len(set(sets)) < len(sets):
        raise ConfigError(f"pocket_classes: sets is {list(sets)}; name each set once, and at least one")
    if not 1 <= classes_per_task <= 10:
        raise ConfigError(f"pocket_classes: classes_per_task is {classes_per_task}; take 1 to 10")
    groups = [(s, range(i, min(i + classes_per_task, 10))) for s in sets for i in range(0, 10, classes_per_task)]
    return Stream(
        "pocket_classes",
        [_task(*group, steps, train) for group in groups],
        [_column(*group, test) for group in groups],
        protocol=PROTOCOL.format(
            sets=" and then ".join(TITLES[s] for s in sets),
            each=classes_per_task,
            train="all training pictures of its classes" if train is None else FEW.format(train),
            test=test,
        ),
    )


def _task(data: str, group: Sequence[int], steps: int, train: int | None) -> Task:
    name = _name(data, group)
    keys = None if train is None else _keys(data, "train", group, train)
    source = Source(_shards(data, "train"), name=name, keys=keys, labels=_labels(group))
    return Task(name, [source], Budget(steps=steps), name, class_names=_names(data, group))


def _column(data: str, group: Sequence[int], test: int) -> EvalSet:
    name = _name(data, group)
    keys = _keys(data, "test", group, test)
    source = Source(_shards(data, "test"), name=name, keys=keys, augment=False, labels=_labels(group))
    return EvalSet(name, source, "classification", _names(data, group), group="task")


def _keys(data: str, split: str, group: Sequence[int], number: int) -> list[str]:
    """The keys of the first pictures of each class, in the order of the published set."""
    return [key for label in group for key in _by_class(data, split)[label][:number]]


@cache
def _by_class(data: str, split: str) -> dict[int, list[str]]:
    """Label -> the keys of its pictures."""
    found: dict[int, list[str]] = {label: [] for label in range(10)}
    for key, label in sorted(pair for shard in _shards(data, split) for pair in _members(shard)):
        found[label].append(key)
    return found


@cache
def _members(shard: str) -> list[tuple[str, int]]:
    index = load_index(shard)
    labels = index.value[index.find(["cls"])]
    return [(index.key(i), int(label)) for i, label in enumerate(labels)]


def _shards(data: str, split: str) -> list[str]:
    return [str(file) for file in sorted(assets.folder(data).glob(f"{split}-*.tar"))]


def _labels(group: Sequence[int]) -> dict[int, int]:
    return {label: i for i, label in enumerate(group)}


def _names(data: str, group: Sequence[int]) -> list[str]:
    return [CLASSES[data][label] for label in group]


def _name(data: str, group: Sequence[int]) -> str:
    return " + ".join(name.lower().replace("/top", "") for name in _names(data, group))
