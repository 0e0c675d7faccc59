"""`mmcl shards show`: print samples, and write a contact sheet of them."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmcl.datamodules.decode import decode
from mmcl.datamodules.faults import shown
from mmcl.datamodules.files import read_bytes
from mmcl.datamodules.index import Member, ShardIndex, load_index
from mmcl.datamodules.listing import given_shards
from mmcl.datamodules.order import Order
from mmcl.datamodules.sampler import choose
from mmcl.datamodules.sheet import Card, html, png, spectrogram, thumbnail
from mmcl.errors import ConfigError, RunError
from mmcl.outputs import Audio

HELP = "print samples, and write a contact sheet with pictures, spectrograms, captions and labels"
_EXCERPT = 300


def add_arguments(parser: ArgumentParser) -> None:
    """Options of the action."""
    parser.add_argument("shards", nargs="+", help="tar files, patterns like train-{000..099}.tar, or folders")
    parser.add_argument("--samples", type=int, default=16, help="how many (default: 16)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice; -1 takes the first ones (default: 0)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="contact sheet: a .png, or an .html page")


def run(arguments: Namespace) -> int:
    """Print what the chosen samples hold, and draw them.

    Raises:
        ConfigError: no such shard, a damaged one, or a sheet that is neither PNG nor HTML.
        RunError: the sheet cannot be written.
    """
    out = arguments.out
    if out is not None and out.suffix not in (".png", ".html"):
        raise ConfigError(f"--out {out}: a contact sheet is a .png or an .html file")
    if arguments.samples < 1:
        raise ConfigError(f"--samples {arguments.samples}: must be 1 or more")
    shards = given_shards(arguments.shards)
    indexes = [load_index(shard) for shard in shards]
    chosen = _chosen(indexes, arguments.samples, arguments.seed)
    cards = [_card(shards[shard], indexes[shard], sample) for shard, sample in chosen]
    if out is not None:
        _write(out, cards, f"{len(cards)} of {sum(map(len, indexes))} samples")
    for card in cards:
        print(f"{shown(card.key)}  ({card.shard})")
        for line in (*card.lines, *card.bad):
            print(f"  {shown(line)}")
    if out is not None:
        print(out)
    return 0


def _write(out: Path, cards: Sequence[Card], title: str) -> None:
    try:
        if out.suffix == ".png":
            png(cards).save(out)
        else:
            out.write_text(html(cards, title), encoding="utf-8")
    except OSError as error:
        raise RunError(f"--out {out} cannot be written: {error.strerror or error}") from error


def _chosen(indexes: Sequence[ShardIndex], samples: int, seed: int) -> list[tuple[int, int]]:
    """(shard, sample) of each sample to show, in the order of the shards."""
    begins = np.cumsum([0, *map(len, indexes)])
    total = int(begins[-1])
    places = choose(total, samples, Order([total], seed, 1, ordered=seed < 0))
    return [
        (shard := int(np.searchsorted(begins, place, side="right")) - 1, int(place - begins[shard]))
        for place in places[:samples]
    ]


def _card(shard: str, index: ShardIndex, sample: int) -> Card:
    card = Card(index.key(sample), shard, [], [], [])
    for member in index.members(sample):
        try:
            value = decode(member.extension, read_bytes(shard, member.offset, member.size))
        except Exception as error:  # decoders raise what they like
            card.bad.append(f"{member.extension}: cannot be decoded: {error}")
            continue
        if isinstance(value, Image.Image):
            card.pictures.append(thumbnail(value))
        elif isinstance(value, Audio):
            card.pictures.append(spectrogram(value))
        card.lines.append(f"{member.extension}: {_told(member, value)}")
    return card


def _told(member: Member, value: Any) -> str:
    """What a member holds, in one line."""
    if isinstance(value, Image.Image):
        return f"{value.width} x {value.height} pixels, {member.size} bytes"
    if isinstance(value, Audio):
        return f"{len(value.samples) / value.rate:.2f} s at {value.rate} Hz, {member.size} bytes"
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _EXCERPT else f"{text[:_EXCERPT]}..."
