import io
import pickle

import numpy as np
import pytest
from PIL import Image

from mmcl.datamodules.decode import decode


def encoded(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def test_transparency_becomes_white():
    image = Image.new("RGBA", (2, 1), (10, 20, 30, 255))
    image.putpixel((1, 0), (10, 20, 30, 0))
    for form in ("PNG", "WEBP"):
        found = decode(form.lower(), encoded(image, form, **({"lossless": True} if form == "WEBP" else {})))
        assert found.mode == "RGB"
        assert found.getpixel((0, 0)) == (10, 20, 30)
        assert found.getpixel((1, 0)) == (255, 255, 255)


def test_palettes_and_grey():
    palette = Image.new("RGB", (2, 2), (200, 100, 0)).convert("P", palette=Image.Palette.ADAPTIVE)
    assert decode("png", encoded(palette, "PNG")).getpixel((0, 0)) == (200, 100, 0)
    assert decode("png", encoded(palette, "PNG", transparency=0)).getpixel((0, 0)) == (255, 255, 255)
    assert decode("png", encoded(Image.new("L", (1, 1), 7), "PNG")).getpixel((0, 0)) == (7, 7, 7)
    assert decode("png", encoded(Image.new("LA", (1, 1), (7, 0)), "PNG")).getpixel((0, 0)) == (255, 255, 255)
    deep = Image.fromarray(np.full((1, 1), 65535, np.uint16))
    assert decode("png", encoded(deep, "PNG")).getpixel((0, 0)) == (255, 255, 255)


def test_pictures_stand_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode("jpg", encoded(Image.new("RGB", (4, 2)), "JPEG", exif=exif)).size == (2, 4)


def test_values():
    assert decode("txt", " ein Käse\n".encode()) == "ein Käse"
    assert decode("cls", b"17\n") == 17
    assert decode("json", b'{"a": 1}') == {"a": 1}
    assert decode("mask.npy", _npy(np.arange(3))).tolist() == [0, 1, 2]


def _npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("extension", "data"),
    [
        ("pkl", pickle.dumps(1)),
        ("pth", b"x"),
        ("npy", _npy(np.array([{}], dtype=object))),
        ("npy", pickle.dumps([1])),
        ("txt", b"\xff\xfe\xfa"),
        ("cls", b"cat"),
        ("png", b"not a picture"),
        ("png", encoded(Image.new("RGB", (4, 4)), "BMP")),
        ("jpg", encoded(Image.new("RGB", (64, 64)), "JPEG")[:-200]),
    ],
)
def test_refuses(extension, data):
    with pytest.raises((ValueError, OSError)):
        decode(extension, data)
