"""The members of a tar archive, and what is wrong with it.

`tarfile` takes a broken header inside an archive for its end, so headers are walked here.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

from mmcl.datamodules.faults import shown

BLOCK = 512
_LARGEST = 2**32
_PAX = re.compile(rb"(\d{1,9}) ([^=]+)=")
_SIZE = re.compile(rb"\d{1,18}")
_TOLD = (b"path", b"size")

Say = Callable[[str, str], None]
"""(kind, text) of a fault. It may raise; where it returns, the walk goes on behind the damage."""


class Entry(NamedTuple):
    """A regular file in an archive: its name, the block where its data begin, and the data."""

    name: str
    block: int
    data: bytes


def walk(file: BinaryIO, say: Say, size: int | None = None) -> Iterator[Entry]:
    """Every regular file of an archive.

    Args:
        file: the archive, open at its beginning.
        say: takes what is wrong.
        size: bytes of the archive; None asks the file. Of one that only goes forward it may be anything larger, if
            `say` raises.
    """
    size = os.fstat(file.fileno()).st_size if size is None else size
    told: dict[str, str] = {}
    while True:
        offset = file.tell()
        header = _header(file, offset, say)
        length = _length(header, told, size - file.tell(), offset, say) if header is not None else None
        if header is None or length is None:
            if not _seek_header(file, offset + BLOCK):
                return
            told = {}
            continue
        name = told.get("path", header.name)
        if header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
            told |= _told(header.type, file.read(length), offset, say)
        elif header.type in (tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE):
            file.seek(length, os.SEEK_CUR)
        else:
            if header.isdir():
                length = 0  # whatever the header says, nothing follows
            elif header.type not in tarfile.REGULAR_TYPES or header.type == tarfile.GNUTYPE_SPARSE or "sparse" in told:
                say("link", f"member '{shown(name)}' is no regular file (a link, a sparse file or a device)")
                file.seek(length, os.SEEK_CUR)
            else:
                block, data = file.tell() // BLOCK, file.read(length)
                if len(data) < length:
                    say("cut", f"the file ends inside member '{shown(name)}' ({len(data)} of its {length} bytes)")
                yield Entry(name, block, data)
            told = {}
        file.seek(-length % BLOCK, os.SEEK_CUR)


def _header(file: BinaryIO, offset: int, say: Say) -> tarfile.TarInfo | None:
    """The next header; None at the archive's end mark or at damage, which is said."""
    block = file.read(BLOCK)
    if not block and not offset:
        say("empty", "the file is empty")
    elif not block:
        say("cut", f"the file ends at byte {offset} without an end mark")
    elif len(block) < BLOCK:
        say("cut", f"the file ends inside the header at byte {offset}")
    elif block.count(0) == BLOCK:
        if _rest_has_data(file):
            say("trailing", f"there are data after the end mark at byte {offset}")
    else:
        try:
            return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            other = "" if offset else ", or this is no tar archive"
            say("header", f"the header at byte {offset} is overwritten ({error}){other}")
    return None


def _length(header: tarfile.TarInfo, told: dict[str, str], left: int, offset: int, say: Say) -> int | None:
    """Bytes of a member; None where they cannot be."""
    name = shown(told.get("path", header.name))
    length = int(told.get("size", header.size))
    if length < 0:
        say("header", f"the header at byte {offset} is overwritten (a size of {length})")
    elif length >= _LARGEST:
        say("header", f"member '{name}' has {length} bytes; 4 GiB is the largest that is read")
    elif length > left and not header.isdir():
        say("cut", f"the file ends inside member '{name}' ({left} of its {length} bytes are there)")
    else:
        return length
    return None


def _rest_has_data(file: BinaryIO) -> bool:
    """After the end mark come zeros alone; anything else means that a header was lost, or archives were joined."""
    while chunk := file.read(1 << 20):
        if chunk.count(0) != len(chunk):
            return True
    return False


def _seek_header(file: BinaryIO, offset: int) -> bool:
    """Go to the next block that is a whole header, if there is one."""
    file.seek(offset)
    while len(block := file.read(BLOCK)) == BLOCK:
        if block[257:262] == b"ustar":
            try:
                tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except tarfile.HeaderError:
                continue
            file.seek(-BLOCK, os.SEEK_CUR)
            return True
    return False


def _told(form: bytes, data: bytes, offset: int, say: Say) -> dict[str, str]:
    """What a header in front of another one says of it: its path (GNU); its path, its size, that it is sparse (pax)."""
    if form == tarfile.GNUTYPE_LONGNAME:
        return {"path": data.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    found: dict[str, str] = {}
    position = 0
    while match := _PAX.match(data, position):
        end = position + int(match.group(1))
        value = data[match.end() : end - 1]
        if end <= match.end() or end > len(data) or (match.group(2) == b"size" and not _SIZE.fullmatch(value)):
            say("header", f"the extended header at byte {offset} is overwritten")
            break
        if match.group(2).startswith(b"GNU.sparse"):
            found["sparse"] = ""
        elif match.group(2) in _TOLD:
            found[match.group(2).decode()] = value.decode("utf-8", "surrogateescape")
        position = end
    return found
