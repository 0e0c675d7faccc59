"""Samples per second of the reader against webdataset's pipeline, with the same decoding and transform in both."""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from typing import Any

import torch
import webdataset

from mmcl.benchmarks.throughput import pocket
from mmcl.benchmarks.throughput.figures import ratios, show, summary
from mmcl.benchmarks.throughput.turns import Plan
from mmcl.collate import collate
from mmcl.datamodules import StreamDataModule
from mmcl.datamodules.decode import decode
from mmcl.errors import RunError
from mmcl.modules import CLIPModule
from mmcl.stream import Budget, Source, Stream, Task

OURS, THEIRS = "mmcl", "webdataset"
STYLE = "twitter"


def add_arguments(parser: ArgumentParser) -> None:
    """Options of this measurement."""
    parser.add_argument("--batch_size", type=int, default=64, help="samples of a batch (default: %(default)s)")


def run(arguments: Namespace, plan: Plan) -> None:
    """Measure and print: whole passes over one style of the pocket data in this process, `blocks` of each in turn."""
    torch.set_num_threads(plan.threads)
    module = pocket.Setting(arguments.batch_size).module()
    shards = [str(path) for path in sorted(pocket.SHARDS.glob(f"{STYLE}-*.tar"))]
    ours = _ours(module, shards, arguments.batch_size)
    passes: dict[str, Callable[[], Iterator[Any]]] = {
        OURS: ours,
        THEIRS: lambda: _theirs(module, shards, arguments.batch_size),
    }
    rates: dict[str, list[float]] = {OURS: [], THEIRS: []}
    counts = {name: sum(len(b["image"]) for b in read()) for name, read in passes.items()}  # caches are warm now
    if counts[OURS] != counts[THEIRS]:
        raise RunError(f"the readers disagree about the number of samples: {counts}")
    for block in range(plan.blocks):
        for name in list(passes) if block % 2 == 0 else reversed(list(passes)):
            began = time.process_time()
            for _ in passes[name]():
                pass
            rates[name].append(counts[name] / (time.process_time() - began))
    rows = [
        [name, summary(found).show(0), "1" if name == THEIRS else ratios(found, rates[THEIRS]).show(3)]
        for name, found in rates.items()
    ]
    title = f"Reading {counts[OURS]} samples of {len(shards)} shards in one process, {plan.blocks} passes each in turn"
    show(title, ["reader", "samples per CPU second", "ratio"], rows, plan.threads)


def _ours(module: CLIPModule, shards: list[str], batch_size: int) -> Callable[[], Iterator[Any]]:
    task = Task("read", [Source(shards, augment=False)], Budget(steps=1))
    data = StreamDataModule(Stream("reader", [task]), batch_size)
    data.bind(module.transform, seed=0)
    return lambda: iter(data.pass_loader(task))


def _theirs(module: CLIPModule, shards: list[str], batch_size: int) -> Iterator[Any]:
    def sample(raw: dict[str, Any]) -> dict[str, Any]:
        image = next(decode(name, raw[name]) for name in ("jpg", "png", "webp") if name in raw)
        row = {"image": image, "text": decode("txt", raw["txt"]), "labels": decode("cls", raw["cls"])}
        return {**module.transform(row, False), "__key__": raw["__key__"]}

    pipeline = webdataset.WebDataset(shards, shardshuffle=False).map(sample)
    return iter(pipeline.batched(batch_size, collation_fn=collate))
