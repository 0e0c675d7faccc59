"""Which kind of source the user named."""

from __future__ import annotations

from pathlib import Path

from mmcl.datamodules.writing.folders import FolderSource
from mmcl.datamodules.writing.options import Options
from mmcl.datamodules.writing.rows import RowSource
from mmcl.datamodules.writing.saved_datasets import DatasetSource, is_saved
from mmcl.datamodules.writing.tables import SUFFIXES, TableSource
from mmcl.datamodules.writing.tars import TarSource
from mmcl.errors import ConfigError


def open_source(options: Options) -> RowSource:
    """The source that the options name.

    Raises:
        ConfigError: it is not there, or of no known kind.
    """
    first, kind = Path(options.sources[0]), options.kind
    if kind is None and not first.is_dir():
        table = first.suffix in SUFFIXES
        kind = "table" if table else "shards"
        if not table and first.suffix != ".tar":
            what = "is of no known kind" if first.exists() else "does not exist"
            raise ConfigError(f"{first} {what}; give a folder, a table ({', '.join(SUFFIXES)}) or tar files")
    if kind == "table":
        return TableSource(options)
    if kind == "shards":
        return TarSource(options)
    if len(options.sources) > 1:
        raise ConfigError("one folder can be written at a time; several sources are tables or tar files")
    if not first.is_dir():
        raise ConfigError(f"{first} is no folder")
    if kind == "datasets" or (kind is None and is_saved(first)):
        return DatasetSource(options)
    for flag in ("split_by", "split_from"):
        if getattr(options, flag) is not None:
            raise ConfigError(f"--{flag}: a folder has no columns; split by what the paths say with --split_by_key")
    return FolderSource(options, kind)
