"""Data sets as `mmcl shards write` leaves them: a folder each, with shards of each split and ``classes.txt``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mmcl.datamodules.shards import expand_shards
from mmcl.errors import ConfigError
from mmcl.stream import JoinedSource, Source

CLASSES = "classes.txt"


@dataclass(frozen=True)
class DataFolder:
    """One data set of a benchmark.

    Args:
        path: its folder: ``train-*.tar`` and ``test-*.tar``; for labelled data ``classes.txt`` with one name a line.
        benchmark: that asks for it, for messages.

    Raises:
        ConfigError: there is no such folder.
    """

    path: Path
    benchmark: str

    def __post_init__(self) -> None:
        if not self.path.is_dir():
            raise ConfigError(
                f"{self.benchmark}: there is no folder {self.path}; write the shards with `mmcl shards write SOURCE "
                f"--to {self.path} --split_from COLUMN` (splits train and test), or name the folder they are under"
            )

    def shards(self, split: str) -> list[str]:
        """The shards of a split.

        Raises:
            ConfigError: there are none.
        """
        if not sorted(self.path.glob(f"{split}-*.tar")):
            raise ConfigError(f"{self.benchmark}: {self.path} holds no {split}-*.tar")
        return expand_shards([str(self.path / f"{split}-*.tar")], f"{self.benchmark}/{self.path.name}")

    def class_names(self, count: int | None = None) -> list[str]:
        """Names of the classes, in the order of their labels.

        Args:
            count: how many there should be, where the benchmark says so.

        Raises:
            ConfigError: no such file, or another number of names.
        """
        file = self.path / CLASSES
        if not file.is_file():
            raise ConfigError(f"{self.benchmark}: {self.path} has no {CLASSES} (one name a line, in the labels' order)")
        names = file.read_text(encoding="utf-8-sig").splitlines()
        if count is not None and len(names) != count:
            raise ConfigError(f"{self.benchmark}: {file} has {len(names)} names; the benchmark has {count} classes")
        return names

    def samples(self, split: str) -> int | None:
        """How many samples a split has, as its manifest says; None without one."""
        file = self.path / "manifest.json"
        if not file.is_file():
            return None
        splits = json.loads(file.read_text(encoding="utf-8")).get("splits", {})
        return int(splits[split]["samples"]) if split in splits else None


def joined(name: str, sources: Sequence[Source], **changes: Any) -> Source:
    """Several sources that are drawn as one.

    Args:
        name: of the whole.
        sources: at least one.
        changes: further fields of the whole, such as its `share`.
    """
    parts = [_alone(part) for source in sources for part in source.all]
    return JoinedSource(**{**_fields(parts[0]), "name": name, **changes}, parts=tuple(parts[1:]))


def _fields(source: Source) -> dict[str, Any]:
    return {f.name: getattr(source, f.name) for f in fields(Source)}


def _alone(source: Source) -> Source:
    """A source without the parts that are drawn with it."""
    return Source(**_fields(source)) if isinstance(source, JoinedSource) else source
