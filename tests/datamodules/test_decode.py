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


def test_values():
    assert decode("txt", " ein Käse\n".encode()) == "ein Käse"
    assert decode("cls", b"17\n") == 17
    assert decode("json", b'{"a": 1}') == {"a": 1}
    assert decode("SEG.PNG", encoded(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG")).getpixel((0, 0)) == (1, 2, 3)
    assert decode("mask.npy", _npy(np.arange(3))).tolist() == [0, 1, 2]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "utf-32-be"])
def test_a_byte_order_mark_declares_the_encoding(encoding):
    mark = "\ufeff" if encoding.endswith("be") else ""
    assert decode("txt", f"{mark}Käse 猫\n".encode(encoding)) == "Käse 猫"
    assert decode("json", f'{mark}{{"caption": "猫"}}'.encode(encoding)) == {"caption": "猫"}


def _npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _claims(shape):
    """An array whose header promises more than follows."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return buffer.getvalue() + bytes(8)


@pytest.mark.parametrize(
    ("extension", "data"),
    [
        ("pkl", pickle.dumps(1)),
        ("pth", b"x"),
        ("npy", _npy(np.array([{}], dtype=object))),
        ("npy", pickle.dumps([1])),
        ("txt", b"\xff\xfe\xfa"),
        ("txt", "Käse".encode("latin-1")),
        ("txt", "猫".encode("utf-16")[:-1]),
        ("txt", "cat".encode("utf-16-le")),
        ("json", b"[" * 100_000),
        ("json", b"{'a': 1}"),
        ("cls", b"cat"),
        ("cls", b"1_0"),
        ("npy", _claims((1 << 60,))),
        ("npy", _npy(np.arange(9))[:-1]),
        ("png", b"not a picture"),
        ("png", encoded(Image.new("RGB", (4, 4)), "BMP")),
        ("jpg", b"cos\nsystem\n(S'false'\ntR."),
        ("wav", b"not a recording"),
        ("gif", encoded(Image.new("RGB", (4, 4)), "GIF")),
    ],
)
def test_refuses(extension, data):
    with pytest.raises(ValueError, match=r"\w") as error:
        decode(extension, data)
    assert "\n" not in str(error.value)
