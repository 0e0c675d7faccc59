"""MTIL: eleven data sets one after another, each measured by zero-shot classification after every task.

Zheng et al., "Preventing Zero-Shot Transfer Degradation in Continual Learning of Vision-Language Models", ICCV 2023.
Names, sizes, orders and templates are in ``mtil.json``.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, Literal

from mmcl.benchmarks.folders import DataFolder
from mmcl.errors import ConfigError, near
from mmcl.stream import Budget, EvalSet, Source, Stream, Task

DATA = Path(__file__).with_suffix(".json")
PROTOCOL = (
    "MTIL, order {order}: {tasks} data sets one after another, {steps} steps each, trained with the first template of "
    "a data set and measured on its whole test split among its own class names, templates averaged. Every set is "
    "measured before the first task and after each one: cells above the diagonal make up Transfer. Class names are "
    "those of each folder's classes.txt. Test sizes that differ from the published ones: {sizes}."
)


def mtil(
    root: str = "data/mtil",
    order: Literal["I", "II"] = "I",
    steps: int = 1000,
    reference: str | None = None,
) -> Stream:
    """The eleven data sets of MTIL out of folders of shards.

    Args:
        root: holds a folder for each data set (``aircraft``, ``caltech101``, ...), as `mmcl shards write` leaves it:
            ``train-*.tar``, ``test-*.tar`` and ``classes.txt``.
        order: ``I``, alphabetical, or ``II``.
        steps: optimizer steps of each task; 1,000 in the paper, with batches of 64.
        reference: folder of the reference set (``train-*.tar`` with pictures and captions) for strategies such as ZSCL,
            which asks for the stream's source ``reference``.

    Raises:
        ConfigError: an unknown order, or a folder that is missing or incomplete.
    """
    orders = _data()["orders"]
    if order not in orders:
        raise ConfigError(f"mtil: order '{order}' is unknown; {near(order, orders)}")
    folders = {name: DataFolder(Path(root).expanduser() / name, "mtil") for name in orders[order]}
    tasks, columns, sizes = [], [], []
    for name, folder in folders.items():
        known = _data()["datasets"][name]
        names, templates = folder.class_names(known["classes"]), known["templates"]
        own = Source(folder.shards("train"), name=name)
        tasks.append(
            Task(name, [own], Budget(steps=steps), name, names, templates, domain=name, lr_scale=known["lr_scale"])
        )
        measured = Source(folder.shards("test"), name=name, augment=False)
        columns.append(EvalSet(name, measured, "zero_shot", names, templates, group="task"))
        if folder.samples("test") not in (None, known["test"]):
            sizes.append(f"{name} {folder.samples('test')} for {known['test']}")
    sources = {} if reference is None else {"reference": _reference(reference)}
    protocol = PROTOCOL.format(order=order, tasks=len(tasks), steps=steps, sizes=", ".join(sizes) or "none known")
    return Stream(f"mtil-{order}", tasks, columns, sources, protocol)


def _reference(folder: str) -> Source:
    shards = DataFolder(Path(folder).expanduser(), "mtil").shards("train")
    return Source(shards, name="reference", role="side", augment=False)


@cache
def _data() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DATA.read_text(encoding="utf-8"))
    return found
