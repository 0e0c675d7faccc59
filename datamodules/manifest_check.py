"""Shards against the ``manifest.json`` beside them, where there is one: what `mmcl shards write` meant to be there.

Its key ``shards`` is a list of objects with ``name``, ``samples``, ``bytes`` and ``sha256``. A file of this name
without that key is somebody else's and says nothing.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

from mmcl.datamodules.faults import Finding, refuse
from mmcl.errors import ConfigError

MANIFEST = "manifest.json"


class Entry(NamedTuple):
    """What a manifest says of a shard: samples, size in bytes, and SHA-256 as hexadecimal digits."""

    samples: int
    bytes: int
    sha256: str


def read_manifest(folder: Path) -> dict[str, Entry]:
    """Shard's file name -> what the manifest in a folder says of it; empty without a manifest.

    Raises:
        ConfigError: it cannot be read.
    """
    place = folder / MANIFEST
    if not place.is_file():
        return {}
    try:
        content = json.loads(place.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or "shards" not in content:
            return {}
        rows = [
            (str(row["name"]), Entry(int(row["samples"]), int(row["bytes"]), str(row["sha256"]).lower()))
            for row in content["shards"]
        ]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"{place} cannot be read ({type(error).__name__}: {error}): each of its `shards` has name, samples, bytes "
            "and sha256; fetch it again, or take it away"
        ) from error
    return dict(rows)


def difference(shard: str, samples: int, told: Entry) -> str:
    """In what a shard is not the one that its manifest describes; "" where it is."""
    size = os.path.getsize(shard)
    if size != told.bytes:
        return f"it has {size} bytes, but {MANIFEST} says {told.bytes}"
    with open(shard, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != told.sha256:
        return f"its SHA-256 is not the one in {MANIFEST}"
    if samples != told.samples:
        return f"it has {samples} samples, but {MANIFEST} says {told.samples}"
    return ""


def check_manifest(shard: str, samples: int) -> None:
    """Refuse a shard that its manifest does not describe.

    Args:
        shard: path.
        samples: that were found in it.

    Raises:
        ConfigError: it is another one than the manifest says, or the manifest cannot be read.
    """
    path = Path(shard)
    told = read_manifest(path.parent).get(path.name)
    if told is not None and (wrong := difference(shard, samples, told)):
        refuse(Finding("manifest", shard, wrong))


def lost_shards(folder: Path, pattern: str = "*") -> list[str]:
    """Names of shards that the manifest in a folder lists, that match a pattern, and that are not there."""
    names = fnmatch.filter(read_manifest(folder), pattern)
    return [name for name in names if not (folder / name).exists()]
