"""Bytes to RGB pictures: JPEG, PNG and WebP, by their first bytes.

JPEG goes through libjpeg-turbo (simplejpeg): the pixels are Pillow's to the last bit in less time, and damage that
Pillow passes over is an error. PNG, WebP and what simplejpeg does not know are Pillow's; a PNG's checksums are ours.
"""

from __future__ import annotations

import io
import warnings
import zlib

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

Pixels = npt.NDArray[np.uint8]

MAX_PIXELS = (1 << 28) // 3
"""Pixels of the largest picture that is decoded: Pillow's own limit, a quarter of a gigabyte of RGB."""

_FORMATS = ("JPEG", "PNG", "WEBP")
_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_ORIENTATION = (b"Exif\0\0", b"tiff:Orientation")
"""What a JPEG that says how it is turned contains: an EXIF block or XMP."""


def picture(data: bytes) -> Image.Image:
    """An RGB picture, upright as its EXIF says, on white where it is transparent; the first one of an animation.

    CMYK is converted as Pillow does it, 16-bit grey is scaled to 8 bits, colour profiles are ignored.

    Args:
        data: a whole JPEG, PNG or WebP file.

    Raises:
        ValueError: another format, damaged data, or more than `MAX_PIXELS`.
        OSError: Pillow's, where data are missing.
    """
    found = _decode(data)
    return found if isinstance(found, Image.Image) else Image.fromarray(found)


def pixels(data: bytes) -> Pixels:
    """The pixels of `picture`, (H, W, 3), without the way through Pillow's memory where there is none.

    Raises:
        ValueError: as `picture` does.
        OSError: as `picture` does.
    """
    return np.asarray(_decode(data))


def _decode(data: bytes) -> Image.Image | Pixels:
    if data.startswith(_PNG):
        _check_png(data)
    found = _jpeg(data) if data.startswith(_JPEG) else None
    return _by_pillow(data) if found is None else found


def _jpeg(data: bytes) -> Image.Image | Pixels | None:
    """A JPEG, or None where Pillow has to say: rare subsampling, and headers that cannot be read."""
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    _check_size(width, height)
    try:
        # Strict: missing, overwritten and left over data are errors. Pillow shows half a picture and says nothing.
        found: Pixels = simplejpeg.decode_jpeg(data, "CMYK" if space in ("CMYK", "YCCK") else "RGB", strict=True)
    except ValueError as error:
        raise ValueError(f"the JPEG is damaged: {error}") from error
    if space in ("CMYK", "YCCK"):  # by Adobe's convention inverted, as Pillow takes it
        image = Image.frombuffer("CMYK", (width, height), 255 - found, "raw", "CMYK", 0, 1).convert("RGB")
        found = np.asarray(image)
    if not any(mark in data for mark in _ORIENTATION):
        return found
    image = Image.fromarray(found)
    image.info = dict(_open(data).info)  # reads the header alone
    _turn(image)
    return image


def _by_pillow(data: bytes) -> Image.Image:
    with _open(data) as image:
        _check_size(*image.size)
        image.load()
        _turn(image)
        if image.mode.startswith("I") or image.mode == "F":
            # 16-bit grey: `convert` would clip instead of scale.
            return Image.fromarray((np.asarray(image) / 257.0).clip(0, 255).astype(np.uint8)).convert("RGB")
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            return Image.alpha_composite(white, image).convert("RGB")
        return image if image.mode == "RGB" else image.convert("RGB")


def _open(data: bytes) -> Image.Image:
    """The header alone."""
    try:
        with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):  # see `_check_size`
            return Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError as error:
        raise ValueError("not a JPEG, PNG or WebP picture") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"the picture is refused as a decompression bomb: {error}") from error


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"the picture is {width} x {height} pixels, more than {MAX_PIXELS:,}: refused as a decompression bomb; "
            "write it smaller"
        )


def _check_png(data: bytes) -> None:
    """Compare the checksums of all parts: Pillow does not look at those of the pixels."""
    begin, name = len(_PNG), b""
    while name != b"IEND":
        end = begin + 12 + int.from_bytes(data[begin : begin + 4], "big")
        if begin + 12 > len(data) or end > len(data):
            raise ValueError("the PNG is damaged: it ends before its end mark")
        name, checksum = data[begin + 4 : begin + 8], int.from_bytes(data[end - 4 : end], "big")
        if zlib.crc32(data[begin + 4 : end - 4]) != checksum:
            raise ValueError(f"the PNG is damaged: wrong checksum at byte {begin}")
        begin = end


def _turn(image: Image.Image) -> None:
    """Turn a picture as its EXIF says: those from phones lie on their side."""
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception as error:  # Pillow's parsers raise what they like
        raise ValueError(f"its EXIF block, which says how the picture is turned, cannot be read: {error}") from error
