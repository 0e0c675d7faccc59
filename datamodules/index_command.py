"""`mmcl shards index`: the byte index of every shard, built now and not in the first run."""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from typing import NamedTuple

from tqdm import tqdm

from mmcl.datamodules.index import index_places, kept_index, load_index
from mmcl.datamodules.listing import given_shards
from mmcl.datamodules.spread import add_workers, spread
from mmcl.errors import ConfigError, RunError

HELP = "build the byte index beside each shard"


class Indexed(NamedTuple):
    """A shard, its samples, and what was done: kept, built, rebuilt, or what is wrong with it."""

    shard: str
    samples: int
    done: str = ""
    wrong: str = ""


def add_arguments(parser: ArgumentParser) -> None:
    """Options of the action."""
    parser.add_argument("shards", nargs="+", help="tar files, patterns like train-{000..099}.tar, or folders")
    add_workers(parser)


def run(arguments: Namespace) -> int:
    """Index and print a line for each shard. The index of a shard that has not changed is kept.

    Raises:
        ConfigError: no such shard.
        RunError: some shards are damaged; the others are indexed.
    """
    shards = given_shards(arguments.shards)
    rows: list[Indexed] = []
    for row in spread(index_shard, shards, arguments.workers, "index", len(shards)):
        rows.append(row)
        tqdm.write(row.wrong or f"{row.shard}: {row.samples} samples, {row.done}")  # beside the bar
    print(f"{len(rows)} shards, {sum(row.samples for row in rows)} samples")
    if damaged := [row.shard for row in rows if row.wrong]:
        raise RunError(f"{len(damaged)} of {len(rows)} shards cannot be indexed; `mmcl shards lint` names all faults")
    return 0


def index_shard(shard: str) -> Indexed:
    """Index a shard, in a worker."""
    try:
        kept = kept_index(shard)
        if kept is not None:
            return Indexed(shard, len(kept), "kept")
        done = "rebuilt" if any(os.path.isfile(place) for place in index_places(shard)) else "built"
        return Indexed(shard, len(load_index(shard)), done)
    except ConfigError as error:
        return Indexed(shard, 0, wrong=str(error))
