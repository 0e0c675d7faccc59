"""What is said of a source's shards when they are opened: copies are refused, what looks odd is named."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from mmcl.datamodules.decode import AUDIO, IMAGES, kind
from mmcl.datamodules.faults import shown
from mmcl.datamodules.index import ShardIndex
from mmcl.datamodules.scan import MISNAMED
from mmcl.errors import ConfigError

logger = logging.getLogger("mmcl")

PLAYED = frozenset((*IMAGES, *AUDIO))
"""Formats of pictures and recordings."""


def copies(paths: Sequence[str], shards: Sequence[ShardIndex]) -> Iterator[tuple[str, str]]:
    """Pairs of shards that hold the same samples: a later one, and the first one that is equal."""
    seen: dict[tuple[int, int, int], list[int]] = {}
    for i, shard in enumerate(shards):
        alike = seen.setdefault((len(shard), int(shard.crc.sum()), int(shard.size.sum())), [])
        for j in alike:
            other = shards[j]
            if shard.keys == other.keys and np.array_equal(shard.crc, other.crc):
                yield paths[i], paths[j]
                break
        else:
            alike.append(i)


def refuse_copies(source: str, paths: Sequence[str], shards: Sequence[ShardIndex]) -> None:
    """Refuse a shard that is given twice under two names: its samples would count twice.

    Raises:
        ConfigError: names the two.
    """
    for again, first in copies(paths, shards):
        raise ConfigError(f"source '{source}': shards {first} and {again} hold the same samples; name one of them")


def note_oddities(source: str, paths: Sequence[str], shards: Sequence[ShardIndex]) -> None:
    """Say in the log which shards share a name, which members are never read, and which are misnamed."""
    named: dict[str, str] = {}
    again = [path for path in paths if named.setdefault(path.rpartition("/")[2], path) != path]
    if again:
        other = named[again[0].rpartition("/")[2]]
        logger.info("source '%s': shard %s has the same name as %s; both are read", source, again[0], other)
    unused: Counter[str] = Counter()
    for shard in shards:
        unused.update(shard.unused)
    if unused:
        names = ", ".join(f"{shown(name) or 'no extension'} ({count})" for name, count in unused.most_common(5))
        logger.warning("source '%s': members that are never read: %s", source, names)
    odd = [(i, int(row)) for i, shard in enumerate(shards) for row in misnamed(shard)]
    if odd:
        first, row = odd[0]
        index = shards[first]
        key = index.key(int(np.searchsorted(index.starts, row, side="right")) - 1)
        name = f"{key}.{index.extensions[int(index.extension[row])]}"
        logger.warning(
            "source '%s': %d members are of another format than their extension says, and are read as what they are; "
            "the first one is '%s' in shard %s",
            *(source, len(odd), name, paths[first]),
        )


def misnamed(shard: ShardIndex) -> list[int]:
    """Pictures and recordings of a shard, by member, whose content is of another format than their extension says."""
    played = [i for i, name in enumerate(shard.extensions) if kind(name) in PLAYED]
    return [int(row) for row in np.flatnonzero(np.isin(shard.extension, played) & (shard.value == MISNAMED))]
