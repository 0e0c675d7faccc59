"""Measuring by turns: every participant works in a process of its own, and only one of them works at a time.

What disturbs the machine then hits all participants alike, and ratios of blocks hold even where absolute figures do
not. The clock counts a process's CPU time, so that waiting costs nothing. On a shared machine the cost of one and the
same step drifts by several percent within seconds; a block is therefore made of short turns.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from mmcl.errors import RunError


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Args:
        blocks: blocks of each participant.
        steps: steps of a block.
        turn: steps until it is the next participant's turn; divides `steps`.
        warm_up: steps before the first block, which do not count.
        threads: threads that torch computes with.
    """

    blocks: int = 10
    steps: int = 100
    turn: int = 4
    warm_up: int = 10
    threads: int = 1

    @property
    def total(self) -> int:
        """Steps that a participant makes: the last one closes the last block and is not counted."""
        return self.warm_up + self.blocks * self.steps + 1


class Gate:
    """A participant's side. It calls `tick` before each of `plan.total` steps; the call waits between turns."""

    def __init__(self, plan: Plan, connection: Connection) -> None:
        self.plan = plan
        self._connection = connection
        self._parent = os.getppid()
        self._steps = 0
        self._began = 0.0

    def tick(self) -> None:
        """One more step begins."""
        since = self._steps - self.plan.warm_up
        self._steps += 1
        if since < 0 or since % self.plan.turn:
            return
        self._connection.send(("turn", time.process_time() - self._began))
        while not self._connection.poll(1.0):
            if os.getppid() != self._parent:  # killed: nobody will ever send a word
                os._exit(1)
        self._connection.recv()
        self._began = time.process_time()


Participant = Callable[[Gate], Any]
"""Runs all steps and returns something to compare."""


def measure(participants: Mapping[str, Participant], plan: Plan) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Let participants work in turns: A B, B A, A B and so on; a block is the sum of its turns.

    Returns:
        Name -> CPU seconds of each block, and name -> what the participant returned.

    Raises:
        RunError: a participant failed; the message holds its stack trace.
    """
    context = multiprocessing.get_context("fork")
    connections: dict[str, Connection] = {}
    processes = []
    seconds: dict[str, list[float]] = {name: [] for name in participants}
    try:
        for name, work in participants.items():
            connections[name], theirs = context.Pipe()
            processes.append(context.Process(target=_participate, args=(work, plan, theirs), daemon=True))
            processes[-1].start()
            _receive(name, connections[name], "turn")  # it is warm; the next one starts
        per_block = plan.steps // plan.turn
        for turn in range(plan.blocks * per_block):
            names = list(participants)
            for name in names if turn % 2 == 0 else reversed(names):
                connections[name].send("go")
                spent = _receive(name, connections[name], "turn")
                if turn % per_block:
                    seconds[name][-1] += spent
                else:
                    seconds[name].append(spent)
        results = {}
        for name, connection in connections.items():
            connection.send("go")
            results[name] = _receive(name, connection, "done")
    finally:
        for process in processes:
            process.kill()  # the runner takes SIGTERM for a wish to save and leave
            process.join()
    return seconds, results


def _receive(name: str, connection: Connection, expected: str) -> Any:
    try:
        kind, value = connection.recv()
    except EOFError as error:
        raise RunError(f"participant '{name}' ended without a word") from error
    if kind != expected:
        raise RunError(f"participant '{name}': {value}")
    return value


def _participate(work: Participant, plan: Plan, connection: Connection) -> None:
    torch.set_num_threads(plan.threads)
    null = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):  # progress bars are drawn, but not here
        os.dup2(null, descriptor)
    try:
        connection.send(("done", work(Gate(plan, connection))))
    except BaseException:
        connection.send(("failed", traceback.format_exc()))
