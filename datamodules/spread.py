"""Work of a command in several processes, with progress on a terminal."""

from __future__ import annotations

import os
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from mmcl.datamodules.writing.workers import ordered_map

Task = TypeVar("Task")
Result = TypeVar("Result")


def add_workers(parser: ArgumentParser) -> None:
    """The option `--workers`."""
    cores = len(os.sched_getaffinity(0))
    parser.add_argument(
        "--workers",
        type=_count,
        default=cores,
        help=f"processes; 0 works in this one (default: one for each core, {cores})",
    )


def _count(text: str) -> int:
    if not text.isdecimal():
        raise ArgumentTypeError(f"{text!r} is no number of processes; 0 works in this one")
    return int(text)


def spread(
    function: Callable[[Task], Result], tasks: Iterable[Task], workers: int, what: str, total: int
) -> Iterator[Result]:
    """What the function makes of each task, in order.

    Args:
        function: of a module's top level.
        tasks: what it is given, one after another.
        workers: processes; 0 works in this one.
        what: for the bar: the name of the work.
        total: number of tasks.

    Raises:
        RunError: a process died, for instance in a decoder or because memory ran out.
    """
    with tqdm(total=total, desc=what, disable=None, leave=False) as bar:
        for result in ordered_map(function, tasks, workers, chunk=1):
            bar.update()
            yield result
