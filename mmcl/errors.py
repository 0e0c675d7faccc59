"""Errors that speak to the user: one line that says what is wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MmclError(ValueError):
    """Something the user can mend. The command line prints it as one line, without a stack trace."""


class ConfigError(MmclError):
    """Refused at start-up: nothing was written, exit code 2."""


class RunError(MmclError):
    """A fault while running: the run folder can be continued, exit code 1."""


class SampleError(RunError):
    """A sample that a module cannot use. Training counts it, names it and takes the next one; evaluation stops."""


def near(name: str, known: Iterable[str], listed: str = "") -> str:
    """A hint for an unknown name: the nearest known ones, or all of them when none is near.

    Args:
        name: as it was typed; upper and lower case are alike.
        known: what there is.
        listed: the command that shows what there is, named instead where that would be long.
    """
    known = sorted(known)
    names = {other.casefold(): other for other in known}
    close = difflib.get_close_matches(name.casefold(), names, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(names[other] for other in close)}?"
    if listed:
        return f"`{listed}` shows them all"
    return f"known: {', '.join(known)}" if known else "none is known"
