"""Fashion-MNIST in five tasks of two classes: a class-incremental stream on real pictures.

Xiao, Rasul and Vollgraf (2017), arXiv:1708.07747; the pictures come with `mmcl data get fashion-mnist`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from mmcl import assets
from mmcl.datamodules.index import load_index
from mmcl.errors import ConfigError
from mmcl.stream import Budget, EvalSet, Source, Stream, Task

ASSET = "fashion-mnist"
CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
TEST = 1_000
STEPS = 40
"""Optimizer steps of a task."""
PROTOCOL = (
    "Class-incremental. Fashion-MNIST's ten classes come two at a time, in the order of their labels: each task trains "
    "on all 12,000 training pictures of its two classes, drawn by the seed. A task's column holds test pictures of its "
    "two classes; the model is not told the task. Columns of classes that are still to come are 0, and nothing is held "
    "out: what is lost shows in the columns of earlier tasks."
)


def pocket_classes(steps: int = STEPS, test: int = 250, classes_per_task: int = 2) -> Stream:
    """Fashion-MNIST, two classes at a time.

    Args:
        steps: optimizer steps of each task.
        test: how many pictures of each class are measured, the first ones of the test set; it has 1,000.
        classes_per_task: how many classes come with a task.

    Raises:
        ConfigError: a number that cannot be, or the pictures were not fetched.
    """
    if not 1 <= test <= TEST:
        raise ConfigError(f"pocket_classes: test is {test}; the test set has 1 to {TEST} pictures of each class")
    if not 1 <= classes_per_task <= len(CLASSES):
        raise ConfigError(f"pocket_classes: classes_per_task is {classes_per_task}; take 1 to {len(CLASSES)}")
    groups = [range(i, min(i + classes_per_task, len(CLASSES))) for i in range(0, len(CLASSES), classes_per_task)]
    tasks = [_task(group, steps) for group in groups]
    protocol = f"{PROTOCOL} The columns use {test} pictures of each class."
    return Stream("pocket_classes", tasks, [_column(group, test) for group in groups], protocol=protocol)


def _task(group: Sequence[int], steps: int) -> Task:
    source = Source(_shards("train"), name=_name(group), labels=_labels(group))
    return Task(_name(group), [source], Budget(steps=steps), _name(group), class_names=_names(group))


def _column(group: Sequence[int], test: int) -> EvalSet:
    keys = [key for label in group for key in _by_class()[label][:test]]
    source = Source(_shards("test"), name=_name(group), keys=keys, augment=False, labels=_labels(group))
    return EvalSet(_name(group), source, "classification", _names(group), group="task")


def _by_class() -> dict[int, list[str]]:
    """Label -> the keys of its test pictures, in the order of the published test set."""
    found: dict[int, list[str]] = {label: [] for label in range(len(CLASSES))}
    for key, label in sorted(pair for shard in _shards("test") for pair in _members(shard)):
        found[label].append(key)
    return found


@cache
def _members(shard: str) -> list[tuple[str, int]]:
    index = load_index(shard)
    labels = index.value[index.find(["cls"])]
    return [(index.key(i), int(label)) for i, label in enumerate(labels)]


def _shards(split: str) -> list[str]:
    return [str(file) for file in sorted(assets.folder(ASSET).glob(f"{split}-*.tar"))]


def _labels(group: Sequence[int]) -> dict[int, int]:
    return {label: i for i, label in enumerate(group)}


def _names(group: Sequence[int]) -> list[str]:
    return [CLASSES[label] for label in group]


def _name(group: Sequence[int]) -> str:
    return " + ".join(name.lower().replace("/top", "") for name in _names(group))
