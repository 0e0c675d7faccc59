"""Rows of the strategies' table on two processes. One launch runs many rows: starting costs more than a row does.

python strategy_ranks.py FOLDER OUT ROW CASE [ROW CASE ...], on each rank with torchrun's variables
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import tiny
import torch
import torch.distributed as dist
from strategy_runs import SHORT, Runs

from mmcl import distributed

RANKS = 2
SGD: partial[Any] = partial(torch.optim.SGD, lr=1e-2, momentum=0.9)
"""Adam enlarges rounding; the rate is the module's."""

Row = tuple[str, str]


def file(out: Path, row: Row, rank: int) -> Path:
    """What a rank found in a row."""
    return out / f"{'-'.join(row).replace('/', '+')}.{rank}.pt"


def launch(rows: Sequence[Row], folder: Path, out: Path) -> Mapping[Row, str]:
    """Run all rows on two processes, those after a failing row in a further launch.

    Returns:
        The rows that failed, each with the end of what the processes said.
    """
    out.mkdir(parents=True, exist_ok=True)
    failed: dict[Row, str] = {}
    left = list(rows)
    while left:
        said = _launch(left, folder, out)
        undone = [row for row in left if not all(file(out, row, rank).exists() for rank in range(RANKS))]
        if not undone:
            break
        failed[undone[0]] = said
        left = undone[1:]
    return failed


def _launch(rows: Sequence[Row], folder: Path, out: Path) -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, __file__, str(folder), str(out), *(word for row in rows for word in row)]
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "rows", "GROUP_RANK": "0"}
    world |= {"WORLD_SIZE": str(RANKS), "LOCAL_WORLD_SIZE": str(RANKS)}
    processes, said = [], []
    for rank in range(RANKS):
        said.append(out / f"rank-{rank}.log")  # a pipe that is read after another's end could fill up
        environment = tiny.environment(**world, RANK=str(rank), LOCAL_RANK=str(rank))
        with said[-1].open("w") as log:
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
    for process in processes:
        process.wait()
    return "\n".join(f"rank {rank}: ...{log.read_text()[-3000:]}" for rank, log in enumerate(said))


def main(folder: Path, out: Path, rows: Sequence[Row]) -> None:
    """One rank: all rows in one process group."""
    dist.init_process_group("gloo", timeout=timedelta(minutes=2))
    rank, runs = dist.get_rank(), Runs(folder)
    for name, case in rows:
        for turn in range(RANKS):  # each writes the same shards
            if turn == rank:
                runs.stream(case, SHORT)
            dist.barrier()
        done = runs.run(name, case, SHORT, "two", optimizer=SGD, devices=RANKS)
        found = {"ends": list(done.ends), "states": list(done.states), "matrix": done.results["matrix"]}
        torch.save(found, file(out, (name, case), rank))
    distributed.leave()


if __name__ == "__main__":
    words = sys.argv[3:]
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]), list(zip(words[::2], words[1::2], strict=True)))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)
