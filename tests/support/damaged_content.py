"""Damage to what members hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from damage import (
    REFUSED,
    REPLACED,
    SAID,
    Damage,
    arrays,
    half_zeroed,
    hole,
    huge_picture,
    jpeg,
    npz,
    objects,
    put,
    samples,
    sound,
    sounds,
    ten_hours,
    with_code,
    with_member,
    write,
)

S = samples()
TERABYTES = b"{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000000,), }"
AUDIO, VECTOR = {"audio": ("wav",)}, {"vector": ("npy",)}


def recording(data: bytes) -> Callable[[Path], Path]:
    return write(sounds(s05_wav=data))


CONTENT = [
    Damage(
        "second half of a JPEG zeroed",
        write(samples(s05_jpg=half_zeroed(jpeg()))),
        "undecodable",
        "the JPEG is damaged: Premature end",
        REPLACED,
    ),
    Damage(
        "a hole of zeros in a JPEG",
        write(samples(s05_jpg=hole(jpeg(5, 160)))),
        "undecodable",
        "the JPEG is damaged: Corrupt JPEG data",
        REPLACED,
    ),
    Damage(
        "a hole of zeros in a PNG",
        write(samples(s05_jpg=hole(jpeg(form="PNG")))),
        "undecodable",
        "the PNG is damaged: wrong checksum",
        REPLACED,
    ),
    Damage(
        "a JPEG cut",
        write(samples(s05_jpg=jpeg()[:900])),
        "undecodable",
        "the JPEG is damaged: Premature end",
        REPLACED,
    ),
    Damage(
        "a text named `.jpg`",
        write(samples(s05_jpg=b"no picture")),
        "undecodable",
        "not a JPEG, PNG or WebP picture",
        REPLACED,
    ),
    Damage(
        "a GIF named `.jpg`",
        write(samples(s05_jpg=jpeg(form="GIF"))),
        "undecodable",
        "not a JPEG, PNG or WebP picture",
        REPLACED,
    ),
    Damage(
        "a PNG named `.jpg`",
        write(samples(s05_jpg=jpeg(form="PNG"))),
        "extension",
        "member 's05.jpg' is a png by its content",
        SAID,
        "are of another format than their extension says, and are read as what they are; the first one is 's05.jpg'",
    ),
    Damage(
        "absurd dimensions",
        write(samples(s05_jpg=huge_picture())),
        "undecodable",
        "the picture is refused as a decompression bomb",
        REPLACED,
    ),
    Damage(
        "empty caption",
        write(samples(s05_txt=b" \n")),
        "caption",
        "sample 's05' has an empty caption",
        REFUSED,
        "has an empty caption",
    ),
    Damage(
        "invalid UTF-8",
        write(samples(s05_txt=b"caf\xe9")),
        "undecodable",
        "neither UTF-8 nor what a byte-order mark declares",
        REPLACED,
    ),
    Damage(
        "UTF-16",
        write(samples(s05_txt="text".encode("utf-16-le"))),
        "undecodable",
        "the text holds NUL characters; it is no UTF-8, but perhaps UTF-16 without a byte-order mark",
        REPLACED,
    ),
    Damage("a label in words", write(samples(s05_cls=b"cat")), "undecodable", "'cat' is no whole number", REPLACED),
    Damage("a label like `1_0`", write(samples(s05_cls=b"1_0")), "undecodable", "'1_0' is no whole number", REPLACED),
    Damage(
        "broken JSON",
        write(
            [
                (name.replace("txt", "json"), b'{"caption"' if name[:3] == "s05" else b'{"caption": "x"}')
                for name, _ in S
                if name.endswith("txt")
            ]
        ),
        "undecodable",
        "Expecting ':' delimiter",
        REPLACED,
    ),
    Damage(
        "JSON nested without end",
        write([(f"s{i}.json", b"[" * 200_000 if i == 5 else b'{"caption": "x"}') for i in range(12)]),
        "undecodable",
        "the JSON is nested too deeply",
        REPLACED,
    ),
    Damage(
        "captions that are no texts",
        write([(f"s{i}.json", b'{"caption": 7}' if i == 5 else b'{"caption": "x"}') for i in range(12)]),
        "undecodable",
        "`captions` is not a list of strings",
        REPLACED,
    ),
    Damage(
        "0 seconds of audio",
        recording(sound(np.zeros(0))),
        "undecodable",
        "the recording has no samples",
        REPLACED,
        "",
        AUDIO,
    ),
    Damage(
        "10 hours of audio",
        recording(ten_hours()),
        "undecodable",
        "a recording of 10.0 hours",
        REPLACED,
        "",
        AUDIO,
    ),
    Damage(
        "NaN in audio",
        recording(sound(np.full(400, np.nan))),
        "undecodable",
        "samples that are not finite numbers",
        REPLACED,
        "",
        AUDIO,
    ),
    Damage(
        "silent audio",
        recording(sound(np.zeros(400))),
        "undecodable",
        "the recording is silent: all its samples are 0",
        REPLACED,
        "",
        AUDIO,
    ),
    Damage(
        "7 samples a second",
        recording(sound(rate=7)),
        "undecodable",
        "the header says 7 samples a second, which no recording has",
        REPLACED,
        "",
        AUDIO,
    ),
    Damage(
        "another rate in the header",
        recording(put(sound(), 24, (16_000).to_bytes(4, "little"))),
        "undecodable",
        "the header says 16000 samples a second, and 32000 bytes a second at 4 bytes a sample: one of them is wrong",
        REPLACED,
        "",
        AUDIO,
    ),
    Damage("a recording cut", recording(sound()[:900]), "undecodable", "the recording is cut", REPLACED, "", AUDIO),
    Damage(
        "a recording of another kind",
        recording(sound(form="AIFF", subtype="PCM_16")),
        "undecodable",
        "the recording is AIFF (Apple/SGI); known: WAV, FLAC, Ogg, MP3",
        REPLACED,
        "",
        AUDIO,
    ),
    Damage(
        "an array of terabytes",
        arrays(lambda folder: b"\x93NUMPY\x01\x00\x76\x00" + TERABYTES.ljust(117) + b"\n"),
        "undecodable",
        "its header asks for more memory than there is",
        REPLACED,
        "",
        VECTOR,
    ),
    Damage(
        "an archive named `.npy`",
        arrays(npz),
        "undecodable",
        "not a single array; `npz` archives are not decoded",
        REPLACED,
        "",
        VECTOR,
    ),
    Damage(
        "an array of objects",
        arrays(objects),
        "undecodable",
        "it holds a pickle, which could run code: only plain arrays are read",
        REPLACED,
        "",
        VECTOR,
    ),
    Damage(
        "a member never read",
        with_member("s11.bin", b"x"),
        "unused",
        "members 'bin' are never read",
        SAID,
        "members that are never read: bin (1)",
    ),
    Damage(
        "a hidden file of a Mac",
        with_member("d/._s1.jpg", b"x"),
        "unused",
        "the first one is 'd/._s1.jpg'",
        SAID,
        "members that are never read: no extension (1)",
    ),
    *(
        Damage(
            f"a pickle named `.{name}`",
            with_code(name),
            "code",
            f"member 's11.{name}' could run code",
            SAID,
            f"members that are never read: {name} (1)",
        )
        for name in ("pkl", "pth", "pyd")
    ),
]
