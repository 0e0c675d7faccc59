"""The concepts behind the embedded pictures: their names, kinds, halves and shards."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
PRETRAINING_STYLES = ("google", "fluent")
STREAM_STYLE = "twitter"

Record = dict[str, Any]
"""One concept: ``hexcode``, ``label`` (its name), ``kind``, ``tags``, ``missing`` (styles that lack it)."""


def picture_keys(group: str, seed: int, first: bool) -> list[str]:
    """Keys of one half of a group's pictures in the stream's style."""
    return [
        f"{STREAM_STYLE}-{record['hexcode']}"
        for record in half(group, seed, first)
        if (STREAM_STYLE, record["hexcode"]) not in missing()
    ]


def half(group: str, seed: int, first: bool) -> list[Record]:
    """One half of a group's concepts, in Unicode's order; the seed decides which."""
    records = concepts()[group]
    order = list(range(len(records)))
    random.Random(f"{seed}/{group}").shuffle(order)
    cut = len(order) // 2
    return [records[i] for i in sorted(order[:cut] if first else order[cut:])]


def shard(style: str, group: str) -> str:
    """Path of the shard with a group's pictures in one style."""
    return str(ROOT / "data" / f"{style}-{group}.tar")


@cache
def concepts() -> dict[str, list[Record]]:
    """Group -> its concepts, in the order of the labels in the shards."""
    found: dict[str, list[Record]] = json.loads((ROOT / "classes.json").read_text(encoding="utf-8"))
    return found


@cache
def missing() -> frozenset[tuple[str, str]]:
    """(style, hexcode) of the pictures that a style lacks."""
    return frozenset(
        (style, record["hexcode"])
        for records in concepts().values()
        for record in records
        for style in record.get("missing", ())
    )
