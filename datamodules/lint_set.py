"""What is wrong or suspicious between shards, and whom the set serves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mmcl.datamodules.decode import AUDIO, IMAGES
from mmcl.datamodules.faults import Finding
from mmcl.datamodules.index import ShardIndex
from mmcl.datamodules.lint import Examined
from mmcl.datamodules.manifest_check import MANIFEST, lost_shards, read_manifest
from mmcl.datamodules.oddities import copies
from mmcl.datamodules.reader import STANDARD_FIELDS
from mmcl.datamodules.scan import NO_CAPTION
from mmcl.errors import ConfigError


def examine_set(found: Sequence[Examined]) -> Iterator[Finding]:
    """Findings that one shard alone does not show."""
    yield from _lost(found)
    yield from _missing(found)
    yield from _uneven(found)
    yield from _names(found)
    paths, shards = [e.shard for e in found], [e.index for e in found]
    again = dict(copies(paths, shards))
    for path, first in again.items():
        yield Finding("copy", path, f"it holds the same samples as {first}")
    rest = [e for e in found if e.shard not in again]
    yield from _keys(rest)
    yield from _twins(rest)


def fields_of(index: ShardIndex) -> dict[str, npt.NDArray[np.bool_]]:
    """Standard field -> (N,) whether a sample has it, as training sees it."""
    has: dict[str, npt.NDArray[np.bool_]] = {}
    for field, names in STANDARD_FIELDS.items():
        has[field] = np.zeros(len(index), np.bool_)
        for name in names:
            rows = index.find([name])
            here = rows >= 0
            if name == "json":
                here[here] = index.value[rows[here]] != NO_CAPTION
            has[field] |= here
    return has


def _lost(found: Sequence[Examined]) -> Iterator[Finding]:
    """Shards that a manifest lists and that are not there."""
    for folder in dict.fromkeys(Path(e.shard).parent for e in found):
        place = str(folder / MANIFEST)
        try:
            read_manifest(folder)
        except ConfigError as error:
            yield Finding("manifest", place, str(error).removeprefix(f"{place} "))
            continue
        for name in lost_shards(folder):
            yield Finding("missing", str(folder / name), f"{MANIFEST} lists it, but it is not there")


def _missing(found: Sequence[Examined]) -> Iterator[Finding]:
    """Samples without a picture, recording, text or label where others of the set have one."""
    has = [fields_of(e.index) for e in found]
    for field, names in STANDARD_FIELDS.items():
        count = sum(int(h[field].sum()) for h in has)
        total = sum(len(e.index) for e in found)
        if not count or count == total:
            continue
        for examined, here in zip(found, has, strict=True):
            text = f"no member for '{field}' ({', '.join(names)}); {count} of {total} samples have one"
            if len(examined.index) and not here[field].any():
                yield Finding("missing", examined.shard, f"its {len(examined.index)} samples have {text}")
                continue
            for sample in np.flatnonzero(~here[field]):
                key = examined.index.key(int(sample))
                yield Finding("missing", examined.shard, f"sample '{key}' has {text}", key, field)


def _uneven(found: Sequence[Examined]) -> Iterator[Finding]:
    """Other members that most samples of a shard have, and some have not."""
    standard = {name for names in STANDARD_FIELDS.values() for name in names}
    for examined in found:
        index = examined.index
        for name in set(index.extensions) - standard:
            rows = index.find([name])
            count = int((rows >= 0).sum())
            for sample in np.flatnonzero(rows < 0) if 2 * count > len(index) else ():
                key = index.key(int(sample))
                text = f"sample '{key}' has no member '{name}'; {count} of {len(index)} samples have one"
                yield Finding("uneven", examined.shard, text, key, name)


def _names(found: Sequence[Examined]) -> Iterator[Finding]:
    first: dict[str, str] = {}
    for examined in found:
        name = Path(examined.shard).name
        other = first.setdefault(name, examined.shard)
        if other is not examined.shard:
            yield Finding("names", examined.shard, f"{other} has the same name; a cache by file name would mix them up")


def _keys(found: Sequence[Examined]) -> Iterator[Finding]:
    """Keys that two shards share, told once for each pair of shards."""
    pairs: dict[tuple[int, int], list[str]] = {}
    hashes = [np.array([hash(e.index.key(i)) for i in range(len(e.index))], np.int64) for e in found]
    for shard, sample, first, _ in _repeats(hashes):
        if shard != first:
            pairs.setdefault((shard, first), []).append(found[shard].index.key(sample))
    for (shard, first), keys in pairs.items():
        text = f"{len(keys)} of its keys are also in {found[first].shard}; the first one is '{keys[0]}'"
        yield Finding("keys", found[shard].shard, text, keys[0])


def _twins(found: Sequence[Examined]) -> Iterator[Finding]:
    """Pictures and recordings of equal bytes, by size and CRC-32."""
    for names in (IMAGES, AUDIO):
        rows = [e.index.find(names) for e in found]
        samples = [np.flatnonzero(r >= 0) for r in rows]
        marks = [
            (e.index.size[r[s]].astype(np.int64) << 31) ^ e.index.crc[r[s]].astype(np.int64)
            for e, r, s in zip(found, rows, samples, strict=True)
        ]
        for shard, place, first, first_place in _repeats(marks):
            key = found[shard].index.key(int(samples[shard][place]))
            other = found[first].index.key(int(samples[first][first_place]))
            where = f" of {found[first].shard}" if first != shard else ""
            what = "picture" if names is IMAGES else "recording"
            text = f"sample '{key}' has the same {what} as sample '{other}'{where}"
            yield Finding("twin", found[shard].shard, text, key)


def _repeats(marks: Sequence[npt.NDArray[np.int64]]) -> Iterator[tuple[int, int, int, int]]:
    """(list, place, first list, first place) of each number that has come before."""
    joined = np.concatenate(marks) if marks else np.zeros(0, np.int64)
    begins = np.cumsum([0, *map(len, marks)])
    _, first, inverse = np.unique(joined, return_index=True, return_inverse=True)
    earliest = first[inverse]
    for place in np.flatnonzero(earliest != np.arange(len(joined))):
        here, there = (int(np.searchsorted(begins, p, side="right")) - 1 for p in (place, earliest[place]))
        yield here, int(place - begins[here]), there, int(earliest[place] - begins[there])


def serves(found: Sequence[Examined]) -> dict[str, Any]:
    """How many ranks and workers can read the set.

    mmcl reads by index: an optimizer step is cut into rows, and any process may read any row, so the number of shards
    sets no limit; a batch may hold as many samples as there are, and divides by the ranks. `webdataset` gives whole
    shards to each worker of each rank: with fewer shards than ranks x workers some of them have nothing to read, and
    with a number that does not divide some have more than others.
    """
    sizes = [len(e.index) for e in found if len(e.index)]
    return {
        "mmcl": {"ranks": "any", "workers": "any", "largest_batch": sum(sizes)},
        "webdataset": {
            "ranks_x_workers": len(sizes),
            "even": [n for n in range(1, len(sizes) + 1) if len(sizes) % n == 0],
            "equal_shards": len(set(sizes)) == 1,
        },
    }


def totals(found: Sequence[Examined]) -> Mapping[str, int]:
    """Shards, samples, bytes, and how many samples have each standard field."""
    fields = {name: sum(int(fields_of(e.index)[name].sum()) for e in found) for name in STANDARD_FIELDS}
    whole = {"shards": len(found), "samples": sum(len(e.index) for e in found), "bytes": sum(e.size for e in found)}
    return {**whole, **{name: count for name, count in fields.items() if count}}
