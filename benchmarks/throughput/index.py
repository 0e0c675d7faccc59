"""A task of a million samples: opening it, the memory that its index takes, a whole epoch, and a jump into it."""

from __future__ import annotations

import gc
import os
import resource
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from mmcl.benchmarks.throughput.figures import show, summary
from mmcl.benchmarks.throughput.turns import Plan
from mmcl.datamodules import StreamDataModule, write_shard
from mmcl.datamodules.index import load_index
from mmcl.errors import RunError
from mmcl.stream import Budget, Source, Stream, Task

SHARD = 10_000
"""Samples of a shard."""
PARTS = 10
"""Looks at the memory in an epoch."""


def add_arguments(parser: ArgumentParser) -> None:
    """Options of this measurement."""
    parser.add_argument("--batch_size", type=int, default=1000, help="samples of a batch (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=1_000_000, help="samples of the task (default: %(default)s)")


def run(arguments: Namespace, plan: Plan) -> None:
    """Measure and print. Many sources name one and the same shard, and each opens its index; labels alone are read.

    Raises:
        RunError: a sample was not visited exactly once.
    """
    torch.set_num_threads(plan.threads)
    with tempfile.TemporaryDirectory() as folder:
        size = min(SHARD, arguments.samples)
        shard = _shard(Path(folder), size)
        count = arguments.samples // size * size
        sources = [Source([shard], f"part{i}", fields={"labels": ["cls"]}) for i in range(count // size)]
        task = Task("read", sources, Budget(epochs=2))
        data = StreamDataModule(Stream("index", [task]), arguments.batch_size)
        data.bind(lambda sample, augment: sample, seed=0)
        gc.collect()
        before, began = _memory(), time.perf_counter()
        data.check()
        opened, after = time.perf_counter() - began, _memory()
        rows = [
            ["opening the sources", f"{opened:.2f} s"],
            ["memory of the open sources", f"{(after - before) / count:.0f} bytes a sample"],
        ]
        steps = data.plan(task).steps
        jumps = [_jump(data, task, steps // 2 + i, steps) for i in range(plan.blocks)]
        rows.append([f"from the call to batch {steps // 2} or a later one", f"{summary(jumps).show(4)} s"])
        began = time.process_time()
        memory = list(_epoch(data, task, count, steps))
        rate = count / (time.process_time() - began)
        rows += [
            ["samples of the first epoch per CPU second, labels alone", f"{rate:.0f}"],
            [
                "growth of memory from a tenth of the epoch to its end",
                f"{(memory[-1] - memory[0]) / count:.1f} bytes a sample",
            ],
            ["largest memory of the process", f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB"],
        ]
    show(f"A task of {count:,} samples in {len(sources)} shards", ["what", "figure"], rows, plan.threads)


def _shard(folder: Path, size: int) -> str:
    """A shard with three members a sample, and its index."""
    path = folder / "shard.tar"
    write_shard(path, ({"__key__": f"{i:08d}", "npy": b"-", "txt": "a caption", "cls": i % 1000} for i in range(size)))
    load_index(str(path))
    return str(path)


def _jump(data: StreamDataModule, task: Task, step: int, steps: int) -> float:
    """Seconds until a batch in the midst of a segment is there."""
    began = time.perf_counter()
    next(iter(data.train_loader(task, positions={}, segment=0, first_step=step, steps=steps)))
    return time.perf_counter() - began


def _epoch(data: StreamDataModule, task: Task, count: int, steps: int) -> Iterator[int]:
    """Read every sample once; the process's memory after each part."""
    seen = torch.zeros(count, dtype=torch.uint8)
    batches: Any = data.train_loader(task, positions={}, segment=0, first_step=0, steps=steps // 2)
    for number, batch in enumerate(batches, start=1):
        seen[batch["__index__"]] += 1
        if number % max(len(batches) // PARTS, 1) == 0:
            yield _memory()
    if not bool((seen == 1).all()):
        raise RunError(f"{int((seen != 1).sum())} of {count} samples were not visited exactly once in an epoch")


def _memory() -> int:
    """Bytes that the process has in memory now."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
