"""Fetching files from web servers and object stores, with patience: retries, continuation, and doubt about lengths."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import aiohttp
from fsspec.asyn import get_loop, sync

from mmcl.datamodules.remote import WEB, public, scheme, store
from mmcl.errors import MmclError, RunError

logger = logging.getLogger("mmcl")

WAITS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Seconds between attempts; they begin anew whenever bytes have arrived."""
TIMEOUT = 60.0
"""Seconds to connect, and without a byte, until a web server is given up. Stores' clients have their own."""
CHUNK = 32 << 20
"""Bytes of one request to an object store."""
SMALL = 256 << 20
"""The largest file that is read into memory: an index, a manifest."""

_PIECE = 1 << 20
_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)$")
_TAGS = ("ETag", "etag", "generation", "md5", "LastModified", "last_modified", "updated", "mtime", "created")
_DENIED = ("NoCredentials", "PartialCredentials", "ProfileNotFound", "DefaultCredentials", "ClientAuthentication")
_CLIENTS = ("aiohttp", "aiobotocore", "azure", "botocore", "fsspec", "gcsfs", "google", "s3fs")

Result = TypeVar("Result")


class Version(NamedTuple):
    """What a server says of a file: its bytes, and what changes when the file does ("" where it says nothing)."""

    size: int
    tag: str


class Fault(OSError):
    """A server that fails, or does not keep its word; trying again may help."""


def ask(address: str) -> Version:
    """Size and version of a file.

    Raises:
        FileNotFoundError: there is none.
        PermissionError: it may not be read.
        RunError: the server cannot be reached, or does not say how long the file is.
    """
    return _patiently(lambda: _ask(address), address)


def small_file(address: str) -> bytes | None:
    """The content of a small file; None where there is none. Some stores forbid to read what is not there.

    Raises:
        RunError: the server cannot be reached.
    """
    try:
        return _patiently(lambda: _content(address), address)
    except (FileNotFoundError, PermissionError):
        return None


def download(address: str, version: Version, place: Path) -> None:
    """Bring a file in whole; what an earlier attempt left of it at `place` is continued.

    Args:
        address: URL.
        version: what is expected.
        place: the file that grows. Its length is right afterwards; nothing is known of its content.

    Raises:
        FileNotFoundError: it is gone.
        PermissionError: it may not be read any more.
        RunError: the server fails again and again, sends another length than it said, or another version; the disk is
            full.
    """
    try:
        opened = place.open("ab", buffering=0)
    except OSError as error:
        raise _unwritable(str(place), error) from error
    with opened as file:
        file.seek(0, os.SEEK_END)
        if file.tell() > version.size or not version.tag:
            _cut(file)
        reached, waits = file.tell(), iter(WAITS)
        while file.tell() < version.size:
            try:
                _append(address, version, file)
                if file.tell() == version.size:
                    return
                raise Fault(f"it ended at byte {file.tell()} of {version.size}")
            except Exception as error:
                fault = _fault(error)
            if file.tell() > reached:
                reached, waits = file.tell(), iter(WAITS)
            _wait(waits, fault, address)


def _patiently(call: Callable[[], Result], address: str) -> Result:
    waits = iter(WAITS)
    while True:
        try:
            return call()
        except Exception as error:
            _wait(waits, _fault(error), address)


def _wait(waits: Iterator[float], fault: str, address: str) -> None:
    seconds = next(waits, None)
    if seconds is None:
        raise RunError(
            f"{public(address)} cannot be fetched: {fault} (tried {len(WAITS) + 1} times); run again when the server "
            "answers"
        )
    logger.warning("%s: %s; trying again in %g s", public(address), fault, seconds)
    time.sleep(seconds)


def _fault(error: Exception) -> str:
    """What a failed attempt is called; raises what no further attempt would mend."""
    if isinstance(error, (FileNotFoundError, PermissionError, MmclError)):
        raise error
    name, package = type(error).__name__, type(error).__module__.partition(".")[0]
    text = public(" ".join(str(error).split()))[:300]
    if name.startswith(_DENIED):
        raise PermissionError(text) from error
    if isinstance(error, aiohttp.ClientResponseError):
        return f"HTTP {error.status} {error.message}".strip()
    if isinstance(error, TimeoutError):
        return "it timed out"
    if isinstance(error, (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError, ConnectionResetError)):
        return "the connection was dropped"
    if isinstance(error, OSError) or package in _CLIENTS:
        return text or name
    raise error


def _ask(address: str) -> Version:
    if scheme(address) in WEB:
        # HEAD is refused by addresses that are signed for reading.
        return Version(*_web(address, 0, 1, _no_body))
    files, path = store(address)
    files.invalidate_cache()
    return _told(files.info(path))


def _content(address: str) -> bytes:
    if scheme(address) in WEB:
        return bytes(_web(address, 0, None, _whole_body))
    files, path = store(address)
    files.invalidate_cache()
    version = _told(files.info(path))
    _check_small(address, version)
    return _sized(files.cat_file(path), version.size)


