"""Pictures are upright, RGB and Pillow's to the last bit; damage and bombs are refused."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from mmcl.datamodules.decode import decode
from mmcl.datamodules.pictures import MAX_PIXELS


def encoded(image, form="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def photo(height=61, width=45, mode="RGB"):
    """Smooth, with some noise."""
    random = np.random.default_rng(height * width)
    y, x = np.mgrid[:height, :width] / 20.0
    waves = np.stack([np.sin(x), np.sin(y), np.sin(x + y)], -1) * 90 + 128
    pixels = waves + random.normal(0, 12, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode)


def by_pillow(data):
    with Image.open(io.BytesIO(data)) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("size", [(1, 1), (8, 8), (61, 45)])
def test_jpeg_is_pillows_to_the_last_bit(mode, progressive, subsampling, size):
    data = encoded(photo(*size, mode), quality=85, progressive=progressive, subsampling=subsampling)
    found = decode("jpg", data)
    assert type(found) is Image.Image and found.mode == "RGB"
    assert np.array_equal(found, by_pillow(data))
    assert np.array_equal(decode("jpg", data, as_pixels=True), found)


def test_rare_subsampling_is_left_to_pillow():
    data = bytearray(encoded(photo(32, 32), quality=85, subsampling=0))
    place = data.index(b"\xff\xc0") + 10  # components: number, sampling, table
    data[place + 1], data[place + 4], data[place + 7] = 0x31, 0x11, 0x31
    try:
        expected = by_pillow(bytes(data))
    except OSError:
        with pytest.raises((OSError, ValueError)):
            decode("jpg", bytes(data))
    else:
        assert np.array_equal(decode("jpg", bytes(data)), expected)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(form, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo(20, 30), form, exif=exif)
    found = decode(form.lower(), data)
    assert found.size == ((30, 20) if orientation < 5 else (20, 30))
    assert np.array_equal(found, by_pillow(data))
    assert np.array_equal(decode(form.lower(), data, as_pixels=True), found)


def test_transparency_becomes_white():
    image = Image.new("RGBA", (2, 1), (10, 20, 30, 255))
    image.putpixel((1, 0), (10, 20, 30, 0))
    for form in ("PNG", "WEBP"):
        found = decode(form.lower(), encoded(image, form, **({"lossless": True} if form == "WEBP" else {})))
        assert found.mode == "RGB"
        assert found.getpixel((0, 0)) == (10, 20, 30)
        assert found.getpixel((1, 0)) == (255, 255, 255)


def test_palettes_grey_and_16_bits():
    palette = Image.new("RGB", (2, 2), (200, 100, 0)).convert("P", palette=Image.Palette.ADAPTIVE)
    assert decode("png", encoded(palette, "PNG")).getpixel((0, 0)) == (200, 100, 0)
    assert decode("png", encoded(palette, "PNG", transparency=0)).getpixel((0, 0)) == (255, 255, 255)
    assert decode("png", encoded(Image.new("L", (1, 1), 7), "PNG")).getpixel((0, 0)) == (7, 7, 7)
    assert decode("png", encoded(Image.new("1", (1, 1), 1), "PNG")).getpixel((0, 0)) == (255, 255, 255)
    assert decode("png", encoded(Image.new("LA", (1, 1), (7, 0)), "PNG")).getpixel((0, 0)) == (255, 255, 255)
    deep = Image.fromarray(np.array([[0, 257 * 99, 65535]], np.uint16))
    assert np.asarray(decode("png", encoded(deep, "PNG")))[0, :, 0].tolist() == [0, 99, 255]
    rgb48 = png(2, 1, 16, 2, struct.pack(">6H", 0, 257 * 99, 65535, 65535, 257, 0))
    assert np.asarray(decode("png", rgb48))[0].tolist() == [[0, 99, 255], [255, 1, 0]]


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_the_first_picture_of_an_animation(form):
    frames = [Image.new("RGB", (4, 4), color) for color in ((255, 0, 0), (0, 255, 0))]
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:], lossless=True)
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.n_frames == 2
    assert decode(form.lower(), data).getpixel((0, 0)) == (255, 0, 0)


def png(width, height, depth, color, row, chunks=b""):
    """A PNG by hand: every row alike."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = zlib.compress((b"\0" + row) * min(height, 4))
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunks + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def claims(width, height):
    """A JPEG whose header says so."""
    data = bytearray(encoded(photo(16, 16)))
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize(
    ("extension", "data"),
    [
        ("png", png(10_000, 10_000, 8, 2, bytes(30))),
        ("png", png(2**31 - 1, 2**31 - 1, 8, 2, bytes(30))),
        ("jpg", claims(10_000, 10_000)),
        ("jpg", claims(65_500, 65_500)),
        ("jpg", claims(65_535, 65_535)),
    ],
)
def test_bombs_are_refused(extension, data):
    with warnings.catch_warnings(), pytest.raises(ValueError, match="decompression bomb"):
        warnings.simplefilter("error")
        decode(extension, data)


