"""Which kind of source the user named."""

from __future__ import annotations

from pathlib import Path

from mmcl.datamodules.writing.folders import FolderSource
from mmcl.datamodules.writing.options import Kind, Options
from mmcl.datamodules.writing.rows import RowSource
from mmcl.datamodules.writing.saved_datasets import DatasetSource, is_saved
from mmcl.datamodules.writing.tables import SUFFIXES, TableSource
from mmcl.datamodules.writing.tars import TarSource
from mmcl.errors import ConfigError

COLUMN_OPTIONS = ("image", "audio", "text", "label", "key", "json", "root", "tsv_quotes", "split_by", "split_from")
UNHEEDED: dict[Kind, tuple[str, ...]] = {
    "images": COLUMN_OPTIONS,
    "audio": COLUMN_OPTIONS,
    "texts": COLUMN_OPTIONS,
    "table": ("classes",),
    "datasets": ("classes", "root", "tsv_quotes"),
    "shards": (*COLUMN_OPTIONS, "classes", "class_names"),
}
"""Kind of source -> options that say nothing about it; they are refused and not passed over."""
CALLED: dict[Kind, str] = {
    "images": "a folder of pictures",
    "audio": "a folder of recordings",
    "texts": "a folder of texts",
    "table": "a table",
    "datasets": "a saved data set",
    "shards": "a list of shards",
}


def open_source(options: Options) -> RowSource:
    """The source that the options name.

    Raises:
        ConfigError: it is not there, or of no known kind, or an option has no meaning for it.
    """
    kind = options.kind or _kind(options)
    if kind in ("table", "shards"):
        _refuse_unheeded(options, kind)
        return TableSource(options) if kind == "table" else TarSource(options)
    if len(options.sources) > 1:
        raise ConfigError("one folder can be written at a time; several sources are tables or tar files")
    if not Path(options.sources[0]).is_dir():
        raise ConfigError(f"{options.sources[0]} is no folder")
    if kind == "datasets":
        _refuse_unheeded(options, kind)
        return DatasetSource(options)
    source = FolderSource(options, kind)
    _refuse_unheeded(options, source.kind)
    return source


def _kind(options: Options) -> Kind | None:
    """What the first source is; None for a folder of files."""
    first = Path(options.sources[0])
    if first.is_dir():
        return "datasets" if is_saved(first) else None
    if first.suffix in SUFFIXES:
        return "table"
    if first.suffix != ".tar":
        what = "is of no known kind" if first.exists() else "does not exist"
        raise ConfigError(f"{first} {what}; give a folder, a table ({', '.join(SUFFIXES)}) or tar files")
    return "shards"


def _refuse_unheeded(options: Options, kind: Kind) -> None:
    plain = Options((), Path())
    for name in UNHEEDED[kind]:
        given, default = (getattr(o.columns, name, getattr(o, name, None)) for o in (options, plain))
        if given != default:
            hint = "; --split_by_key splits by what the keys say" if name in ("split_by", "split_from") else ""
            raise ConfigError(f"--{name} says nothing about {CALLED[kind]} ({options.sources[0]}); leave it out{hint}")