def _told(info: dict[str, Any]) -> Version:
    if info.get("type") == "directory":
        raise FileNotFoundError(info.get("name", ""))
    tag = next((str(info[key]) for key in _TAGS if info.get(key)), "")
    return Version(int(info["size"]), tag.strip('"'))


def _sized(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise Fault(f"it has {size} bytes, and {len(data)} arrived")
    return data


def _append(address: str, version: Version, file: FileIO) -> None:
    if scheme(address) in WEB:
        _web(address, file.tell(), None, lambda answer: _body(answer, version, file))
        return
    files, path = store(address)
    while (offset := file.tell()) < version.size:
        end = min(offset + CHUNK, version.size)
        _store(file, _sized(files.cat_file(path, start=offset, end=end), end - offset))
    files.invalidate_cache()
    _same(version, _told(files.info(path)), address)


def _web(address: str, first: int, end: int | None, use: Callable[[aiohttp.ClientResponse], Any]) -> Any:
    """Ask a web server for a part of a file, and give its answer to a coroutine."""
    limits = aiohttp.ClientTimeout(total=None, connect=TIMEOUT, sock_connect=TIMEOUT, sock_read=TIMEOUT)
    headers = {"Accept-Encoding": "identity"}  # a length of compressed bytes would say nothing
    if first or end is not None:
        headers["Range"] = f"bytes={first}-{'' if end is None else end - 1}"

    async def answered() -> Any:
        # A session of its own: a fork must not inherit connections. Proxies and ~/.netrc are the environment's.
        async with (
            aiohttp.ClientSession(timeout=limits, trust_env=True) as session,
            session.get(address, headers=headers) as answer,
        ):
            if answer.status in (404, 410):
                raise FileNotFoundError(f"HTTP {answer.status}")
            if answer.status in (401, 403, 407):
                raise PermissionError(f"HTTP {answer.status}")
            if answer.status >= 400 and answer.status not in (408, 416, 425, 429) and answer.status < 500:
                raise RunError(f"{public(address)} cannot be fetched: HTTP {answer.status} {answer.reason}")
            if answer.status != 416:  # of a file without bytes there is no first one
                answer.raise_for_status()
            return await use(answer)

    return sync(get_loop(), answered)


async def _no_body(answer: aiohttp.ClientResponse) -> Version:
    return _version(answer)


async def _whole_body(answer: aiohttp.ClientResponse) -> bytes:
    version = _version(answer)
    _check_small(str(answer.url), version)
    return _sized(await answer.read(), version.size)


def _check_small(address: str, version: Version) -> None:
    if version.size > SMALL:
        raise RunError(f"{public(address)} has {version.size} bytes; an index or manifest has {SMALL} at most")


async def _body(answer: aiohttp.ClientResponse, version: Version, file: FileIO) -> None:
    _same(version, _version(answer), str(answer.url))
    match = _RANGE.match(answer.headers.get("Content-Range", ""))
    if answer.status != 206:
        if file.tell():
            _cut(file)  # the server does not continue files
    elif match is None or int(match.group(1) or -1) != file.tell():
        raise Fault(f"asked for the bytes from {file.tell()}, it sends others")
    async for piece in answer.content.iter_chunked(_PIECE):
        if file.tell() + len(piece) > version.size:
            raise Fault(f"it sends more than the {version.size} bytes that it said")
        _store(file, piece)


def _version(answer: aiohttp.ClientResponse) -> Version:
    """Of the whole file, whatever part of it the answer holds."""
    match = _RANGE.match(answer.headers.get("Content-Range", ""))
    told = match.group(2) if match and answer.status in (206, 416) else answer.headers.get("Content-Length", "*")
    if answer.headers.get("Content-Encoding", "identity") != "identity" or not told.isdigit():
        raise RunError(f"{public(str(answer.url))}: the server does not say how long the file is; mmcl needs to know")
    tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
    return Version(int(told), tag.removeprefix("W/").strip('"'))


def _same(expected: Version, found: Version, address: str) -> None:
    if found.tag != expected.tag:
        raise RunError(
            f"{public(address)} was replaced on the server after it had been opened; `mmcl shards fetch` takes the "
            "new one"
        )
    if found.size != expected.size:
        raise Fault(f"it said {expected.size} bytes, and then {found.size}")


def _store(file: FileIO, data: bytes) -> None:
    left = memoryview(data)
    try:
        while left:
            left = left[file.write(left) :]
    except OSError as error:
        raise _unwritable(str(file.name), error) from error


def _unwritable(place: str, error: OSError) -> RunError:
    return RunError(f"{place} cannot be written: {error.strerror}; make room there, or set data.cache_dir")


def _cut(file: FileIO) -> None:
    file.seek(0)
    file.truncate()
