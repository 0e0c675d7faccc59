"""Shards that a command was given: tar files, patterns, or folders with tar files in them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mmcl.datamodules.shards import expand_shards
from mmcl.errors import ConfigError


def given_shards(arguments: Sequence[str]) -> list[str]:
    """Paths of all shards, in the order of the arguments; those of a folder sorted, hidden ones left out.

    A glob may find fewer than a manifest lists: `mmcl shards lint` names those that are missing.

    Raises:
        ConfigError: see `expand_shards`; also a folder without tar files.
    """
    patterns: list[str] = []
    for argument in arguments:
        folder = Path(os.path.expanduser(argument))
        if not folder.is_dir():
            patterns.append(argument)
            continue
        inside = sorted(
            str(path)
            for path in folder.rglob("*.tar")
            if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        )
        if not inside:
            raise ConfigError(
                f"command line: folder {argument} has no tar files in it; "
                f"`mmcl shards write {argument} --to FOLDER` makes shards of what it holds"
            )
        patterns.extend(inside)
    return expand_shards(patterns, "command line", complete=False)
