"""Seconds and memory of one merge of many models, by each of the merges."""

from __future__ import annotations

import threading
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from resource import getpagesize

import torch
from torch import Tensor

from mmcl.benchmarks.throughput.figures import show, summary
from mmcl.benchmarks.throughput.turns import Plan
from mmcl.functional.averaging import interpolate
from mmcl.functional.merging import magmax, model_stock, slerp, task_arithmetic, ties, widened

BLOCKS = 12
LOOK = 0.002
"""Seconds between looks at the memory."""

Weights = dict[str, Tensor]


def add_arguments(parser: ArgumentParser) -> None:
    """Options of this measurement."""
    parser.add_argument("--models", type=int, default=10, help="task vectors of a merge (default: %(default)s)")
    parser.add_argument(
        "--width", type=int, default=768, help="of the transformer; 768 is ViT-B (default: %(default)s)"
    )


def run(arguments: Namespace, plan: Plan) -> None:
    """Measure and print: each merge `plan.blocks` times, one after another."""
    torch.set_num_threads(plan.threads)
    torch.manual_seed(0)
    base = vit(arguments.width)
    vectors = [{name: 0.01 * torch.randn_like(value) for name, value in base.items()} for _ in range(arguments.models)]
    copy = sum(value.numel() * value.element_size() for value in base.values())
    merges: dict[str, Callable[[], object]] = {
        "task_arithmetic": lambda: task_arithmetic(base, vectors, 1 / len(vectors)),
        "magmax": lambda: magmax(base, vectors, 0.5),
        "ties": lambda: ties(base, vectors, 0.2, 1.0),
        "model_stock": lambda: model_stock(base, vectors),
        "slerp, of two": lambda: slerp(base, vectors[0], 0.3),
        "interpolate, of two": lambda: interpolate(widened(base), vectors[0], alpha=0.5),
    }
    rows = []
    for name, merge in merges.items():
        measured = [_measured(merge) for _ in range(plan.blocks)]
        wall, spent = (summary([m[i] for m in measured]) for i in (0, 1))
        most = max(m[2] for m in measured) / copy
        rows.append([name, wall.show(2), spent.show(2), f"{most:.1f}"])
    size = sum(value.numel() for value in base.values()) / 1e6
    title = f"Merges of {arguments.models} task vectors of {size:.1f} M weights in float32, each {plan.blocks} times"
    show(title, ["merge", "seconds", "CPU seconds", "copies of the model beside the inputs"], rows, plan.threads)


def vit(width: int) -> Weights:
    """Random weights in the shapes of a vision transformer."""
    shapes: dict[str, tuple[int, ...]] = {
        "patches": (width, 3, 16, 16),
        "positions": (197, width),
        "proj": (width, 512),
    }
    for i in range(BLOCKS):
        block: dict[str, tuple[int, ...]] = {
            "attn.in": (3 * width, width),
            "attn.out": (width, width),
            "mlp.in": (4 * width, width),
            "mlp.out": (width, 4 * width),
            "norms": (4, width),
            "biases": (9, width),
        }
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def _measured(merge: Callable[[], object]) -> tuple[float, float, int]:
    """(wall seconds, CPU seconds, bytes of memory at the worst moment beyond those before)."""
    before = most = _resident()
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(LOOK):
            most = max(most, _resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    wall, spent = time.perf_counter(), time.process_time()
    merged = merge()
    found = time.perf_counter() - wall, time.process_time() - spent
    most = max(most, _resident())
    done.set()
    watcher.join()
    del merged
    return *found, most - before


def _resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * getpagesize()
