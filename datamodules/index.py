"""The byte index of a tar shard: where every member of every sample lies.

Built in one pass on first use and kept beside the shard as ``NAME.tar.index`` (a numpy archive without pickles), or in
the user's cache folder where that place cannot be written. It is built anew when the shard's size or time has changed.
The pass reads every byte, so that a damaged archive is found before training and not passed over.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import tempfile
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mmcl.datamodules.decode import kind
from mmcl.datamodules.files import forget
from mmcl.datamodules.manifest_check import check_manifest
from mmcl.datamodules.scan import Scan, scan
from mmcl.datamodules.tar import BLOCK
from mmcl.errors import ConfigError

logger = logging.getLogger("mmcl")

FORMAT = 2
_COLUMNS = ("key_ends", "starts", "extension", "block", "size", "crc", "value")


class Member(NamedTuple):
    """One file of a sample: its extension, byte offset, size in bytes, CRC-32, and `ShardIndex.value`."""

    extension: str
    offset: int
    size: int
    crc: int
    value: int


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """What a shard holds. N samples, M members; a picture with text and label takes about 60 bytes and its key.

    Args:
        extensions: the extensions that occur, without those that are never decoded.
        keys: all sample keys joined, UTF-8.
        unused: extension -> how many members with it there are, which are never read; "" are files without a key.
        key_ends: (N,) where each key ends in `keys`.
        starts: (N + 1,) first member of each sample.
        extension: (M,) position in `extensions`.
        block: (M,) byte offset of the data, in tar blocks of 512.
        size: (M,) bytes.
        crc: (M,) CRC-32 of the data.
        value: (M,) what `mmcl.datamodules.scan.member_value` says.
    """

    extensions: tuple[str, ...]
    keys: bytes
    unused: Mapping[str, int]
    key_ends: npt.NDArray[np.uint32]
    starts: npt.NDArray[np.uint32]
    extension: npt.NDArray[np.uint8]
    block: npt.NDArray[np.uint32]
    size: npt.NDArray[np.uint32]
    crc: npt.NDArray[np.uint32]
    value: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.key_ends)

    def key(self, sample: int) -> str:
        """Key of a sample."""
        begin = self.key_ends.item(sample - 1) if sample else 0
        return self.keys[begin : self.key_ends.item(sample)].decode("utf-8", "surrogateescape")

    def members(self, sample: int) -> list[Member]:
        """Members of a sample, in the order of the archive."""
        return [
            Member(
                self.extensions[self.extension.item(row)],
                self.block.item(row) * BLOCK,
                self.size.item(row),
                self.crc.item(row),
                self.value.item(row),
            )
            for row in range(self.starts.item(sample), self.starts.item(sample + 1))
        ]

    def find(self, names: Sequence[str]) -> npt.NDArray[np.int64]:
        """(N,) the member of each sample with the first of these extensions that it has; -1 where it has none."""
        found = np.full(len(self), -1, dtype=np.int64)
        owner = np.repeat(np.arange(len(self)), (self.starts[1:] - self.starts[:-1]).astype(np.int64))
        for name in reversed(names):
            if name in self.extensions:
                rows = np.flatnonzero(self.extension == self.extensions.index(name))
                found[owner[rows]] = rows
        return found

    def equals(self, other: ShardIndex) -> bool:
        """Whether two indexes say the same of all samples."""
        return (self.extensions, self.keys) == (other.extensions, other.keys) and all(
            np.array_equal(getattr(self, name), getattr(other, name)) for name in _COLUMNS
        )


def load_index(shard: str) -> ShardIndex:
    """The index of a shard: the one kept from an earlier run if the shard has not changed since, or a new one.

    Raises:
        ConfigError: the archive is damaged, not a plain tar, or not the one that the manifest beside it describes.
    """
    forget(shard)
    stamp = _stamp(shard)
    places = index_places(shard)
    for place in places:
        index = read_index(place, stamp)
        if index is not None:
            return index
    if any(os.path.isfile(place) for place in places):
        logger.info(
            "shard %s: its index is older than the shard, damaged or of another version; it is made anew", shard
        )
    logger.debug("indexing %s", shard)
    index = make_index(scan(shard))
    check_manifest(shard, len(index))
    if not any(write_index(place, stamp, index) for place in places):
        logger.warning("the index of %s could not be kept beside it nor in %s; it is rebuilt in every run", *places)
    return index


def kept_index(shard: str) -> ShardIndex | None:
    """The index that was kept of a shard, if there is one and the shard has not changed since."""
    stamp = _stamp(shard)
    return next((index for place in index_places(shard) if (index := read_index(place, stamp)) is not None), None)


def _stamp(shard: str) -> dict[str, int]:
    try:
        stat = os.stat(shard)
    except OSError as error:
        raise ConfigError(f"shard {shard} cannot be read: {error.strerror}") from error
    return {"format": FORMAT, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def make_index(found: Scan) -> ShardIndex:
    """The index of what a pass found.

    Raises:
        ConfigError: there are too many different extensions.
    """
    keys = [key.encode("utf-8", "surrogateescape") for key in found.keys]
    if len(found.names) > 255:
        raise ConfigError(f"shard {found.shard}: more than 255 different extensions; do the sample keys hold dots?")
    columns = list(zip(*found.rows, strict=True)) if found.rows else [()] * 5
    kinds = (np.uint8, np.uint32, np.uint32, np.uint32, np.int32)
    return ShardIndex(
        tuple(found.names),
        b"".join(keys),
        Counter(kind(extension) for _, extension in found.unused),
        np.cumsum([len(key) for key in keys]).astype(np.uint32),
        np.array([*found.keys.values(), len(found.rows)], np.uint32),
        *(np.array(column, dtype) for column, dtype in zip(columns, kinds, strict=True)),
    )


def index_places(shard: str) -> tuple[Path, Path]:
    """Where the index of a shard may lie: beside it, or in the user's cache folder."""
    name = hashlib.blake2b(os.path.abspath(shard).encode(), digest_size=16).hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(f"{shard}.index"), cache / "mmcl" / "index" / f"{name}.index"


