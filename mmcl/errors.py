"""Errors that speak to the user: one line that says what is wrong, where, and what to do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class MmclError(ValueError):
    """Something the user can mend. The command line prints it as one line, without a stack trace."""


class ConfigError(MmclError):
    """Refused at start-up: nothing was written, exit code 2."""


class RunError(MmclError):
    """A fault while running: the run folder can be continued, exit code 1."""


class SampleError(RunError):
    """A sample that a module cannot use. Training counts it, names it and takes the next one; evaluation stops."""


SPENT = ("out of memory", "not enough memory", "can't allocate memory")
"""Words of torch's about memory that ran out."""
_ASKED = re.compile(r"tried to allocate ([\d.]+) ?(\w+)", re.IGNORECASE)


def out_of_memory(error: BaseException) -> str:
    """What to say of an error by which memory ran out; nothing for other errors.

    torch has a class for a GPU's memory, and words in a `RuntimeError` for the machine's.
    """
    text = str(error)
    if not (isinstance(error, MemoryError) or any(words in text for words in SPENT)):
        return ""
    found = _ASKED.search(text)
    asked = ""
    if found:
        size = float(found[1]) / 2**30 if found[2] == "bytes" else float(found[1])
        asked = f": {size:.3g} {'GiB' if found[2] == 'bytes' else found[2]} were asked for"
    return f"out of memory{asked}; make data.batch_size, data.eval_batch_size or the sizes of strategies smaller"


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
