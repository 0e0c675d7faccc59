"""A data set of Hugging Face's `datasets`, saved to disk; pictures and recordings keep their bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from mmcl.datamodules.writing.columns import ColumnMap
from mmcl.datamodules.writing.options import Options
from mmcl.datamodules.writing.rows import BadRow, Row
from mmcl.errors import ConfigError

MEDIA = {"image": "Image", "audio": "Audio"}


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote this folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


@dataclass(frozen=True)
class Cell:
    """A picture or recording of a data set."""

    folder: str
    split: str
    row: int
    column: str

    def read(self) -> bytes:
        """The bytes as they were stored.

        Raises:
            BadRow: the cell is empty.
        """
        value = _load(self.folder)[self.split][self.row : self.row + 1][self.column][0]
        if not value or not value["bytes"]:  # `save_to_disk` takes the bytes of files that are named in
            raise BadRow(f"its column '{self.column}' is empty")
        return bytes(value["bytes"])


class DatasetSource:
    """The rows of a saved data set; of a dictionary of them, split after split.

    Args:
        options: whose source is the folder.

    Raises:
        ConfigError: `datasets` is not installed, the folder cannot be read, or columns are missing or of another type.
    """

    kind = "datasets"

    def __init__(self, options: Options) -> None:
        (self._folder,) = options.sources
        self._splits = _load(self._folder)
        first = next(iter(self._splits.values()))
        known = list(first.column_names)
        for name, split in self._splits.items():
            if sorted(split.column_names) != sorted(known):
                raise ConfigError(f"{self._folder}: split '{name}' has other columns than the first one")
        self._columns = ColumnMap(options, known, self._folder)
        features, of = first.features, self._columns.of
        for field, kind in MEDIA.items():
            if field in of and type(features[of[field]]).__name__ != kind:
                raise ConfigError(f"{self._folder}: column '{of[field]}' holds no {kind} but {features[of[field]]}")
        self._media = {field: of[field] for field in MEDIA if field in of}
        label = features[of["label"]] if "label" in of else None
        self.class_names: tuple[str, ...] = tuple(getattr(label, "names", None) or ())
        self.unused = Counter(self._columns.unused)
        self._own = len(self._splits) > 1 and not options.split and not options.split_from

    def rows(self) -> Iterator[Row]:
        """One for each row."""
        media = set(self._media.values())
        for name, split in self._splits.items():
            light = split.select_columns([c for c in split.column_names if c not in media])
            # A set of nothing but pictures has no other columns, and its rows can only be counted.
            rows: Any = light if light.column_names else ({} for _ in range(len(split)))
            for number, values in enumerate(rows):
                members = {field: Cell(self._folder, name, number, column) for field, column in self._media.items()}
                place = f"{self._folder} {name or 'row'} {number}"
                row = self._columns.row(values, members, place, f"{name or 'row'}-{number:08d}")
                yield row._replace(split=name) if self._own else row


@lru_cache(maxsize=2)
def _load(folder: str) -> dict[str, Any]:
    """Split -> data set, memory-mapped, with undecoded pictures and recordings; a single one is called ""."""
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(f"{folder}: reading it needs `datasets`: pip install 'mmcl[datasets]'") from error
    try:
        found = datasets.load_from_disk(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{folder} cannot be read: {error}") from error
    splits = dict(found) if isinstance(found, datasets.DatasetDict) else {"": found}
    if not splits or not any(len(split) for split in splits.values()):
        raise ConfigError(f"{folder} has no rows")
    for name, split in splits.items():
        split = split.with_format(None)
        for column, feature in split.features.items():
            if type(feature).__name__ in MEDIA.values():
                split = split.cast_column(column, type(feature)(decode=False))
        splits[name] = split
    return splits
