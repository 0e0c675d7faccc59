"""What a set of billions of pairs takes: shards, indexes, cache, workers, requests, out of figures measured here."""

from __future__ import annotations

import math
import tempfile
import time
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path

from mmcl.benchmarks.throughput.figures import show
from mmcl.benchmarks.throughput.reader import DIFFERENT, jpeg
from mmcl.benchmarks.throughput.turns import Plan
from mmcl.datamodules.index import load_index
from mmcl.datamodules.transfer import CHUNK
from mmcl.datamodules.writing import Options, write_set

CAPTION = "a photograph of a red kite over the hills, late in the afternoon"
GPU_RATES = (500, 1000, 3000)
"""Pairs a second that a GPU may take: a large, a middle and a small model. They depend on the model; yours is the one
that counts."""


@dataclass(frozen=True)
class Measured:
    """Costs of a pair.

    Attributes:
        tar_bytes: in its shard.
        index_bytes: in the index file.
        write_ms: CPU time of `mmcl shards write`.
        index_ms: CPU time of `mmcl shards index`.
        memory_bytes: in the memory of a process that has opened the set (`throughput index`).
        read_per_second: pairs that one CPU reads, decodes and preprocesses (`throughput reader`).
    """

    tar_bytes: float
    index_bytes: float
    write_ms: float
    index_ms: float
    memory_bytes: float
    read_per_second: float


def add_arguments(parser: ArgumentParser) -> None:
    """Options of this plan."""
    parser.add_argument("--samples", type=int, default=2000, help="pairs to measure with (default: %(default)s)")
    parser.add_argument("--pixels", type=int, default=224, help="side of the pictures (default: %(default)s)")
    parser.add_argument("--memory_bytes", type=float, default=77, help="what `index` said (default: %(default)s)")
    parser.add_argument("--read_per_second", type=float, default=943, help="what `reader` said (default: %(default)s)")
    parser.add_argument("--pairs", type=float, default=1e10, help="of the set (default: %(default)g)")
    parser.add_argument("--megabytes_per_shard", type=float, default=500, help="(default: %(default)s)")
    parser.add_argument("--nodes", type=int, default=16, help="machines (default: %(default)s)")
    parser.add_argument("--gpus", type=int, default=8, help="of each machine (default: %(default)s)")
    parser.add_argument("--cores", type=int, default=96, help="of each machine (default: %(default)s)")
    parser.add_argument("--window", type=int, default=8, help="data.window (default: %(default)s)")


def run(arguments: Namespace, plan: Plan) -> None:
    """Measure what a pair costs to write and to index, and print the plan."""
    measured = measure(arguments.samples, arguments.pixels, arguments.memory_bytes, arguments.read_per_second)
    costs = [
        ["a pair in its shard", f"{measured.tar_bytes:.0f} bytes"],
        ["a pair in the index file", f"{measured.index_bytes:.0f} bytes"],
        ["writing a pair", f"{measured.write_ms:.2f} ms of CPU"],
        ["indexing a pair", f"{measured.index_ms:.3f} ms of CPU"],
    ]
    show(f"{arguments.samples} pairs of {arguments.pixels} px", ["what", "figure"], costs, plan.threads)
    rows = planned(
        measured,
        arguments.pairs,
        arguments.megabytes_per_shard,
        arguments.nodes,
        arguments.gpus,
        arguments.cores,
        arguments.window,
    )
    title = f"{arguments.pairs:.3g} pairs on {arguments.nodes} machines of {arguments.gpus} GPUs"
    show(title, ["what", "figure"], rows, plan.threads)


def measure(samples: int, pixels: int, memory_bytes: float, read_per_second: float) -> Measured:
    """Write and index a folder of JPEG pictures with captions in this process."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "pictures"
        folder.mkdir()
        pictures = [jpeg(pixels, i) for i in range(min(DIFFERENT, samples))]
        for i in range(samples):
            (folder / f"{i:09d}.jpg").write_bytes(pictures[i % len(pictures)])
            (folder / f"{i:09d}.txt").write_text(CAPTION, encoding="utf-8")
        began = time.process_time()
        made = write_set(Options((str(folder),), Path(place) / "shards"), say=lambda line: None)
        written = time.process_time() - began
        shards = [Path(place) / "shards" / shard["name"] for shard in made["shards"]]
        began = time.process_time()
        for shard in shards:
            load_index(str(shard))
        indexed = time.process_time() - began
        index = sum(Path(f"{shard}.index").stat().st_size for shard in shards)
    per = 1e3 / samples
    return Measured(
        made["bytes"] / samples, index / samples, written * per, indexed * per, memory_bytes, read_per_second
    )


def planned(
    costs: Measured, pairs: float, megabytes: float, nodes: int, gpus: int, cores: int, window: int
) -> list[list[str]]:
    """The plan as rows of a table.

    Args:
        costs: of a pair.
        pairs: of the set.
        megabytes: of a shard.
        nodes: machines.
        gpus: of each machine.
        cores: of each machine.
        window: shards that are read at a time.
    """
    shard_bytes, in_all = megabytes * 1e6, pairs * costs.tar_bytes
    shards, in_shard = math.ceil(in_all / shard_bytes), int(shard_bytes // costs.tar_bytes)
    requests = requests_of(shard_bytes)
    workers = ", ".join(f"{math.ceil(rate / costs.read_per_second)} for {rate:,}" for rate in GPU_RATES)
    share = pairs * costs.memory_bytes / 1e9
    return [
        ["bytes in all", f"{in_all / 1e12:.0f} TB"],
        ["shards", f"{shards:,} of {in_shard:,} pairs"],
        ["index files", f"{pairs * costs.index_bytes / 1e9:.0f} GB"],
        ["writing", f"{_days(pairs * costs.write_ms, nodes * cores)} on {nodes} x {cores} cores"],
        ["indexing", f"{_days(pairs * costs.index_ms, nodes * cores)} on {nodes} x {cores} cores"],
        ["index in memory", f"{share:.0f} GB a process, {share * gpus:.0f} GB a machine of {gpus} processes"],
        ["pairs whose index takes 20 GB a process", f"{20e9 / costs.memory_bytes / 1e6:.0f} million"],
        ["cache: what is read at a time, and as much again", f"{2 * window * megabytes / 1e3:.0f} GB a machine"],
        ["workers of a GPU, for its pairs a second", workers],
        ["requests for a shard", f"{requests}"],
        ["requests of a pass, one machine", f"{shards * requests / 1e6:.1f} million"],
        ["bytes from the store in a pass, all machines", f"{nodes * in_all / 1e15:.1f} PB"],
    ]


def requests_of(shard_bytes: float) -> int:
    """Requests to an object store until a shard and its index are in a cache: the index, and the data in pieces.

    S3 is asked for the shard's version before and after its data, and twice for the index's before its content, once by
    its client.
    """
    return 3 + math.ceil(shard_bytes / CHUNK) + 2


def _days(milliseconds: float, cores: int) -> str:
    hours = milliseconds / 3.6e6
    return f"{hours:,.0f} CPU hours, {hours / cores:.1f} hours"
