"""Shards, a model and a config for processes that are signalled and killed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny

ZSCL = {"class_path": "ZSCL", "init_args": {"interval": 2, "consolidation": 0.01}}


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards and model."""
    folder = tmp_path_factory.mktemp("place")
    tiny.build(folder)
    return folder


@pytest.fixture(scope="session")
def config_in(place: Path) -> Callable[..., Path]:
    """A config in a folder, of so many steps, with ZSCL and further strategies; further keys by their dotted names."""

    def write(folder: Path, *strategies: dict[str, Any], steps: tuple[int, int] = (8, 6), **changes: Any) -> Path:
        settings = tiny.config(place, steps) | {"strategies": [ZSCL, *strategies]}
        dotted = {key.replace("__", "."): value for key, value in changes.items()}
        return tiny.write_config(folder, settings, dotted, name="system")

    return write


@pytest.fixture
def config(config_in: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """A config in the test's own folder."""
    return partial(config_in, tmp_path)
