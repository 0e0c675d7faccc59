"""Random access to the samples of one source."""

from __future__ import annotations

import hashlib
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from mmcl.datamodules.cache import ShardCache
from mmcl.datamodules.decode import AUDIO, DECODERS, IMAGES, captions, decode, kind
from mmcl.datamodules.index import Member
from mmcl.datamodules.oddities import note_oddities, refuse_copies
from mmcl.datamodules.remote import is_remote, public
from mmcl.datamodules.scan import NO_CAPTION, UNREADABLE
from mmcl.datamodules.selection import chosen_keys, keep_keys, keep_labels
from mmcl.datamodules.shards import expand_shards
from mmcl.errors import ConfigError
from mmcl.stream import Source

STANDARD_FIELDS: Mapping[str, Sequence[str]] = {
    "image": IMAGES,
    "audio": AUDIO,
    "text": ("txt", "json"),
    "labels": ("cls",),
}
NO_LABEL = -100
"""Label of a sample without one: the index that torch's losses ignore."""


class BadSample(Exception):
    """A sample that cannot be decoded: its key, its shard and the reason."""


class SourceReader:
    """The kept samples of a source, by position.

    The kept list is in the order of the shards and of the samples in them, whatever the order of `Source.keys`. Texts
    come from a ``txt`` member, which is one caption, or else from a ``json`` member with ``captions`` (a list) or
    ``caption``. A source with `labels` keeps the samples whose label is mapped.

    Args:
        source: what to read.
        cache: where remote shards are kept; None takes the default folder and bound.

    Raises:
        ConfigError: a shard is missing or damaged, a key or a mapped label is not there, a sample lacks a member.
        RunError: a remote shard cannot be fetched.
    """

    def __init__(self, source: Source, cache: ShardCache | None = None) -> None:
        self.source = source
        self.name = source.name
        self.fields = dict(STANDARD_FIELDS if source.fields is None else source.fields)
        check_formats(self.fields, self.name)
        self._cache = cache or ShardCache()
        self._addresses = expand_shards(source.shards, source.name, remote=True)
        self.paths = [public(address) if is_remote(address) else address for address in self._addresses]
        self._shards = self._cache.indexes(self._addresses)
        refuse_copies(self.name, self.paths, self._shards)
        self._kept = [np.arange(len(shard)) for shard in self._shards]
        if source.labels is not None:
            self._kept = keep_labels(self._kept, self._values("labels"), source.labels, self.name)
        if source.keys is not None:
            self._kept = keep_keys(self._kept, self._shards, chosen_keys(source), self.name)
        self.shard_sizes = [len(kept) for kept in self._kept]
        self._begins = [0, *accumulate(self.shard_sizes)]
        if len(self) == 0:
            raise ConfigError(f"source '{self.name}': no sample is left")
        self.present = self._check_fields()
        note_oddities(self.name, self.paths, self._shards)

    def __len__(self) -> int:
        return self._begins[-1]

    def fetched_sizes(self) -> list[int]:
        """Bytes of each shard in the cache; 0 of a local one."""
        return [self._cache.size(address) for address in self._addresses]

    def key(self, index: int) -> str:
        """Key of a sample."""
        shard, sample = self._locate(index)
        return self._shards[shard].key(sample)

    def double_key(self) -> str | None:
        """A key that two of its samples have; None where all differ, as they do within a shard."""
        if sum(size > 0 for size in self.shard_sizes) < 2:
            return None
        hashes = np.fromiter((hash(self.key(index)) for index in range(len(self))), np.int64, len(self))
        order = np.argsort(hashes, kind="stable")
        again = order[1:][hashes[order[1:]] == hashes[order[:-1]]]
        return self.key(int(again[0])) if len(again) else None

    def where(self, index: int) -> str:
        """Key and shard of a sample, for messages."""
        return f"sample '{self.key(index)}' in shard {self.paths[self._locate(index)[0]]}"

    def content(self, field: str) -> str:
        """A digest of what a field holds, in the order of the samples, out of the index alone."""
        digest = hashlib.blake2b(digest_size=16)
        for shard, kept in zip(self._shards, self._kept, strict=True):
            found = np.zeros((len(shard), 3), np.int64)
            for place, name in reversed(list(enumerate(self.fields[field]))):
                rows = shard.find([name])
                here = np.flatnonzero((rows >= 0) & ((field != "text") | (shard.value[rows] != NO_CAPTION)))
                member = rows[here]
                found[here] = np.stack([np.full(len(here), place), shard.size[member], shard.crc[member]], axis=1)
            digest.update(found[kept].tobytes())
        return digest.hexdigest()

    def read(self, index: int, as_pixels: bool = False) -> dict[str, Any]:
        """Decode one sample: its fields and ``__key__``. ``text`` is a string (``txt``) or a list of them (``json``).

        Args:
            index: of the sample.
            as_pixels: give pictures as arrays instead of `PIL.Image.Image`.

        Raises:
            BadSample: a member cannot be decoded.
            RunError: the shard is gone or was cut while in use.
        """
        shard, sample = self._locate(index)
        members = {m.extension: m for m in self._shards[shard].members(sample)}
        row: dict[str, Any] = {"__key__": self._shards[shard].key(sample)}
        for field in self.present:
            row[field] = self._decode(index, shard, field, self._choose(field, members), as_pixels)
        return row

    def labels(self) -> npt.NDArray[np.int64] | None:
        """(N,) labels of the kept samples in the task's numbering, without reading the shards; None without labels."""
        if "labels" not in self.present:
            return None
        found = self._kept_values("labels")
        if self.source.labels is None:
            return found
        old = np.array([*self.source.labels.keys(), UNREADABLE])
        new = np.array([*self.source.labels.values(), UNREADABLE])
        order = np.argsort(old)
        mapped: npt.NDArray[np.int64] = new[order[np.searchsorted(old[order], found)]]
        return mapped

    def sizes(self) -> npt.NDArray[np.int64]:
        """(N,) bytes of the members that are read of each kept sample, without reading the shards."""
        total = np.zeros(len(self), np.int64)
        for field in self.present:
            found = [s.size[s.find(self.fields[field])[k]] for s, k in zip(self._shards, self._kept, strict=True)]
            total += np.concatenate(found).astype(np.int64)
        return total

    def text(self, index: int) -> str | list[str]:
        """The text of a sample, whatever else it holds.

        Raises:
            BadSample: it cannot be decoded.
            RunError: the shard is gone or was cut while in use.
        """
        shard, member = self._text(index)
        found: str | list[str] = self._decode(index, shard, "text", member)
        return found

    def texts(self) -> Iterator[str]:
        """All captions, in the order of the samples; those that cannot be read are passed over."""
        for index in range(len(self)) if "text" in self.present else ():
            shard, member = self._text(index)
            if member.value != UNREADABLE:
                text = self._decode(index, shard, "text", member)
                yield from [text] if isinstance(text, str) else text

    def check_captions(self) -> None:
        """Refuse empty captions.

        Raises:
            ConfigError: names the first one and how many there are.
        """
        if "text" in self.present:
            empty = np.flatnonzero(self._kept_values("text") == 0)
            if len(empty):
                more = f" ({len(empty)} samples have one)" if len(empty) > 1 else ""
                raise ConfigError(
                    f"source '{self.name}': {self.where(int(empty[0]))} has an empty caption{more}; "
                    "write one, or leave the sample out through `keys`"
                )

    def check_readable(self) -> None:
        """Refuse texts and labels that cannot be decoded: an evaluation has no samples to spare.

        Raises:
            ConfigError: names the first one.
        """
        for field in {"text", "labels"}.intersection(self.present):
            broken = np.flatnonzero(self._kept_values(field) == UNREADABLE)
            if len(broken):
                raise ConfigError(
                    f"source '{self.name}': {self.where(int(broken[0]))}: its {field} cannot be decoded; "
                    "mend it, or leave the sample out through `keys`"
                )

    def check_labels(self, class_names: Sequence[str], where: str) -> None:
        """Refuse labels that no class name stands for.

        Raises:
            ConfigError: there are class names and no labels, or a label lies outside of them.
        """
        labels = self.labels()
        if labels is None:
            raise ConfigError(
                f"{where}: `class_names` are given, but the samples of source '{self.name}' have no labels "
                f"({', '.join(self.fields.get('labels', ('cls',)))}); add them or drop `class_names`"
            )
        outside = np.flatnonzero((labels != UNREADABLE) & ((labels < 0) | (labels >= len(class_names))))
        if len(outside):
            first = int(outside[0])
            raise ConfigError(
                f"{where}: {self.where(first)} has label {int(labels[first])}, but there are "
                f"{len(class_names)} class names (labels 0..{len(class_names) - 1}); mend `class_names` or `labels`"
            )

    def _locate(self, index: int) -> tuple[int, int]:
        shard = bisect_right(self._begins, index) - 1
        return shard, self._kept[shard].item(index - self._begins[shard])

    def _text(self, index: int) -> tuple[int, Member]:
        shard, sample = self._locate(index)
        return shard, self._choose("text", {m.extension: m for m in self._shards[shard].members(sample)})

    def _choose(self, field: str, members: Mapping[str, Member]) -> Member:
        """The member that a field is read from. A ``json`` without captions is no text."""
        for name in self.fields[field]:
            if name in members and not (field == "text" and members[name].value == NO_CAPTION):
                return members[name]
        raise KeyError(field)  # `_check_fields` has seen that every sample has one

    def _decode(self, index: int, shard: int, field: str, member: Member, as_pixels: bool = False) -> Any:
        data = self._cache.read(self._addresses[shard], member.offset, member.size)
        if zlib.crc32(data) != member.crc:  # costs a hundredth of decoding a picture
            raise BadSample(
                f"{self.where(index)}: member '{member.extension}': its bytes changed after the shard was indexed"
            )
        try:
            return decode_field(field, member.extension, data, self.source.labels, as_pixels)
        except Exception as error:  # decoders raise what they like
            raise BadSample(f"{self.where(index)}: member '{member.extension}': {reason_of(error)}") from error

    def _values(self, field: str) -> list[npt.NDArray[np.int64]]:
        """For each shard the values of a text's or label's members, `NO_CAPTION` where a sample has none."""
        found = []
        for shard in self._shards:
            values = np.full(len(shard), NO_CAPTION, np.int64)
            for name in reversed(self.fields.get(field, ())):
                rows = shard.find([name])
                here = np.flatnonzero(rows >= 0)
                of_member = shard.value[rows[here]].astype(np.int64)
                usable = of_member != NO_CAPTION if kind(name) == "json" else np.ones(len(here), bool)
                values[here[usable]] = of_member[usable]
            found.append(values)
        return found

    def _kept_values(self, field: str) -> npt.NDArray[np.int64]:
        return np.concatenate([v[k] for v, k in zip(self._values(field), self._kept, strict=True)])

    def _has(self, field: str) -> npt.NDArray[np.bool_]:
        """(N,) whether a kept sample has a field."""
        if field == "text":
            has = self._kept_values("text") != NO_CAPTION
        else:
            members = [s.find(self.fields[field])[k] for s, k in zip(self._shards, self._kept, strict=True)]
            has = np.concatenate(members) >= 0
        return np.asarray(has, np.bool_)

    def _check_fields(self) -> list[str]:
        present = []
        for field, names in self.fields.items():
            has = self._has(field)
            if not has.any() and self.source.fields is None:
                continue
            if not has.all():
                others = "" if not has.any() else f" ({int(has.sum())} of {len(has)} samples have one)"
                raise ConfigError(
                    f"source '{self.name}': {self.where(int(np.argmin(has)))} has no member for '{field}' "
                    f"({', '.join(names)}){others}; add it, leave the sample out, or choose `fields`"
                )
            present.append(field)
        if not present:
            wanted = ", ".join(n for names in self.fields.values() for n in names)
            raise ConfigError(f"source '{self.name}': no sample of {self.paths[0]} has any of the members {wanted}")
        return present


