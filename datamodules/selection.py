"""Which samples of the shards a source keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mmcl.datamodules.index import ShardIndex
from mmcl.datamodules.scan import NO_CAPTION, UNREADABLE
from mmcl.errors import ConfigError
from mmcl.stream import Source

Kept = list[npt.NDArray[np.int64]]
"""For each shard the samples that are kept, ascending."""


def chosen_keys(source: Source) -> set[str]:
    """The keys that a source names, out of its list or its text file (one a line).

    Raises:
        ConfigError: the file is missing or empty.
    """
    if source.keys is None:
        return set()
    if not isinstance(source.keys, str):
        return set(source.keys)
    path = Path(source.keys).expanduser()
    if not path.is_file():
        raise ConfigError(f"source '{source.name}': file of keys {path} does not exist")
    keys = {line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()}
    if not keys:
        raise ConfigError(f"source '{source.name}': file of keys {path} is empty")
    return keys


def keep_keys(kept: Kept, shards: Sequence[ShardIndex], keys: set[str], source: str) -> Kept:
    """Keep the samples with these keys.

    Raises:
        ConfigError: a key is nowhere, or in two shards.
    """
    found: set[str] = set()
    result: Kept = []
    for samples, shard in zip(kept, shards, strict=True):
        here = [(int(i), key) for i in samples if (key := shard.key(int(i))) in keys]
        for _, key in here:
            if key in found:
                raise ConfigError(f"source '{source}': key '{key}' is in two shards; `keys` cannot tell them apart")
            found.add(key)
        result.append(np.array([i for i, _ in here], np.int64))
    if missing := sorted(keys - found):
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise ConfigError(f"source '{source}': {len(missing)} of {len(keys)} `keys` are in no shard: {shown}")
    return result


def keep_labels(kept: Kept, values: Kept, labels: Mapping[int, int], source: str) -> Kept:
    """Keep the samples whose class is mapped, and those whose label cannot be read (they are counted as bad).

    Raises:
        ConfigError: a mapped class has no sample.
    """
    wanted = np.array(sorted(labels), np.int64)
    seen = np.unique(np.concatenate(values)) if values else wanted[:0]
    if lacking := [int(label) for label in wanted if label not in seen]:
        if (seen == NO_CAPTION).all():
            raise ConfigError(
                f"source '{source}': `labels` maps classes, but its samples have none; add members KEY.cls"
            )
        shown = ", ".join(map(str, lacking[:5])) + (", ..." if len(lacking) > 5 else "")
        raise ConfigError(f"source '{source}': `labels` maps classes without a sample: {shown}")
    wanted = np.append(wanted, UNREADABLE)
    return [samples[np.isin(of_shard[samples], wanted)] for samples, of_shard in zip(kept, values, strict=True)]
