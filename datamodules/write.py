"""Write shards whose bytes depend on the samples alone."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mmcl.datamodules.decode import DECODERS, IMAGES, kind
from mmcl.errors import ConfigError


class Written(NamedTuple):
    """A finished shard: its samples, its size in bytes, and its SHA-256 as hexadecimal digits."""

    samples: int
    bytes: int
    sha256: str


class ShardFile:
    """A tar that grows sample by sample and appears under its name only when it is complete.

    Used as a context, it leaves nothing behind where the body raises.

    Args:
        path: the tar file.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.samples, self.bytes = path, 0, 0
        self.written: Written | None = None
        self._digest = hashlib.sha256()
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}")
        self._file = open(self._temporary, "wb", buffering=1 << 20)  # noqa: SIM115  (closed on exit)

    def __enter__(self) -> ShardFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._write(bytes(self._full(self.bytes) - self.bytes))  # zeros are the end mark
                # A name that appears must not stand for less after a power failure.
                self._file.flush()
                os.fsync(self._file.fileno())
                os.replace(self._temporary, self.path)
                self.written = Written(self.samples, self.bytes, self._digest.hexdigest())
        finally:
            self._temporary.unlink(missing_ok=True)
            self._file.close()

    def add(self, packed: bytes) -> None:
        """Add a sample, which `pack` has packed."""
        self._write(packed)
        self.samples += 1

    def size_with(self, packed: bytes) -> int:
        """Bytes of the complete tar if this sample were its last."""
        return self._full(self.bytes + len(packed))

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.bytes += len(data)

    @staticmethod
    def _full(size: int) -> int:
        """With two empty blocks at the end, filled up to a whole record, as `tarfile` does."""
        return -(-(size + 2 * tarfile.BLOCKSIZE) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def pack(key: str, members: Iterable[tuple[str, bytes]]) -> bytes:
    """A sample as it lies in a tar: for each extension and content a header and the content, in whole blocks."""
    parts: list[bytes] = []
    for extension, data in members:
        # A fresh TarInfo has owner 0, no owner name and time 0.
        info = tarfile.TarInfo(f"{key}.{extension}")
        info.size = len(data)
        header = info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        parts += [header, data, bytes(-len(data) % tarfile.BLOCKSIZE)]
    return b"".join(parts)


def write_shard(path: str | Path, samples: Iterable[Mapping[str, Any]]) -> int:
    """Write samples as a WebDataset tar. Equal samples give equal bytes, on any machine.

    The file appears under its name only when it is complete.

    Args:
        path: the tar file.
        samples: dictionaries with ``__key__`` and one entry per member, extension -> value: bytes as they are, strings
            for ``txt``, integers for ``cls``, arrays for ``npy``, PIL images for ``png``, ``webp`` (lossless) and
            ``jpg`` (quality 95), anything JSON can hold for ``json``.

    Returns:
        The number of samples.

    Raises:
        ConfigError: a key is empty, has a dot in its last part, or comes twice; a sample without members; a value
            that its extension cannot hold.
    """
    path = Path(path)
    seen: set[str] = set()
    with ShardFile(path) as shard:
        for sample in samples:
            key = sample.get("__key__", "")
            fault = key_fault(key)
            if fault:
                raise ConfigError(f"{path}: {fault}")
            if key in seen:
                raise ConfigError(f"{path}: two samples have the key '{key}'")
            if len(sample) < 2:
                raise ConfigError(f"{path}: sample '{key}' has no members")
            seen.add(key)
            where = f"{path}: sample '{key}'"
            shard.add(pack(key, [(e, encode_member(e, v, where)) for e, v in sample.items() if e != "__key__"]))
    return len(seen)


def key_fault(key: Any) -> str:
    """Why this is no sample key; "" if it is one."""
    if not isinstance(key, str) or not key or "." in key.rpartition("/")[2] or key.startswith("__"):
        return f"'{key}' is no sample key: it must be a text without dots that does not begin with __"
    if {"", "..", "."}.intersection(key.split("/")) or any(c < " " or "\ud800" <= c <= "\udfff" for c in key):
        return f"{key!r} is no sample key: it must be a relative path of readable characters"
    return ""


def encode_member(extension: str, value: Any, where: str) -> bytes:
    """Content of a member, of the kinds that `write_shard` takes.

    Raises:
        ConfigError: its extension is never read, or cannot hold such a value; `where` begins the message.
    """
    form = kind(extension)
    if form not in DECODERS:
        raise ConfigError(f"{where}: extension '{extension}' would never be read; known: {', '.join(DECODERS)}")
    if isinstance(value, bytes):
        return value
    if form in IMAGES and isinstance(value, Image.Image):
        return _picture(form, value)
    if form == "txt" and isinstance(value, str):
        return value.encode()
    if form == "cls" and isinstance(value, (int, np.integer)):
        return str(int(value)).encode()
    if form == "json":
        return json.dumps(value, ensure_ascii=False, sort_keys=True).encode()
    if form == "npy" and isinstance(value, np.ndarray):
        buffer = io.BytesIO()
        np.save(buffer, value, allow_pickle=False)
        return buffer.getvalue()
    raise ConfigError(f"{where}: a value of type {type(value).__name__} cannot be written as '{extension}'")


def _picture(form: str, image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    if form == "png":
        image.save(buffer, "PNG", optimize=True)
    elif form == "webp":
        image.save(buffer, "WEBP", lossless=True)
    else:
        image.convert("RGB").save(buffer, "JPEG", quality=95)
    return buffer.getvalue()
