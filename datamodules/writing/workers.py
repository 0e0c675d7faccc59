"""A function over many items in several processes, with the results in the order of the items."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

from mmcl.errors import RunError

T = TypeVar("T")
R = TypeVar("R")

CHUNK = 8
"""Items that go to a process at a time: enough to hide the way there, few enough that little waits in memory."""
AHEAD = 4
"""Chunks for each process that are under way or wait to be taken."""


def ordered_map(function: Callable[[T], R], items: Iterable[T], workers: int) -> Generator[R, None, None]:
    """Results in the order of the items, for any number of workers; only a bounded number of items is held.

    Args:
        function: what to do; it is called in the workers, which are forks of this process.
        items: taken one after another, as they are needed.
        workers: processes; 0 calls the function here.

    Raises:
        RunError: a worker died.
    """
    if workers == 0:
        yield from map(function, items)
        return
    remaining = iter(items)
    context = multiprocessing.get_context("fork")  # a new interpreter would import torch: ten seconds a worker
    pool = ProcessPoolExecutor(workers, context, _begin)
    waiting: deque[Future[list[R]]] = deque()
    try:
        while True:
            while len(waiting) < workers * AHEAD and (chunk := list(islice(remaining, CHUNK))):
                waiting.append(pool.submit(_each, function, chunk))
            if not waiting:
                return
            yield from waiting.popleft().result()
    except BrokenProcessPool as error:
        raise RunError(
            "a worker process died, perhaps for want of memory; run the same command again, with fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _each(function: Callable[[T], R], chunk: list[T]) -> list[R]:
    return [function(item) for item in chunk]


def _begin() -> None:
    """A worker leaves interrupts to its parent, and ends when the parent was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
