"""One pass over a tar shard that finds every sample, or says what is wrong with the archive."""

from __future__ import annotations

import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from mmcl.datamodules.decode import DECODERS, captions, decode, kind
from mmcl.errors import ConfigError

BLOCK = 512
UNREADABLE = -(2**31)
"""Value of a member whose bytes are not what its extension says."""
NO_CAPTION = -1
"""Value of a ``json`` member that holds no captions."""

# As WebDataset names samples: the key ends at the first dot of the file name.
_NAME = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
_META = re.compile(r"__[^/]*__($|/)")
_PAX = re.compile(rb"(\d+) ([^=]+)=")
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstandard"}


@dataclass
class Scan:
    """What a pass found: keys, for each the number of its first member, and the members.

    A row is (position in `names`, block of the data, bytes, CRC-32, value); see `mmcl.datamodules.index.ShardIndex`.
    """

    shard: str
    names: list[str] = field(default_factory=list)
    keys: dict[str, int] = field(default_factory=dict)
    rows: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    _key: str = ""
    _extensions: set[str] = field(default_factory=set)

    def add(self, key: str, extension: str, block: int, data: bytes) -> None:
        """Take one member of sample `key`."""
        if key != self._key:
            if key in self.keys:
                raise damaged(self.shard, f"sample '{key}' comes twice, or its members do not stand together")
            self.keys[key] = len(self.rows)
            self._key, self._extensions = key, set()
        if extension in self._extensions:
            raise damaged(self.shard, f"sample '{key}' has two members '{extension}'")
        self._extensions.add(extension)
        if kind(extension) not in DECODERS:
            return
        if not data and kind(extension) != "txt":
            raise damaged(self.shard, f"member '{key}.{extension}' is empty")
        if extension not in self.names:
            self.names.append(extension)
        position = self.names.index(extension)
        self.rows.append((position, block, len(data), zlib.crc32(data), member_value(extension, data)))


def damaged(shard: str, what: str) -> ConfigError:
    """The error of an archive that cannot be trusted."""
    return ConfigError(f"shard {shard}: {what}; make or fetch the shard again")


def scan(shard: str) -> Scan:
    """Read a whole shard.

    Raises:
        ConfigError: the archive is empty, compressed, cut off, overwritten, or holds a duplicate or empty member.
    """
    found = Scan(shard)
    with open(shard, "rb") as file:
        magic = file.read(2)
        if magic in _COMPRESSED:
            raise ConfigError(f"shard {shard} is compressed ({_COMPRESSED[magic]}); unpack it to a plain tar")
        file.seek(0)
        for name, block, data in _files(shard, file, os.path.getsize(shard)):
            match = _NAME.match(name)
            if match is not None and not _META.match(name):
                found.add(match.group(1), match.group(2).lower(), block, data)
    if not found.keys:
        raise damaged(shard, "it holds no samples")
    return found


def member_value(extension: str, data: bytes) -> int:
    """What the index remembers of a member's content, so that start-up checks need not read it again.

    Returns:
        The label of a ``cls``; the captions that are not blank in a ``txt`` or ``json`` (0 where one is blank or there
        are none), or `NO_CAPTION`; 0 for other members; `UNREADABLE`.
    """
    form = kind(extension)
    if form not in ("cls", "txt", "json"):
        return 0
    try:
        value = decode(extension, data)
        if form == "cls":
            return value if abs(value) < -UNREADABLE else UNREADABLE
        texts = [value] if form == "txt" else captions(value)
    except ValueError:
        return UNREADABLE
    if texts is None:
        return NO_CAPTION
    return len(texts) if all(texts) else 0


def _files(shard: str, file: BinaryIO, size: int) -> Iterator[tuple[str, int, bytes]]:
    """Name, block and data of every regular file.

    `tarfile` takes a broken header inside an archive for its end, so headers are walked here.
    """
    renamed: dict[str, str] = {}
    while True:
        offset = file.tell()
        header = _header(shard, file, offset)
        if header is None:
            return _check_rest(shard, file)
        length = int(renamed.get("size", header.size))
        name = renamed.get("path", header.name)
        if file.tell() + length > size:
            raise damaged(shard, f"the file ends inside member '{name}' ({size} bytes are there)")
        if header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
            renamed |= _names(header.type, file.read(length))
        elif header.type in (tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE):
            file.seek(length, os.SEEK_CUR)
        elif header.type in tarfile.REGULAR_TYPES and header.type != tarfile.GNUTYPE_SPARSE and not header.isdir():
            yield name, file.tell() // BLOCK, file.read(length)
            renamed = {}
        elif header.isdir():
            renamed = {}
        else:
            raise damaged(shard, f"member '{name}' is no regular file (a link, a sparse file or a device)")
        file.seek(-length % BLOCK, os.SEEK_CUR)


def _header(shard: str, file: BinaryIO, offset: int) -> tarfile.TarInfo | None:
    """The next header; None at the archive's end mark."""
    block = file.read(BLOCK)
    if not block:
        what = f"the file ends at byte {offset} without an end mark" if offset else "the file is empty"
        raise damaged(shard, what)
    if len(block) < BLOCK:
        raise damaged(shard, f"the file ends inside the header at byte {offset}")
    if block.count(0) == BLOCK:
        return None
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise damaged(shard, f"the header at byte {offset} is overwritten ({error})") from error


def _check_rest(shard: str, file: BinaryIO) -> None:
    """After the end mark come zeros alone; anything else means that a header was lost, or archives were joined."""
    offset = file.tell()
    while chunk := file.read(1 << 20):
        if chunk.count(0) != len(chunk):
            raise damaged(shard, f"there are data after the end mark at byte {offset - BLOCK}")


def _names(form: bytes, data: bytes) -> dict[str, str]:
    """What a header in front of another one says about it: its path (GNU), its path and size (pax)."""
    if form == tarfile.GNUTYPE_LONGNAME:
        return {"path": data.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    found: dict[str, str] = {}
    position = 0
    while match := _PAX.match(data, position):
        end = position + int(match.group(1))
        if match.group(2) in (b"path", b"size"):
            found[match.group(2).decode()] = data[match.end() : end - 1].decode("utf-8", "surrogateescape")
        if end <= position:
            break
        position = end
    return found
