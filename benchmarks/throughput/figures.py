"""Medians with intervals, facts about the machine, and small tables."""

from __future__ import annotations

import math
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Figure:
    """A median and the interval around it, in the same unit."""

    median: float
    low: float
    high: float

    def show(self, digits: int = 1, sign: str = "") -> str:
        """``1.012 [1.008, 1.015]``; with `sign` ``+`` every number shows its sign."""
        median, low, high = (f"{x:{sign}.{digits}f}" for x in (self.median, self.low, self.high))
        return f"{median} [{low}, {high}]"


def summary(values: Sequence[float]) -> Figure:
    """The median and its distribution-free 95 % interval between order statistics.

    Fewer than 6 values carry no such interval: then it runs from the smallest to the largest.

    Args:
        values: at least one.

    >>> summary([3.0, 1.0, 2.0])
    Figure(median=2.0, low=1.0, high=3.0)
    """
    ordered, n = sorted(values), len(values)
    outside, cut = 0.0, 0
    while cut < n // 2:
        outside += 2 * math.comb(n, cut) / 2**n
        if 1 - outside < CONFIDENCE:
            break
        cut += 1
    cut = max(cut - 1, 0)
    return Figure(statistics.median(ordered), ordered[cut], ordered[n - 1 - cut])


def ratios(values: Sequence[float], base: Sequence[float]) -> Figure:
    """Summary of values / base, block by block."""
    return summary([v / b for v, b in zip(values, base, strict=True)])


def facts(threads: int) -> str:
    """The machine and the versions, in one line."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    return (
        f"{model or platform.machine()}, {cores} cores, {threads} thread(s), load {load} at the end; "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )


def show(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], threads: int) -> None:
    """Print a table with the command and the machine."""
    table = [list(header), *map(list, rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(header))]
    print(title)
    print("  " + " | ".join(h.ljust(w) for h, w in zip(header, widths, strict=True)).rstrip())
    print("  " + "-|-".join("-" * w for w in widths))
    for row in rows:
        print("  " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip())
    print(f"  median [95 % interval of the median]; {facts(threads)}")
    print(f"  python -m mmcl.benchmarks.throughput {shlex.join(sys.argv[1:])}".rstrip(), flush=True)
