"""CLIP on coloured squares, as a case for the tests of all modules."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import tiny

from mmcl import Budget, EvalSet, Source, Stream, Task
from mmcl.modules import CLIPModule
from mmcl.modules.base import Module


@cache
def _model() -> Path:
    return tiny.write_model(Path(tempfile.mkdtemp()) / "model")


def module() -> Module:
    return CLIPModule(f"local-dir:{_model()}", random_init=True, lr=0.01)


def stream(folder: Path) -> Stream:
    tiny.build(folder)

    def source(name: str) -> Source:
        return Source([str(folder / f"{name}.tar")])

    tasks = [Task(name, [source(name)], Budget(steps=6), evaluates=name) for name in ("dots", "stripes")]
    evals = [EvalSet(name, source(name), "retrieval", group="trained") for name in ("dots", "stripes")]
    sources = {"reference": Source([str(folder / "reference.tar")], augment=False)}
    return Stream("clip", tasks, [*evals, EvalSet("held", source("held"), "retrieval")], sources)


CASES: dict[str, tuple[Callable[[], Module], Callable[[Path], Stream]]] = {"clip": (module, stream)}
