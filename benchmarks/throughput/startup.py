"""How long the commands take that only print."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace

from mmcl.benchmarks.throughput.figures import show, summary
from mmcl.benchmarks.throughput.turns import Plan
from mmcl.errors import RunError

COMMANDS = (["--help"], ["--version"], ["list", "strategies"], ["list", "configs"])


def add_arguments(parser: ArgumentParser) -> None:
    """Options of this measurement."""


def run(arguments: Namespace, plan: Plan) -> None:
    """Measure and print: `blocks` starts of each command, in turn."""
    wall: dict[str, list[float]] = {}
    cpu: dict[str, list[float]] = {}
    for _ in range(plan.blocks):
        for words in COMMANDS:
            name = " ".join(["mmcl", *words])
            began, before = time.perf_counter(), os.times()
            done = subprocess.run([sys.executable, "-m", "mmcl", *words], capture_output=True, text=True)
            after = os.times()
            if done.returncode:
                raise RunError(f"{name}: exit code {done.returncode}: {done.stderr.strip()}")
            wall.setdefault(name, []).append(time.perf_counter() - began)
            used = after.children_user + after.children_system - before.children_user - before.children_system
            cpu.setdefault(name, []).append(used)
    rows = [[name, summary(wall[name]).show(2), summary(cpu[name]).show(2)] for name in wall]
    show(f"Start, {plan.blocks} times each in turn", ["command", "seconds", "CPU seconds"], rows, plan.threads)