def read_index(place: Path, stamp: Mapping[str, int | str]) -> ShardIndex | None:
    """The index in a file; None where there is none, or it is damaged, or says other things of its shard.

    Args:
        place: the file.
        stamp: what it must say; ``size`` (bytes of the shard) is among it.
    """
    try:
        with np.load(io.BytesIO(place.read_bytes()), allow_pickle=False) as file:
            header = json.loads(file["header"].tobytes())
            if {name: header.get(name) for name in stamp} != stamp:
                return None
            names, unused = tuple(header["extensions"]), dict(header["unused"])
            index = ShardIndex(names, file["keys"].tobytes(), unused, *(file[name] for name in _COLUMNS))
            if not _fits(index, int(stamp["size"])):
                raise ValueError("its parts do not fit together")
            return index
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logger.warning("%s cannot be read (%s); it is built anew", place, error)
        return None


def _fits(index: ShardIndex, size: int) -> bool:
    """Whether an index can be one of a shard of so many bytes."""
    members = len(index.extension)
    rows = (index.block, index.size, index.crc, index.value)
    return (
        len(index.starts) == len(index) + 1
        and all(len(row) == members for row in rows)
        and int(index.starts[-1]) == members
        and bool((np.diff(index.starts.astype(np.int64)) >= 0).all())
        and int(index.key_ends[-1]) == len(index.keys)
        and (not members or int(index.extension.max()) < len(index.extensions))
        and bool((index.block.astype(np.int64) * BLOCK + index.size <= size).all())
    )


def write_index(place: Path, stamp: Mapping[str, int | str], index: ShardIndex) -> bool:
    """Keep an index in a file.

    Args:
        place: the file.
        stamp: what is said of the shard, and compared when the index is read.
        index: of the shard.

    Returns:
        Whether it could be written.
    """
    header = json.dumps({**stamp, "extensions": index.extensions, "unused": dict(index.unused)}).encode()
    arrays: dict[str, Any] = {name: getattr(index, name) for name in _COLUMNS}
    arrays |= {"header": np.frombuffer(header, np.uint8), "keys": np.frombuffer(index.keys, np.uint8)}
    temporary = ""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        # Several processes may build one index at a time: each writes its own file, and the last name wins.
        descriptor, temporary = tempfile.mkstemp(prefix=f".{place.name}.", dir=place.parent)
        with os.fdopen(descriptor, "wb") as file:
            np.savez(file, **arrays)
        os.chmod(temporary, 0o644)
        os.replace(temporary, place)
    except OSError:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)
        return False
    return True
