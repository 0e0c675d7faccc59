"""`mmcl shards write`: pictures, recordings and texts into shards."""

from __future__ import annotations

import os
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from mmcl.datamodules.writing import Columns, Options, Recipe, write_set

HELP = "make shards out of a folder, tables, a saved data set or other shards"
SHOWN = 8
"""Kinds of files and columns that are named at the end; the manifest has all."""


def add_arguments(parser: ArgumentParser) -> None:
    """Options of the action; `mmcl.datamodules.writing.Options` explains each."""
    default = Options((), Path())
    add = parser.add_argument
    add("sources", nargs="+", help="a folder; .csv, .tsv, .jsonl or .parquet tables; a folder of `datasets`; tar files")
    add("--to", type=Path, required=True, help="folder of the shards")
    kinds = ("images", "audio", "texts", "table", "datasets", "shards")
    add("--from", dest="kind", choices=kinds, help="what the source is (default: find out)")
    add("--samples_per_shard", type=int, default=default.samples_per_shard, help="at most (default: %(default)s)")
    add("--megabytes_per_shard", type=float, default=default.megabytes_per_shard, help="at most (default: %(default)s)")
    add("--resize", type=int, metavar="PIXELS", help="shorter side of larger pictures")
    add("--encode", choices=("jpg", "webp", "png"), help="format of pictures (default: as they are)")
    add("--quality", type=int, default=Recipe.quality, help="of jpg and webp (default: %(default)s)")
    for name in ("image", "audio", "text", "label", "key"):
        add(f"--{name}", metavar="COLUMN", help=f"column of a table or data set (default: {name}, if there is one)")
    add("--json", type=_names, default=(), metavar="COLUMN,...", help="further columns to keep, as a json member")
    add("--root", metavar="FOLDER", help="what paths in a table are relative to (default: the table's folder)")
    add("--tsv_quotes", action="store_true", help="quotes enclose fields of a .tsv, as in a .csv")
    add("--classes", choices=("auto", "folders", "none"), default="auto", help="whether folders are classes")
    add("--class_names", metavar="FILE", help="one name a line, in the order of the labels (default: sorted)")
    add("--split", type=_shares, default={}, metavar="NAME=SHARE,...", help="such as train=0.9,test=0.1")
    add("--shuffle", action="store_true", help="write in a random order; holds the list of rows in memory")
    add("--seed", type=int, default=0, help="of the split and the order (default: %(default)s)")
    add("--split_by", metavar="COLUMN", help="rows with the same value stay on one side")
    add("--split_by_key", metavar="REGEX", help="rows in whose keys it matches the same stay on one side")
    add("--split_from", metavar="COLUMN", help="column with the name of the split")
    add("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes (default: one for each core)")
    add("--engine", choices=("local", "ray"), default=default.engine, help="who works: --workers, or a Ray cluster")
    add("--max_bad", type=int, default=0, help="rows that may be left out (default: %(default)s)")
    add("--licence", help="of the data, for the manifest")
    add("--origin", help="where the data come from, for the manifest")
    add("--restart", action="store_true", help="take away what an earlier call wrote here, and begin anew")


def run(arguments: Namespace) -> int:
    """Write, and print what was written.

    Raises:
        ConfigError: refused; nothing was written.
        RunError: rows are bad, or the disk is full; the same command goes on.
    """
    given = dict(vars(arguments))
    sources = tuple(given.pop("sources"))
    columns = Columns(**{name: given.pop(name) for name in Columns.__dataclass_fields__})
    recipe = Recipe(**{name: given.pop(name) for name in Recipe.__dataclass_fields__})
    restart = given.pop("restart")
    fields = {name: given[name] for name in Options.__dataclass_fields__ if name in given}
    made = write_set(Options(sources, columns=columns, recipe=recipe, **fields), restart, tqdm.write)
    for name, split in made["splits"].items():
        print(f"{name}: {split['samples']} samples, {split['bytes'] / 1e6:.1f} MB, {split['shards']} shards")
    if made["class_names"]:
        print(f"{len(made['class_names'])} classes: {arguments.to / 'classes.txt'}")
    if made["bad"]["rows"]:
        print(f"{made['bad']['rows']} rows left out: {arguments.to / made['bad']['file']}")
    unused = Counter(made["unused"])
    if unused:
        more = f" and {len(unused) - SHOWN} other kinds" if len(unused) > SHOWN else ""
        print("not written: " + ", ".join(f"{name} ({count})" for name, count in unused.most_common(SHOWN)) + more)
    print(arguments.to / "manifest.json")
    return 0


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def _shares(text: str) -> dict[str, float]:
    shares: dict[str, float] = {}
    for item in text.split(","):
        name, equals, share = item.partition("=")
        try:
            value = float(share)
        except ValueError:
            value = -1.0
        if not equals or name in shares or not value > 0:
            raise ArgumentTypeError(f"'{item}' is not NAME=SHARE, such as train=0.9,test=0.1")
        shares[name] = value
    return shares
