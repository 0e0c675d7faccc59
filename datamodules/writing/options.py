"""What `mmcl shards write` is asked for."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmcl.errors import ConfigError

Kind = Literal["images", "audio", "texts", "table", "datasets", "shards"]


@dataclass(frozen=True)
class Columns:
    """Which columns of a table or a data set hold what. None takes the column of the field's own name, if there is one.

    Attributes:
        image: paths of pictures (in a data set the pictures).
        audio: paths of recordings (in a data set the recordings).
        text: captions; a list of strings in one cell is several captions of one sample.
        label: class names, or numbers.
        key: sample keys; without it a sample is called by the number of its row.
        json: further columns, kept together in a ``json`` member.
        root: folder that paths are relative to; None is the table's own.
        tsv_quotes: whether quotes in a ``.tsv`` enclose fields, as in a ``.csv``; by default they are plain characters.
    """

    image: str | None = None
    audio: str | None = None
    text: str | None = None
    label: str | None = None
    key: str | None = None
    json: tuple[str, ...] = ()
    root: str | None = None
    tsv_quotes: bool = False


@dataclass(frozen=True)
class Recipe:
    """What is done to pictures; without it their bytes stay as they are.

    Attributes:
        resize: pixels of the shorter side; larger pictures are made smaller, none is made larger.
        encode: ``jpg``, ``webp`` or ``png``; a picture that has the format already and is not resized stays as it is.
        quality: of ``jpg`` and ``webp``, 1 to 100.
    """

    resize: int | None = None
    encode: Literal["jpg", "webp", "png"] | None = None
    quality: int = 95


@dataclass(frozen=True)
class Options:
    """One call of `mmcl shards write`.

    Attributes:
        sources: a folder; tables; a folder of `datasets`; tar files and patterns.
        to: folder of the shards.
        kind: what the sources are; None finds out.
        columns: of a table or data set.
        classes: whether the first folder below an image or audio folder is a class: ``folders``, ``none``, or ``auto``:
            where no caption lies beside any file and no file lies in the folder itself. Texts have none in ``auto``.
        class_names: file with one name a line, in the order of the labels; None sorts the names that occur.
        recipe: what is done to pictures.
        samples_per_shard: at most so many.
        megabytes_per_shard: at most so large, in millions of bytes of the tar; one sample is always taken. The default
            keeps a shard small enough to fetch and large enough that a set of 100 TB has 200,000.
        shuffle: whether samples are written in a random order; the rows, not their content, are then held in memory.
        split: name -> share; shares add up to 1. Empty writes one set, or the source's own splits.
        split_by: column whose value is the identity that is on one side only.
        split_by_key: pattern; what its first group (or all of it) matches in the key is that identity.
        split_from: column that holds the name of the split.
        seed: of the split and the order.
        workers: processes that read and encode; 0 does it in this one. It does not change a byte.
        engine: ``local`` processes, or ``ray``: a Ray cluster, whose machines see the same files. Nor does this.
        max_bad: rows that may be left out.
        licence: of the data, for the manifest.
        origin: where the data come from, for the manifest.
    """

    sources: tuple[str, ...]
    to: Path
    kind: Kind | None = None
    columns: Columns = field(default_factory=Columns)
    classes: Literal["auto", "folders", "none"] = "auto"
    class_names: str | None = None
    recipe: Recipe = field(default_factory=Recipe)
    samples_per_shard: int = 10_000
    megabytes_per_shard: float = 500.0
    shuffle: bool = False
    split: Mapping[str, float] = field(default_factory=dict)
    split_by: str | None = None
    split_by_key: str | None = None
    split_from: str | None = None
    seed: int = 0
    workers: int = 0
    engine: Literal["local", "ray"] = "local"
    max_bad: int = 0
    licence: str | None = None
    origin: str | None = None

    def check(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            ConfigError: a number out of range, shares that do not add up to 1, or options that exclude each other.
        """
        _check_numbers(self)
        given = [n for n in ("split_by", "split_by_key") if getattr(self, n) is not None]
        if given and not self.split:
            raise ConfigError(f"--{given[0]} needs --split: say which splits there are, such as train=0.9,test=0.1")
        if len(given) == 2:
            raise ConfigError("--split_by and --split_by_key both say what an identity is; give one of them")
        if self.split and self.split_from:
            raise ConfigError("--split and --split_from both say what is on which side; give one of them")
        if self.split_by_key is not None:
            try:
                re.compile(self.split_by_key)
            except re.error as error:
                raise ConfigError(f"--split_by_key {self.split_by_key!r} is no regular expression: {error}") from error

    def identity(self) -> dict[str, Any]:
        """The options that decide the bytes of the shards."""
        named = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        free = (
            "to",
            "workers",
            "engine",
            "max_bad",
            "licence",
            "origin",
            "class_names",
        )  # class names are compared themselves
        kept = {name: value for name, value in named.items() if name not in (*free, "columns", "recipe")}
        parts = {**dataclasses.asdict(self.columns), **dataclasses.asdict(self.recipe)}
        return {**kept, **parts, "sources": list(self.sources), "split": dict(self.split)}


def _check_numbers(options: Options) -> None:
    least = {"samples_per_shard": 1, "workers": 0, "max_bad": 0}
    for name, low in least.items():
        if getattr(options, name) < low:
            raise ConfigError(f"--{name} is {getattr(options, name)}; it must be at least {low}")
    if not options.megabytes_per_shard > 0:
        raise ConfigError(f"--megabytes_per_shard is {options.megabytes_per_shard}; it must be above 0")
    if options.recipe.resize is not None and options.recipe.resize < 1:
        raise ConfigError(f"--resize is {options.recipe.resize}; it must be at least 1 pixel")
    if not 1 <= options.recipe.quality <= 100:
        raise ConfigError(f"--quality is {options.recipe.quality}; it must be 1 to 100")
    for name, share in options.split.items():
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", name):
            raise ConfigError(f"--split: '{name}' is no name of a split: letters, digits, - and _")
        if not share > 0:
            raise ConfigError(f"--split: the share of '{name}' is {share}; it must be above 0")
    if options.split and abs(sum(options.split.values()) - 1) > 1e-6:
        raise ConfigError(f"--split: the shares add up to {sum(options.split.values()):g}; they must add up to 1")
