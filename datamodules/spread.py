"""Work in several processes: results in order, a bounded number ahead, progress on a terminal."""

from __future__ import annotations

import multiprocessing
import os
from argparse import ArgumentParser, ArgumentTypeError
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

from tqdm import tqdm

from mmcl.errors import RunError

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
        results = map(function, tasks) if workers == 0 else _parallel(function, tasks, workers)
        for result in results:
            bar.update()
            yield result


def _parallel(function: Callable[[Task], Result], tasks: Iterable[Task], workers: int) -> Iterator[Result]:
    # Fork, as the loader's workers: a fresh process would import torch for seconds.
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork"))
    waiting = iter(tasks)
    ahead: deque[tuple[Task, Future[Result]]] = deque()
    try:
        while True:
            for task in islice(waiting, 2 * workers - len(ahead)):
                ahead.append((task, pool.submit(function, task)))
            if not ahead:
                return
            yield ahead.popleft()[1].result()
    except BrokenProcessPool as error:
        raise RunError(
            "a worker process died, in a decoder or for lack of memory; run again with --workers 0 to see where"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
