"""Sources that have no index: read as streams, by sequential numbers instead of places."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any

from mmcl.datamodules.decode import captions, decode, kind
from mmcl.datamodules.reader import STANDARD_FIELDS, BadSample, check_formats, decode_field, reason_of
from mmcl.datamodules.remote import check_address, public, scheme
from mmcl.datamodules.shards import expand_shards
from mmcl.datamodules.stream_files import Raw, Turn, one_pass
from mmcl.errors import ConfigError, MmclError, RunError
from mmcl.stream import Source

_RANGE = re.compile(r"\{\d+\.\.\d+\}")


class StreamReader:
    """Decodes the samples of one source that is read as a stream.

    Fields are those of the first sample; every sample must have them. What an index would tell (counts, copies, empty
    captions) is not known beforehand.

    Args:
        source: what to read.
        allow_pipe: whether ``pipe:`` may run commands.

    Raises:
        ConfigError: a command that is not allowed, an address or a field that cannot be, or a first sample that has
            nothing to read.
    """

    def __init__(self, source: Source, allow_pipe: bool) -> None:
        self.source, self.name = source, source.name
        self.fields: dict[str, Sequence[str]] = dict(STANDARD_FIELDS if source.fields is None else source.fields)
        check_formats(self.fields, self.name)
        self.shards = _addresses(source, allow_pipe)
        self.extensions = frozenset(name for names in self.fields.values() for name in names)
        self.present = self._look()
        self._classes: int | None = None

    def check_captions(self) -> None:
        """Captions are seen when they are read; an empty one is a bad sample."""

    def check_labels(self, class_names: Sequence[str], where: str) -> None:
        """Refuse samples without labels; a label without a class name is refused when it is read.

        Raises:
            ConfigError: the first sample has no label.
        """
        if "labels" not in self.present:
            raise ConfigError(f"{where}: `class_names` are given, but source '{self.name}' has no labels; add them")
        self._classes = len(class_names)

    def keeps(self, raw: Raw) -> bool:
        """Whether `Source.labels` maps its class; what cannot be read is kept, and counted as bad."""
        labels = self.source.labels
        data = next((raw[name] for name in self.fields.get("labels", ()) if name in raw), None)
        if labels is None or data is None:
            return True
        try:
            return decode("cls", data) in labels
        except ValueError:
            return True

    def row(self, raw: Raw, as_pixels: bool) -> dict[str, Any]:
        """The fields of a sample, decoded, and ``__key__``.

        Raises:
            BadSample: a member is missing or cannot be decoded.
            RunError: a label without a class name.
        """
        found: dict[str, Any] = {"__key__": raw["__key__"]}
        for field in self.present:
            extension = self._choose(field, raw)
            if extension is None:
                raise BadSample(f"{where(raw)}: it has no member for '{field}' ({', '.join(self.fields[field])})")
            try:
                found[field] = decode_field(field, extension, raw[extension], self.source.labels, as_pixels)
            except Exception as error:  # decoders raise what they like
                raise BadSample(f"{where(raw)}: member '{extension}': {reason_of(error)}") from error
        if self._classes is not None and not 0 <= found["labels"] < self._classes:
            raise RunError(
                f"source '{self.name}': {where(raw)} has label {found['labels']}, but there are {self._classes} class "
                "names; mend `class_names` or `labels`"
            )
        return found

    def _choose(self, field: str, raw: Raw) -> str | None:
        """The extension that a field is read from. A ``json`` without captions is no text."""
        for name in self.fields[field]:
            if name in raw and not (field == "text" and kind(name) == "json" and _without_captions(raw[name])):
                return name
        return None

    def _look(self) -> list[str]:
        wanted = dict.fromkeys(self.shards, self.extensions)
        try:
            raw = next(one_pass(self.shards, Turn(0, 0, 0, 1), wanted, ordered=True, buffer=1), None)
        except MmclError as error:
            raise ConfigError(f"source '{self.name}': {error}") from error
        if raw is None:
            raise ConfigError(f"source '{self.name}': shard {public(self.shards[0])} holds no samples")
        present = [field for field in self.fields if self._choose(field, raw) is not None]
        if not present or (self.source.fields is not None and len(present) < len(self.fields)):
            lacking = [name for field in self.fields if field not in present for name in self.fields[field]]
            raise ConfigError(f"source '{self.name}': {where(raw)} has no member {', '.join(lacking)}")
        return present


class StreamPool:
    """Streams that are drawn as one; stands beside `mmcl.datamodules.dataset.Pool`.

    Number n is sample ``n // readers`` of reader ``n % readers``. A reader's numbers rise while a run goes on; one that
    lies ahead is reached by reading up to it without decoding, which is how a resumed run finds its place.

    Args:
        name: of the pool.
        sources: what is read, shard after shard.
        seed: of the pool in this task.
        readers: how many read together.
        buffer: samples that are shuffled together.

    Raises:
        ConfigError: two sources have one shard.
    """

    ordered = True
    """Numbers are drawn in their order; the shuffling is the stream's own."""
    shard_sizes: Sequence[int] = ()

    def __init__(self, name: str, sources: Sequence[StreamReader], seed: int, readers: int, buffer: int) -> None:
        self.name, self.readers, self.seed = name, list(sources), seed
        self._owner = {shard: reader for reader in sources for shard in reader.shards}
        if len(self._owner) < sum(len(reader.shards) for reader in sources):
            raise ConfigError(f"source '{name}': a shard is in two streams of one pool; name it once")
        self._among, self._buffer = readers, buffer
        self._opened: dict[int, tuple[Iterator[Raw], int]] = {}
        self._held: dict[int, Raw] = {}

    def __len__(self) -> int:
        return sys.maxsize

    @property
    def has_labels(self) -> bool:
        """Whether any of its sources has labels."""
        return any("labels" in reader.present for reader in self.readers)

    def fetched_sizes(self) -> list[int]:
        """Nothing of a stream is kept."""
        return []

    def next_of(self, number: int, step: int) -> int:
        """The number that stands in for a bad sample: the reader's next one, and so on."""
        return number + step * self._among

    def locate(self, number: int) -> tuple[Streamed, int]:
        """The sample of a number."""
        reader, place = number % self._among, number // self._among
        if number not in self._held:
            stream, reached = self._opened.pop(reader, (self._forever(reader), 0))
            if reached > place:
                stream, reached = self._forever(reader), 0
            for _ in range(place - reached):
                next(stream)
            self._held[number] = next(stream)
            self._opened[reader] = stream, place + 1
        # A later number of the same reader may have been asked for in place of a bad sample; earlier ones are over.
        for past in [n for n in self._held if n < number and n % self._among == reader]:
            del self._held[past]
        raw = self._held[number]
        return Streamed(self._owner[raw["__url__"]], raw), number

    def _forever(self, reader: int) -> Iterator[Raw]:
        shards, wanted = list(self._owner), {shard: owner.extensions for shard, owner in self._owner.items()}
        ordered = all(owner.source.ordered for owner in self._owner.values())
        for epoch in count():
            turn, empty = Turn(self.seed, epoch, reader, self._among), True
            for raw in one_pass(shards, turn, wanted, ordered, self._buffer):
                if self._owner[raw["__url__"]].keeps(raw):
                    empty = False
                    yield raw
            if empty:
                raise RunError(
                    f"source '{self.name}': a whole pass gave reader {reader + 1} of {self._among} no sample: "
                    "there are fewer samples than processes x workers, or `labels` maps none of their classes"
                )


