"""CLIP on coloured squares, two colours at a time, measured by their names, as a case for the tests of all modules."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import tiny

from mmcl import Budget, EvalSet, Source, Stream, Task
from mmcl.modules import CLIPModule
from mmcl.modules.base import Module

NAMES = (("red", "green"), ("blue", "grey"))
TEMPLATES = ("a photo of a {} square",)


@cache
def _model() -> Path:
    return tiny.write_model(Path(tempfile.mkdtemp()) / "model")


def module() -> Module:
    return CLIPModule(f"local-dir:{_model()}", random_init=True, lr=0.01)


def stream(folder: Path) -> Stream:
    """Two colours, then two others; the third column chooses among all of them, in another style."""
    tiny.build(folder)

    def source(name: str, first: int | None = None) -> Source:
        labels = None if first is None else {first: 0, first + 1: 1}
        return Source([str(folder / f"{name}.tar")], labels=labels)

    tasks = [
        Task(f"task-{i}", [source("dots", 2 * i)], Budget(steps=6), f"set-{i}", names, TEMPLATES)
        for i, names in enumerate(NAMES)
    ]
    evals = [
        EvalSet(f"set-{i}", source("held", 2 * i), "zero_shot", names, TEMPLATES, group="trained")
        for i, names in enumerate(NAMES)
    ]
    every = EvalSet("all", source("stripes"), "zero_shot", list(tiny.COLOURS), TEMPLATES)
    return Stream("clip-classes", tasks, [*evals, every])


CASES: dict[str, tuple[Callable[[], Module], Callable[[Path], Stream]]] = {"clip-classes": (module, stream)}
