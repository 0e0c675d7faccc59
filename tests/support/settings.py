"""How each strategy is tested: rows of one table, out of every file ``settings_*.py`` beside this one.

The environment variable MMCL_SETTINGS names further files, of strategies in a package of somebody's own.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmcl import Strategy

Build = Callable[[], Sequence[Strategy]]


@dataclass(frozen=True)
class Setting:
    """One strategy at values at which a few steps show what it does.

    Attributes:
        build: a new instance of it, in a list with whatever it cannot do without.
        cases: the kinds of module that it serves (names of `cases.found()`), the one that shows most first.
        changes: what of the network's effective weights a task may change, as a regular expression that is matched
            against the whole canonical name.
        off: the same strategy with its weight at 0, which trains exactly like no strategy; None where there is none.
        refuses: kind of module -> words of the error at start-up, for kinds that it cannot serve.
        same_start: row 0 of the score matrix is the pretrained model's.
        skips: property -> why it cannot hold, in a sentence for the reader. Properties are the names of the tests in
            ``tests/strategies/test_tester.py`` without ``test_``.
    """

    build: Build
    cases: Sequence[str] = ("classes",)
    changes: str = ".*"
    off: Build | None = None
    refuses: Mapping[str, str] = field(default_factory=dict)
    same_start: bool = True
    skips: Mapping[str, str] = field(default_factory=dict)


def files() -> list[Path]:
    """The files of the table; the folders of further ones can be imported from."""
    further = [Path(name).resolve() for name in os.environ.get("MMCL_SETTINGS", "").split(os.pathsep) if name]
    sys.path += [str(file.parent) for file in further if str(file.parent) not in sys.path]
    return [*sorted(Path(__file__).parent.glob("settings_*.py")), *further]


def found() -> dict[str, Setting]:
    """Name of a class (with ``/word`` for a second row of one class) -> how it is tested."""
    settings: dict[str, Setting] = {}
    for file in files():
        own: dict[str, Setting] = importlib.import_module(file.stem).SETTINGS
        assert not settings.keys() & own.keys(), f"{file.name}: a strategy of this name is there already"
        settings |= own
    return settings
