"""A row to the members of its sample: read, checked, and pictures changed where that was asked for. Runs in workers."""

from __future__ import annotations

import io
from typing import Any

import soundfile
from PIL import Image

from mmcl.datamodules.decode import AUDIO, IMAGES, captions, decode, kind
from mmcl.datamodules.write import encode_member, pack
from mmcl.datamodules.writing.options import Recipe
from mmcl.datamodules.writing.rows import BadRow, Row
from mmcl.errors import ConfigError, MmclError

RECORDINGS = {"WAV": "wav", "WAVEX": "wav", "RF64": "wav", "FLAC": "flac", "OGG": "ogg", "MP3": "mp3", "MPEG": "mp3"}


def make_sample(row: Row, label: int | None, recipe: Recipe) -> bytes:
    """A row's sample, packed for a tar. What cannot be decoded is found here, not in training.

    The extension of a picture or recording is that of its content, whatever its file was called.

    Args:
        row: what to read.
        label: its class; None without one.
        recipe: what is done to pictures.

    Raises:
        BadRow: something is missing, empty, undecodable, or of a kind that shards do not hold.
        RunError: a shard that is read was cut meanwhile.
    """
    made: dict[str, bytes] = {}
    for name, content in row.members.items():
        data = content.read() if hasattr(content, "read") else _encoded(name, content)
        if name == "image" or name in IMAGES:
            extension, data = _picture(data, recipe)
        elif name == "audio" or name in AUDIO:
            extension = _recording(data)
        else:
            extension, data = name, _checked(name, data)
        if extension in made:
            raise BadRow(f"two of its members would be '{extension}'")
        made[extension] = data
    if label is not None:
        made["cls"] = str(label).encode()
    if not made:
        raise BadRow("it has no members that are ever read")
    return pack(row.key, made.items())


def _encoded(extension: str, value: Any) -> bytes:
    try:
        return encode_member(extension, value, "")
    except (ConfigError, TypeError, ValueError) as error:
        raise BadRow(f"its {extension} cannot be written: {error}") from error


def _decoded(extension: str, data: bytes) -> Any:
    if not data and kind(extension) != "txt":
        raise BadRow(f"its {extension} is empty")
    try:
        return decode(extension, data)
    except MmclError:
        raise
    except Exception as error:  # decoders raise what they like
        raise BadRow(f"its {extension} cannot be decoded: {str(error) or type(error).__name__}") from error


def _checked(extension: str, data: bytes) -> bytes:
    value = _decoded(extension, data)
    if extension == "txt":
        if not value:
            raise BadRow("its caption is empty")
        return str(value).encode()
    if extension == "json":
        try:
            texts = captions(value)
        except ValueError as error:
            raise BadRow(f"its json: {error}") from error
        if texts is not None and not (texts and all(texts)):
            raise BadRow("one of its captions is empty")
    return data


def _picture(data: bytes, recipe: Recipe) -> tuple[str, bytes]:
    """Extension and bytes of a picture."""
    if not data:
        raise BadRow("its picture is empty")
    form = _form(data)
    if form is None:
        raise BadRow("its picture is no JPEG, PNG or WebP; convert it")
    image = _decoded(form, data)
    target = recipe.encode or form
    if recipe.resize is None or min(image.size) <= recipe.resize:
        return target, data if target == form else _compressed(target, image, recipe.quality)
    scale = recipe.resize / min(image.size)
    size = (max(recipe.resize, round(image.width * scale)), max(recipe.resize, round(image.height * scale)))
    return target, _compressed(target, image.resize(size, Image.Resampling.LANCZOS), recipe.quality)


def _form(data: bytes) -> str | None:
    if data.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    return "webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


def _compressed(form: str, image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    if form == "png":
        image.save(buffer, "PNG", optimize=True)
    else:
        image.save(buffer, "JPEG" if form == "jpg" else "WEBP", quality=quality)
    return buffer.getvalue()


def _recording(data: bytes) -> str:
    try:
        found = soundfile.info(io.BytesIO(data)).format
    except soundfile.LibsndfileError as error:
        raise BadRow(f"it is no recording that can be read: {error.error_string}") from error
    form = RECORDINGS.get(found)
    if form is None:
        raise BadRow(f"its recording is of the kind {found}, and shards hold {', '.join(AUDIO)}; convert it")
    _decoded(form, data)
    return form
