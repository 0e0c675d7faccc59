"""mmcl keeps a pretrained multimodal model up to date: it trains on a stream of tasks and proves what was kept.

Nothing heavy is imported before it is used, so that `mmcl --help` and `mmcl list` answer at once.
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmcl.api import run
    from mmcl.strategy import StepContext, Strategy
    from mmcl.stream import Budget, EvalSet, Source, Stream, Task

    __version__: str

__all__ = ["Budget", "EvalSet", "Source", "StepContext", "Strategy", "Stream", "Task", "__version__", "run"]

_HOMES = {
    "Budget": "mmcl.stream",
    "EvalSet": "mmcl.stream",
    "Source": "mmcl.stream",
    "StepContext": "mmcl.strategy",
    "Strategy": "mmcl.strategy",
    "Stream": "mmcl.stream",
    "Task": "mmcl.stream",
    "run": "mmcl.api",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return metadata.version("mmcl")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'mmcl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
