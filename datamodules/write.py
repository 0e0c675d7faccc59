"""Write shards whose bytes depend on the samples alone."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmcl.datamodules.decode import DECODERS, IMAGES, kind
from mmcl.errors import ConfigError


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
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    seen: set[str] = set()
    try:
        with tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
            for sample in samples:
                key = _key(sample, seen, path)
                for extension, value in sample.items():
                    if extension != "__key__":
                        data = _encode(extension, value, f"{path}: sample '{key}'")
                        # A fresh TarInfo has owner 0, no owner name and time 0.
                        info = tarfile.TarInfo(f"{key}.{extension}")
                        info.size = len(data)
                        tar.addfile(info, io.BytesIO(data))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return len(seen)


def _key(sample: Mapping[str, Any], seen: set[str], path: Path) -> str:
    key = sample.get("__key__", "")
    if not isinstance(key, str) or not key or "." in key.rpartition("/")[2] or key.startswith("__"):
        raise ConfigError(
            f"{path}: '{key}' is no sample key: it must be a text without dots that does not begin with __"
        )
    if key in seen:
        raise ConfigError(f"{path}: two samples have the key '{key}'")
    if len(sample) < 2:
        raise ConfigError(f"{path}: sample '{key}' has no members")
    seen.add(key)
    return key


def _encode(extension: str, value: Any, where: str) -> bytes:
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
