"""Shard lists: brace ranges and globs become paths, and only local paths pass."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmcl.datamodules.manifest_check import MANIFEST, lost_shards
from mmcl.errors import ConfigError

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*):")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"^(\d+)\.\.(\d+)$")


def expand_shards(shards: Sequence[str], source: str = "train", complete: bool = True) -> list[str]:
    """Paths of all tar files that a shard list names, in its order.

    Args:
        shards: paths with brace ranges (``a-{000..003}.tar``), alternatives (``{train,val}.tar``), globs or ``~``.
            The matches of one glob are sorted.
        source: name of the source, for messages.
        complete: refuse a glob that finds fewer shards than the manifest beside them lists under it.

    Raises:
        ConfigError: a URL instead of a path, a missing file, a glob without matches, or a shard named twice.
    """
    paths: list[str] = []
    for pattern in shards:
        refuse_urls(pattern, source)
        for path in _braces(os.path.expanduser(pattern)):
            paths.extend(_files(path, source, complete))
    seen: dict[tuple[int, int], str] = {}
    for path in paths:
        stat = os.stat(path)
        first = seen.setdefault((stat.st_dev, stat.st_ino), path)
        if first is not path:
            name = "" if first == path else f", also as {first}"
            raise ConfigError(f"source '{source}': shard {path} is listed twice{name}")
    return paths


def refuse_urls(path: str, source: str) -> None:
    """Let only local paths pass.

    Raises:
        ConfigError: `path` is a command (``pipe:``) or has a URL scheme.
    """
    match = _SCHEME.match(path)
    if match is None:
        return
    if match.group(1).lower() == "pipe":
        raise ConfigError(f"source '{source}': '{path}' would run a shell command; give the path of a local tar file")
    raise ConfigError(
        f"source '{source}': '{path}' has the URL scheme '{match.group(1)}:'; only local shards are supported: "
        "download it and give the path"
    )


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
        what = "is a folder, not a tar file" if os.path.isdir(path) else "does not exist"
        raise ConfigError(f"source '{source}': shard {path} {what}")
    return [path]
