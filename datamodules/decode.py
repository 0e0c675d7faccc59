"""Bytes to objects, by a closed list of file extensions. Nothing that is read can run code."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mmcl.outputs import Audio

IMAGES = ("jpg", "jpeg", "png", "webp")
AUDIO = ("wav", "flac", "ogg", "mp3")
RATES = (1_000, 384_000)
"""Samples a second that a recording can have; a header that says otherwise is damaged."""
LONGEST = 4 * 3600
"""Seconds that a recording may last. Ten hours of silence are a small FLAC, and gigabytes when decoded."""
_FORMATS = ("JPEG", "PNG", "WEBP")
_LABEL = re.compile(r"\s*[+-]?[0-9]+\s*")


def kind(extension: str) -> str:
    """The part of an extension that names the format: ``seg.png`` is a ``png``."""
    return extension.rpartition(".")[2].lower()


def decode(extension: str, data: bytes) -> Any:
    """Decode one member of a shard.

    Args:
        extension: everything after the first dot of the member's name, for instance ``jpg``, ``seg.png`` or ``cls``.
        data: the member's bytes.

    Returns:
        An RGB `PIL.Image.Image`, a `mmcl.outputs.Audio`, a string, an integer (``cls``), an array (``npy``) or what the
        JSON holds.

    Raises:
        ValueError: the extension is not in the list, or the bytes are not what the extension says. Pillow's own
            errors pass through.
    """
    decoder = DECODERS.get(kind(extension))
    if decoder is None:
        raise ValueError(f"members with extension '{extension}' are not decoded; known: {', '.join(DECODERS)}")
    return decoder(data)


def _image(data: bytes) -> Image.Image:
    _check_end(data)
    try:
        opened = Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError as error:
        raise ValueError("not a JPEG, PNG or WebP picture") from error
    with opened:
        image: Image.Image = opened
        image.load()
        # Pictures from phones lie on their side and say so in EXIF.
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I") or image.mode == "F":
            # 16-bit grey: `convert` would clip instead of scale.
            return Image.fromarray((np.asarray(image) / 257.0).clip(0, 255).astype(np.uint8)).convert("RGB")
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            return Image.alpha_composite(white, image).convert("RGB")
        return image if image.mode == "RGB" else image.convert("RGB")


def _check_end(data: bytes) -> None:
    """Refuse a JPEG whose end was overwritten: decoders fill up what is missing and say nothing."""
    if not data.startswith(b"\xff\xd8\xff") or data.endswith(b"\xff\xd9"):
        return
    # What follows the end mark does not matter. The end mark of a preview stands before the picture's own data.
    if data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
        raise ValueError("the JPEG has no end mark: it was cut, or its end was overwritten")


def _audio(data: bytes) -> Audio:
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate = int(file.samplerate)
            if not RATES[0] <= rate <= RATES[1]:
                raise ValueError(f"the header says {rate} samples a second, which no recording has")
            if file.frames > LONGEST * rate:
                raise ValueError(
                    f"a recording of {file.frames / rate / 3600:.1f} hours; {LONGEST // 3600} hours are the longest "
                    "that is read: cut it into pieces"
                )
            samples = file.read(dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"not a recording that can be read: {error.error_string}") from error
    if not len(samples):
        raise ValueError("the recording has no samples")
    if not np.isfinite(samples).all():
        raise ValueError("the recording has samples that are not finite numbers")
    if not samples.any():
        raise ValueError("the recording is silent: all its samples are 0")
    return Audio(samples.mean(axis=1), rate)


def _text(data: bytes) -> str:
    text = data.decode("utf-8-sig", errors="strict").strip()
    if "\0" in text:
        raise ValueError("the text holds NUL characters; it is no UTF-8, but perhaps UTF-16")
    return text


def _label(data: bytes) -> int:
    text = data.decode("ascii", errors="strict")
    if not _LABEL.fullmatch(text):  # `int` alone would take 1_0 for 10
        raise ValueError(f"{text[:40]!r} is no whole number")
    return int(text)


def _json(data: bytes) -> Any:
    return json.loads(data.decode("utf-8-sig", errors="strict"))


def _array(data: bytes) -> np.ndarray[Any, Any]:
    array = np.load(io.BytesIO(data), allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise ValueError("not a single array; `npz` archives are not decoded")
    return array


DECODERS: dict[str, Callable[[bytes], Any]] = {
    **dict.fromkeys(IMAGES, _image),
    **dict.fromkeys(AUDIO, _audio),
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
