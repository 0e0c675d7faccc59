"""Bytes to objects, by a closed list of file extensions. Nothing that is read can run code."""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from mmcl.datamodules.pictures import picture, pixels
from mmcl.datamodules.recordings import recording

IMAGES = ("jpg", "jpeg", "png", "webp")
AUDIO = ("wav", "flac", "ogg", "mp3")
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins like the next one
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LABEL = re.compile(r"\s*[+-]?[0-9]+\s*")


def kind(extension: str) -> str:
    """The part of an extension that names the format: ``seg.png`` is a ``png``."""
    return extension.rpartition(".")[2].lower()


def decode(extension: str, data: bytes, as_pixels: bool = False) -> Any:
    """Decode one member of a shard.

    Args:
        extension: everything after the first dot of the member's name, for instance ``jpg``, ``seg.png`` or ``cls``.
        data: the member's bytes.
        as_pixels: give pictures as arrays (H, W, 3), uint8.

    Returns:
        An RGB `PIL.Image.Image`, a `mmcl.outputs.Audio`, a string, an integer (``cls``), an array (``npy``) or what the
        JSON holds.

    Raises:
        ValueError: the extension is not in the list, or the bytes are not what the extension says. Pillow's
            OSError passes.
    """
    decoder = DECODERS.get(kind(extension))
    if decoder is None:
        raise ValueError(f"members with extension '{extension}' are not decoded; known: {', '.join(DECODERS)}")
    return pixels(data) if as_pixels and decoder is picture else decoder(data)


def _unicode(data: bytes) -> str:
    """UTF-8, unless a byte-order mark declares UTF-16 or UTF-32."""
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8-sig")
    try:
        text = data.decode(encoding, errors="strict")
    except UnicodeDecodeError as error:
        raise ValueError(f"neither UTF-8 nor what a byte-order mark declares: {error}") from error
    if "\0" in text:
        raise ValueError("the text holds NUL characters; it is no UTF-8, but perhaps UTF-16 without a byte-order mark")
    return text


def _text(data: bytes) -> str:
    return _unicode(data).strip()


def _label(data: bytes) -> int:
    text = data.decode("ascii", errors="strict")
    if not _LABEL.fullmatch(text):  # `int` alone would take 1_0 for 10
        raise ValueError(f"{text[:40]!r} is no whole number")
    return int(text)


def _json(data: bytes) -> Any:
    try:
        return json.loads(_unicode(data))
    except RecursionError as error:
        raise ValueError(f"the JSON is nested too deeply: {error}") from error


def _array(data: bytes) -> np.ndarray[Any, Any]:
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise ValueError("it holds a pickle, which could run code: only plain arrays are read") from error
        raise
    except MemoryError as error:
        raise ValueError(f"its header asks for more memory than there is: {error}") from error
    if not isinstance(array, np.ndarray):
        raise ValueError("not a single array; `npz` archives are not decoded")
    return array


DECODERS: dict[str, Callable[[bytes], Any]] = {
    **dict.fromkeys(IMAGES, picture),
    **dict.fromkeys(AUDIO, recording),
    "txt": _text,
    "json": _json,
    "cls": _label,
    "npy": _array,
}
"""Format -> decoder. This list is closed: archives from strangers may hold pickles, which are never read."""


def captions(value: Any) -> list[str] | None:
    """The captions of a decoded ``json`` member: its ``captions`` (a list) or ``caption`` (one); None without either.

    Raises:
        ValueError: they are not strings.
    """
    if not isinstance(value, dict):
        return None
    if "captions" in value:
        found = value["captions"]
    elif "caption" in value:
        found = [value["caption"]]
    else:
        return None
    if not isinstance(found, list) or not all(isinstance(c, str) for c in found):
        raise ValueError("`captions` is not a list of strings")
    return [c.strip() for c in found]
