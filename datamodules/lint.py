"""What is wrong or suspicious in one shard. Runs in the workers of `mmcl shards lint`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmcl.datamodules.content import content
from mmcl.datamodules.decode import captions, decode, kind
from mmcl.datamodules.faults import Finding, shown
from mmcl.datamodules.files import forget, read_bytes
from mmcl.datamodules.index import Member, ShardIndex, index_places, kept_index, make_index
from mmcl.datamodules.manifest_check import difference, read_manifest
from mmcl.datamodules.oddities import misnamed
from mmcl.datamodules.scan import CODE, NO_CAPTION, UNREADABLE, Scan, scan
from mmcl.errors import ConfigError
from mmcl.outputs import Audio

_TEXTS = ("txt", "json")
_READ_AT_ONCE = ("txt", "json", "cls")
_ZEROS = bytes(256)
_SMALLEST, _LONGEST_TO_SHORTEST = 8, 20
_SHORTEST = 0.01
_DOTTED = 5
_ODD_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffd]")


@dataclass
class Examined:
    """A shard after the first pass: its bytes, what can be read of it, and what was found."""

    shard: str
    size: int
    index: ShardIndex
    findings: list[Finding]


def examine(shard: str) -> Examined:
    """The pass that reads every byte of a shard: structure, checksums, texts, labels, index and manifest."""
    forget(shard)
    findings: list[Finding] = []
    found = scan(shard, findings.append)
    try:
        index = make_index(found)
    except ConfigError as error:
        findings.append(Finding("name", shard, str(error).removeprefix(f"shard {shard}: ")))
        index = make_index(Scan(shard))
    findings += _unused(shard, found.unused)
    if not any(f.kind == "unreadable" for f in findings):
        findings += _members(shard, index)
        findings += _values(shard, index)
        findings += _kept(shard, index)
        findings += _manifest(shard, len(index))
    return Examined(shard, Path(shard).stat().st_size, index, findings)


def _unused(shard: str, unused: Sequence[tuple[str, str]]) -> Iterator[Finding]:
    """Members that are never read: those that could run code one by one, the others by their extension."""
    others: dict[str, list[str]] = {}
    for key, extension in unused:
        name = f"{key}.{extension}" if extension else key
        if kind(extension) in CODE:
            text = f"member '{name}' could run code where it is opened; it is never read"
            yield Finding("code", shard, text, key, extension)
        else:
            others.setdefault(kind(extension), []).append(name)
    for form, names in others.items():
        what = f"'{shown(form)}' " if form else "without an extension "
        text = f"members {what}are never read ({len(names)}); the first one is '{shown(names[0])}'"
        yield Finding("unused", shard, text)


def _members(shard: str, index: ShardIndex) -> Iterator[Finding]:
    """A shard of which nothing is read, and keys that were cut at a dot."""
    if len(index) and not index.extensions:
        yield Finding("missing", shard, f"its {len(index)} samples have no member that is ever read")
    counts = np.bincount(index.extension, minlength=len(index.extensions))
    once = [name for name, count in zip(index.extensions, counts, strict=True) if "." in name and count == 1]
    if len(once) >= _DOTTED:
        text = (
            f"{len(once)} extensions such as '{once[0]}' occur once: a key ends at the first dot of a name; rename them"
        )
        yield Finding("name", shard, text)


def _values(shard: str, index: ShardIndex) -> Iterator[Finding]:
    """Texts and labels that cannot be read, empty captions, contents of another format."""
    texts = [i for i, name in enumerate(index.extensions) if kind(name) in _TEXTS]
    small = [i for i, name in enumerate(index.extensions) if kind(name) in _READ_AT_ONCE]
    broken = np.isin(index.extension, small) & (index.value == UNREADABLE)
    blank = np.isin(index.extension, texts) & (index.value == 0)
    for row in np.flatnonzero(broken | blank):
        key, member = _at(index, int(row))
        if blank[row]:
            text = f"sample '{key}' has an empty caption in member '{member.extension}'"
            yield Finding("caption", shard, text, key, member.extension)
        else:
            why = _why(member.extension, read_bytes(shard, member.offset, member.size))
            yield _undecodable(shard, key, member.extension, why)
    labels = [i for i, name in enumerate(index.extensions) if kind(name) == "cls"]
    for row in np.flatnonzero(np.isin(index.extension, labels) & (index.value < 0) & ~broken):
        key, member = _at(index, int(row))
        yield Finding("label", shard, f"sample '{key}' has label {member.value}", key, member.extension)
    for place in misnamed(index):
        key, member = _at(index, place)
        form = content(read_bytes(shard, member.offset, min(member.size, 16)))
        text = f"member '{key}.{member.extension}' is a {form} by its content"
        yield Finding("extension", shard, text, key, member.extension)


def _at(index: ShardIndex, row: int) -> tuple[str, Member]:
    """Key and member of a row of the index."""
    sample = int(np.searchsorted(index.starts, row, side="right")) - 1
    return index.key(sample), index.members(sample)[row - int(index.starts[sample])]


def _undecodable(shard: str, key: str, extension: str, why: str) -> Finding:
    return Finding("undecodable", shard, f"sample '{key}': member '{extension}': {why}", key, extension)


def _why(extension: str, data: bytes) -> str:
    """Why a text or label cannot be read."""
    try:
        value = decode(extension, data)
        if kind(extension) == "json":
            captions(value)
    except Exception as error:
        return " ".join(str(error).split()) or type(error).__name__
    return "a label that 32 bits cannot hold"


def _kept(shard: str, index: ShardIndex) -> Iterator[Finding]:
    """What the index of an earlier run says against what the shard holds now."""
    kept = kept_index(shard)
    if kept is None:
        if any(os.path.isfile(place) for place in index_places(shard)):
            yield Finding("stale", shard, "its index is older than the shard, damaged or of another version")
        return
    if kept.keys != index.keys or not np.array_equal(kept.extension, index.extension):
        yield Finding("changed", shard, "it holds other members than its index says, though size and time are the same")
        return
    for row in np.flatnonzero(kept.crc != index.crc):
        key, member = _at(index, int(row))
        text = f"sample '{key}': member '{member.extension}': its bytes changed after the shard was indexed"
        yield Finding("changed", shard, text, key, member.extension)


def _manifest(shard: str, samples: int) -> Iterator[Finding]:
    try:
        listed = read_manifest(Path(shard).parent)
    except ConfigError:
        return  # said once for the folder
    told = listed.get(Path(shard).name)
    if told is None:
        if listed:
            yield Finding("unlisted", shard, "the manifest beside it does not name it")
    elif wrong := difference(shard, samples, told):
        yield Finding("manifest", shard, wrong)


Chunk = tuple[str, list[tuple[str, list[Member]]]]
"""A shard, and the key and members of some of its samples."""


def decode_chunk(chunk: Chunk) -> list[Finding]:
    """The pass that decodes: members that are not what they say, and those that look wrong."""
    shard, samples = chunk
    return [f for key, members in samples for member in members for f in _decoded(shard, key, member)]


def _decoded(shard: str, key: str, member: Member) -> Iterator[Finding]:
    if kind(member.extension) in _READ_AT_ONCE and member.value in (UNREADABLE, NO_CAPTION):
        return  # the first pass has said so, or there is no caption to look at
    data = read_bytes(shard, member.offset, member.size)
    try:
        value = decode(member.extension, data)
    except Exception as error:  # decoders raise what they like
        yield _undecodable(shard, key, member.extension, " ".join(str(error).split()) or type(error).__name__)
        return
    for what, text in _looks(member.extension, data, value):
        yield Finding(what, shard, f"sample '{key}': member '{member.extension}': {text}", key, member.extension)


def _looks(extension: str, data: bytes, value: Any) -> Iterator[tuple[str, str]]:
    """What looks wrong with a decoded member: kind and text."""
    form = kind(extension)
    if isinstance(value, Image.Image):
        if min(value.size) < _SMALLEST or max(value.size) > _LONGEST_TO_SHORTEST * min(value.size):
            yield "shape", f"a picture of {value.width} x {value.height} pixels"
        if not np.ptp(np.asarray(value), axis=(0, 1)).any():
            yield "blank", "all pixels of the picture are equal"
    if isinstance(value, Audio) and len(value.samples) < _SHORTEST * value.rate:
        yield "short", f"a recording of {1000 * len(value.samples) / value.rate:.1f} ms"
    if (compressed := content(data)) in ("jpg", "webp", "mp3"):  # the other formats have checksums
        # Before the last start of scan a JPEG may hold colour profiles, which have zeros.
        hole = data.find(_ZEROS, data.rfind(b"\xff\xda") if compressed == "jpg" else 0)
        if hole >= 0:
            yield "zeros", f"zeros from byte {hole} on, where compressed data should be"
    if form in _TEXTS:
        texts = [value] if isinstance(value, str) else captions(value) or []
        if any(_ODD_TEXT.search(text) for text in texts):
            yield "text", "the text holds control or replacement characters; was it read in a wrong encoding?"
