"""Shard lists: brace ranges and globs become paths and URLs."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmcl.datamodules.manifest_check import MANIFEST, lost_shards
from mmcl.datamodules.remote import check_address, identity, is_remote, matches, public, scheme
from mmcl.errors import ConfigError

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"^(\d+)\.\.(\d+)$")


def expand_shards(
    shards: Sequence[str], source: str = "train", complete: bool = True, remote: bool = False
) -> list[str]:
    """Paths of all tar files that a shard list names, in its order, and URLs of those that lie elsewhere.

    Args:
        shards: paths with brace ranges (``a-{000..003}.tar``), alternatives (``{train,val}.tar``), globs or ``~``, and
            URLs with brace ranges, or with globs where the store lists files. The matches of one glob are sorted.
        source: name of the source, for messages.
        complete: refuse a glob that finds fewer shards than the manifest beside them lists under it.
        remote: let URLs pass. Whether there is such a file is seen when it is opened.

    Raises:
        ConfigError: a URL that is not taken, a missing file, a glob without matches, or a shard named twice.
    """
    paths: list[str] = []
    for pattern in shards:
        if scheme(pattern) is None:
            for path in _braces(os.path.expanduser(pattern)):
                paths.extend(_files(path, source, complete))
            continue
        check_address(pattern, source)
        if not remote:
            raise ConfigError(f"source '{source}': '{public(pattern)}' is not local; only local shards are looked into")
        for address in _braces(pattern):
            # In the address of a web server a question mark begins the query.
            magic = glob.has_magic(address.partition("?")[0] if scheme(address) in ("http", "https") else address)
            paths.extend(matches(address, source) if magic else [address])
    seen: dict[object, str] = {}
    for path in paths:
        first = seen.setdefault(_which(path), path)
        if first is not path:
            name = "" if first == path else f", also as {public(first)}"
            raise ConfigError(f"source '{source}': shard {public(path)} is listed twice{name}")
    return paths


def _which(path: str) -> object:
    """What two names of one file have in common."""
    if is_remote(path):
        return identity(path)
    stat = os.stat(path)
    return stat.st_dev, stat.st_ino


def _braces(pattern: str) -> Iterator[str]:
    pieces = _BRACES.split(pattern)
    # Odd pieces stood inside braces.
    options = [_options(piece) if i % 2 else [piece] for i, piece in enumerate(pieces)]
    return ("".join(choice) for choice in itertools.product(*options))


def _options(inside: str) -> list[str]:
    bounds = _RANGE.match(inside)
    if bounds is None:
        return inside.split(",")
    first, last = bounds.groups()
    width = len(first) if first.startswith("0") else 0
    low, high = int(first), int(last)
    step = 1 if high >= low else -1
    return [f"{i:0{width}d}" for i in range(low, high + step, step)]


def _instead(path: str) -> str:
    """What is there in place of a shard, and what to do."""
    if not os.path.isdir(path):
        return "does not exist" + ("" if os.path.isabs(path) else f"; relative paths begin in {os.getcwd()}")
    pattern = os.path.join(path, "*.tar")
    if glob.glob(pattern):
        return f"is a folder, not a tar file; name the shards in it, as in {pattern}"
    return f"is a folder without tar files; `mmcl shards write {path} --to FOLDER` makes shards of what it holds"


def _files(path: str, source: str, complete: bool) -> list[str]:
    if glob.has_magic(path) and not os.path.exists(path):
        found = sorted(glob.glob(path))
        if not found:
            raise ConfigError(f"source '{source}': no shard matches '{path}'")
        for folder in {Path(name).parent for name in found} if complete else ():
            if lost := lost_shards(folder, os.path.basename(path)):
                raise ConfigError(
                    f"source '{source}': {folder / MANIFEST} lists {lost[0]}, which is not there ({len(lost)} of the "
                    f"shards that '{path}' means are missing); fetch it, or name the shards that are there"
                )
        return found
    if not os.path.isfile(path):
        raise ConfigError(f"source '{source}': shard {path} {_instead(path)}")
    return [path]