def test_the_limit_itself_passes(monkeypatch):
    monkeypatch.setattr("mmcl.datamodules.pictures.MAX_PIXELS", 64)
    for form in ("JPEG", "PNG"):
        assert decode(form.lower(), encoded(photo(8, 8), form)).size == (8, 8)
        with pytest.raises(ValueError, match="13 x 5 pixels, more than 64"):
            decode(form.lower(), encoded(photo(5, 13), form))
    assert MAX_PIXELS * 3 <= 2**28


def damaged(data, how):
    half = len(data) // 2
    return {
        "cut": data[:half],
        "no end": data[:-2],
        "zeros": data[:half] + bytes(len(data) - half),
        "zeros inside": data[:half] + bytes(len(data) // 4) + data[half + len(data) // 4 :],
        "noise": data[:half] + np.random.default_rng(0).bytes(50) + data[half + 50 :],
        "head": data[:40],
    }[how]


@pytest.mark.parametrize("how", ["cut", "no end", "zeros", "zeros inside", "noise", "head"])
@pytest.mark.parametrize(
    ("form", "options"),
    [("JPEG", {"quality": 85}), ("JPEG", {"quality": 85, "progressive": True}), ("PNG", {})],
)
def test_damage_is_refused(form, options, how):
    data = damaged(encoded(photo(120, 100), form, **options), how)
    with pytest.raises((ValueError, OSError)):
        decode(form.lower(), data)


def test_a_cut_webp_is_refused():
    with pytest.raises(OSError, match=r"truncated|could not|failed"):
        decode("webp", damaged(encoded(photo(120, 100), "WEBP"), "cut"))


def test_a_damaged_cmyk_jpeg_is_refused():
    with pytest.raises(ValueError, match="the JPEG is damaged"):
        decode("jpg", damaged(encoded(photo(120, 100, "CMYK")), "zeros"))


def test_bytes_after_the_end_do_no_harm():
    data = encoded(photo())
    assert np.array_equal(decode("jpg", data + b"\0\0\0garbage"), by_pillow(data))


def test_broken_exif_is_named():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(photo(), exif=exif).replace(b"Exif\0\0", b"Exif\0\0XX", 1)
    place = data.index(b"\xff\xe1") + 2
    length = struct.unpack(">H", data[place : place + 2])[0] + 2
    with pytest.raises(ValueError, match="EXIF block"):
        decode("jpg", data[:place] + struct.pack(">H", length) + data[place + 2 :])


def test_content_decides_among_the_formats():
    image = photo(5, 5)
    assert np.array_equal(decode("jpg", encoded(image, "PNG")), image)
    for form in ("BMP", "GIF", "TIFF"):
        with pytest.raises(ValueError, match="not a JPEG, PNG or WebP"):
            decode("png", encoded(image, form))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_xmp_says_how_a_picture_is_turned_too(form):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    if form == "PNG":
        chunks = PngImagePlugin.PngInfo()
        chunks.add_itxt("XML:com.adobe.xmp", xmp.decode())
        data = encoded(photo(20, 30), form, pnginfo=chunks)
    else:
        data = encoded(photo(20, 30), form, xmp=xmp)
    found = decode(form.lower(), data)
    assert found.size == (20, 30)
    assert np.array_equal(found, by_pillow(data))