def decode_field(
    field: str, extension: str, data: bytes, labels: Mapping[int, int] | None, as_pixels: bool = False
) -> Any:
    """What a member says in a field of a sample.

    Args:
        field: of the sample.
        extension: of the member.
        data: its content.
        labels: class in the shards -> class in the task; None takes classes as they are.
        as_pixels: give pictures as arrays instead of `PIL.Image.Image`.

    Raises:
        Exception: whatever the decoder raises; `ValueError` for an empty caption.
    """
    value = decode(extension, data, as_pixels)
    if field == "labels":
        return value if labels is None else labels[value]
    if field == "text" and kind(extension) == "json":
        value = captions(value)
    if field == "text" and (not value or not all(value)):
        raise ValueError("an empty caption")
    return value


def reason_of(error: Exception) -> str:
    """An error as one line."""
    return " ".join(str(error).split()) or type(error).__name__


def check_formats(fields: Mapping[str, Sequence[str]], source: str) -> None:
    """Refuse what is never decoded, and texts and labels in formats that the index does not look into."""
    allowed = {"text": ("txt", "json"), "labels": ("cls",)}
    for field, names in fields.items():
        known = allowed.get(field, tuple(DECODERS))
        for name in names:
            if kind(name) not in known:
                raise ConfigError(
                    f"source '{source}': field '{field}' cannot be read from members '{name}'; "
                    f"known: {', '.join(known)}"
                )
