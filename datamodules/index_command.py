"""`mmcl shards index`: the byte index of every shard, built now and not in the first run."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from mmcl.datamodules.index import load_index
from mmcl.datamodules.shards import expand_shards

HELP = "build the byte index beside each shard"


def add_arguments(parser: ArgumentParser) -> None:
    """Options of the action."""
    parser.add_argument("shards", nargs="+", help="tar files and patterns like train-{000..099}.tar")


def run(arguments: Namespace) -> int:
    """Index and print a line for each shard.

    Raises:
        ConfigError: no such shard, or a damaged one.
    """
    shards = expand_shards(arguments.shards, "command line")
    total = 0
    for shard in shards:
        samples = len(load_index(shard))
        total += samples
        print(f"{shard}: {samples} samples", flush=True)
    print(f"{len(shards)} shards, {total} samples")
    return 0
