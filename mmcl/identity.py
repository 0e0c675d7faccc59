"""What makes two runs from Python the same: all that decides a result, as plain values that no process changes."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import lightning.pytorch as pl
from torch import nn

from mmcl.outputs import Recorded
from mmcl.strategy import Strategy

TRAINER = ("precision", "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm")
DATA = ("batch_size", "window", "bucket", "stream_buffer")


def identity(data: Any, module: Any, strategies: Sequence[Strategy], trainer: pl.Trainer, **options: Any) -> Any:
    """The identity of a run.

    Args:
        data: the stream's data.
        module: the module to train.
        strategies: as they were given.
        trainer: what of it changes the result counts.
        **options: further ones that change the result.
    """
    stream = data.stream
    return {
        **{name: plain(value) for name, value in options.items()},
        "model": plain(module),
        "strategies": [plain(strategy) for strategy in strategies],
        "data": {
            **{name: getattr(data, name) for name in DATA if hasattr(data, name)},
            "tasks": [plain(task) for task in stream.tasks],
            "evals": [plain(evalset) for evalset in stream.evals],
            "sources": plain(stream.sources),
        },
        "trainer": {name: plain(getattr(trainer, name)) for name in TRAINER},
    }


def plain(value: Any) -> Any:
    """A value as plain ones, the same in every process: no address is in it, and nothing is left out."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    if isinstance(value, functools.partial):
        return {"partial": plain(value.func), "args": plain(value.args), "keywords": plain(value.keywords)}
    name = _name(value if hasattr(value, "__qualname__") else type(value))
    if isinstance(value, Recorded):
        return {"class": name, "arguments": plain(getattr(value, "arguments", {}))}
    if is_dataclass(value) and not isinstance(value, type):
        return {"class": name, **{field.name: plain(getattr(value, field.name)) for field in fields(value)}}
    if isinstance(value, nn.Module):
        own = {k: v for k, v in vars(value).items() if not k.startswith("_") and k != "training" and _simple(v)}
        return {"class": name, **own, "modules": plain(dict(value.named_children()))}
    if hasattr(value, "__qualname__"):
        return name
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _simple(value: Any) -> bool:
    """Whether it is a setting, and nothing that could lead back to who holds it."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return all(v is None or isinstance(v, (bool, int, float, str)) for v in values)


def _name(kind: Any) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
