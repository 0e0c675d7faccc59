"""`mmcl shards fetch`: bring remote shards into the cache before a run, and renew those that changed."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections import Counter

from mmcl.datamodules.cache import GIGABYTES, ShardCache
from mmcl.datamodules.remote import is_remote, public
from mmcl.datamodules.shards import expand_shards
from mmcl.errors import ConfigError

HELP = "bring remote shards into the cache, and renew those that changed on the server"


def add_arguments(parser: ArgumentParser) -> None:
    """Options of the action."""
    parser.add_argument("shards", nargs="+", help="URLs and patterns like https://HOST/train-{000..099}.tar")
    parser.add_argument("--cache_dir", help="folder, as data.cache_dir (default: shards in mmcl's cache)")
    parser.add_argument(
        "--cache_gb", type=float, default=GIGABYTES, help=f"bound of the folder, as data.cache_gb ({GIGABYTES:g})"
    )


def run(arguments: Namespace) -> int:
    """Fetch and print a line for each shard. Where the bound is passed, the oldest go; their indexes stay.

    Raises:
        ConfigError: a local path, no such shard, a damaged one, or one larger than the cache.
        RunError: a server fails, or the cache cannot be written.
    """
    shards = expand_shards(arguments.shards, "command line", remote=True)
    if local := [shard for shard in shards if not is_remote(shard)]:
        raise ConfigError(f"{local[0]} is local: there is nothing to fetch; `mmcl shards index` makes its index")
    cache = ShardCache(arguments.cache_dir, arguments.cache_gb)
    samples, counts = 0, Counter[str]()
    for shard in shards:
        index, done = cache.renew(shard)
        samples += len(index)
        counts[done] += 1
        print(f"{public(shard)}: {len(index)} samples, {done}", flush=True)
    told = ", ".join(f"{count} {name}" for name, count in counts.items())
    print(f"{len(shards)} shards, {samples} samples: {told}; they lie in {cache.folder}")
    return 0
