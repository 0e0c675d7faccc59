"""What a source of samples offers: rows that say where their content lies, in a fixed order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from mmcl.datamodules.files import read_bytes


class BadRow(Exception):
    """A row that cannot become a sample, and why. It is counted and named, never passed over."""


@dataclass(frozen=True)
class File:
    """The whole content of a file."""

    path: str

    def read(self) -> bytes:
        """The bytes.

        Raises:
            BadRow: the file is not there, or cannot be read.
        """
        try:
            with open(self.path, "rb") as file:
                return file.read()
        except FileNotFoundError as error:
            raise BadRow(f"the file {self.path} does not exist") from error
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise BadRow(f"the file {self.path} cannot be read: {reason}") from error


@dataclass(frozen=True)
class Slice:
    """Part of a file: a member of a tar."""

    path: str
    offset: int
    size: int

    def read(self) -> bytes:
        """The bytes.

        Raises:
            RunError: the file is gone or shorter than it was.
        """
        return read_bytes(self.path, self.offset, self.size)


class Content(Protocol):
    """Bytes that are read by a worker, when their turn comes."""

    def read(self) -> bytes:
        """The bytes.

        Raises:
            BadRow: there are none.
        """


class Row(NamedTuple):
    """One sample to be.

    Attributes:
        key: of the sample.
        place: where the row comes from, for messages (``pairs.csv line 17``).
        members: what the sample holds: ``image`` and ``audio`` (their extension follows from their content) or an
            extension; a `Content`, or the value itself: a string for ``txt``, anything JSON can hold for ``json``.
        label: class name or number; None without one.
        identity: what may not fall on both sides of a split; None takes the key.
        split: name of the split where the source says it.
        fault: why the row cannot be used; "" where it can.
    """

    key: str
    place: str
    members: Mapping[str, Any] = {}
    label: str | int | None = None
    identity: str | None = None
    split: str | None = None
    fault: str = ""


class RowSource(Protocol):
    """A folder, table, data set or list of shards.

    Attributes:
        kind: its name in the manifest.
        class_names: in the order of the labels, where the source knows them; else empty.
        unused: what the source holds besides that is not written, with counts; complete after a pass over `rows`.
    """

    class_names: tuple[str, ...]
    unused: Counter[str]

    @property
    def kind(self) -> str:
        """What the source is."""

    def rows(self) -> Iterator[Row]:
        """All rows, in the same order at every call. No content is read."""
