"""What format bytes are of, by their first bytes."""

from __future__ import annotations

_BEGINS = {
    b"\xff\xd8\xff": "jpg",
    b"\x89PNG\r\n": "png",
    b"GIF8": "gif",
    b"BM": "bmp",
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
    b"fLaC": "flac",
    b"OggS": "ogg",
    b"ID3": "mp3",
    b"\xff\xfb": "mp3",
    b"\xff\xf3": "mp3",
    b"\xff\xf2": "mp3",
    b"\x93NUMPY": "npy",
    b"PK\x03\x04": "zip",
    b"%PDF": "pdf",
    b"<": "html or xml",
    b"\x80\x02": "pickle",
    b"\x80\x03": "pickle",
    b"\x80\x04": "pickle",
    b"\x80\x05": "pickle",
}


def content(data: bytes) -> str:
    """The format that the first bytes tell, by its usual extension; "" where they tell nothing."""
    if data[:4] == b"RIFF":
        return {b"WAVE": "wav", b"WEBP": "webp"}.get(data[8:12], "")
    return next((name for begin, name in _BEGINS.items() if data.startswith(begin)), "")