class Streamed:
    """One sample of a stream, with the interface of a reader."""

    def __init__(self, reader: StreamReader, raw: Raw) -> None:
        self.source, self._reader, self._raw = reader.source, reader, raw

    def read(self, index: int, as_pixels: bool = False) -> dict[str, Any]:
        """The decoded sample."""
        return self._reader.row(self._raw, as_pixels)

    def where(self, index: int) -> str:
        """Key and shard, for messages."""
        return where(self._raw)


def where(raw: Mapping[str, Any]) -> str:
    """Key and shard of a sample, for messages."""
    return f"sample '{raw['__key__']}' in shard {public(raw['__url__'])}"


def _without_captions(data: bytes) -> bool:
    try:
        return captions(decode("json", data)) is None
    except ValueError:
        return False  # it is read, and then it is a bad sample


def _addresses(source: Source, allow_pipe: bool) -> list[str]:
    found: list[str] = []
    for pattern in source.shards:
        if scheme(pattern) == "pipe":
            if not allow_pipe:
                check_address(pattern, source.name)
            found += _commands(pattern)
        else:
            found += expand_shards([pattern], source.name, remote=True)
    for address, times in Counter(found).items():
        if times > 1:
            raise ConfigError(f"source '{source.name}': shard {public(address)} is listed twice")
    return found


def _commands(pattern: str) -> list[str]:
    """Ranges such as ``{000..003}`` are taken apart; other braces are the shell's."""
    match = _RANGE.search(pattern)
    if match is None:
        return [pattern]
    first, last = match.group()[1:-1].split("..")
    width, step = len(first) if first.startswith("0") else 0, 1 if int(last) >= int(first) else -1
    numbers = range(int(first), int(last) + step, step)
    return [c for n in numbers for c in _commands(f"{pattern[: match.start()]}{n:0{width}d}{pattern[match.end() :]}")]
