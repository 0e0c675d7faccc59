"""The list of damages; how they are made is in `damage.py`."""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from damage import (
    Damage,
    arrays,
    at_header,
    broken_index,
    broken_manifest,
    changed_after_indexing,
    copied,
    cut_at,
    edited,
    forbidden,
    half_zeroed,
    header_of,
    hole,
    huge_picture,
    jpeg,
    linked,
    manifest,
    npz,
    objects,
    older_index,
    one_name,
    put,
    resized,
    samples,
    sound,
    sounds,
    ten_hours,
    with_code,
    with_member,
    write,
)

REFUSED, REPLACED, SAID, READ = "refused", "replaced", "said", "read"
S = samples()
TERABYTES = b"{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000000,), }"
AUDIO, VECTOR = {"audio": ("wav",)}, {"vector": ("npy",)}


def recording(data: bytes) -> Callable[[Path], Path]:
    return write(sounds(s05_wav=data))


ARCHIVE = [
    Damage("cut inside a member", cut_at("s05.jpg", 700), "cut", "the file ends inside member 's05.jpg'", REFUSED),
    Damage("cut inside a header", cut_at("s05.jpg", 100), "cut", "the file ends inside the header at byte", REFUSED),
    Damage("cut between two members", cut_at("s05.jpg", 0), "cut", "without an end mark", REFUSED),
    Damage("header overwritten", at_header("s05.jpg", b"\xff" * 512), "header", "is overwritten", REFUSED),
    Damage("header zeroed", at_header("s05.jpg", bytes(512)), "trailing", "data after the end mark", REFUSED),
    Damage(
        "size in a header changed",
        edited(lambda d: put(d, header_of(d, "s05.txt") + 124, b"00000000001")),
        "header",
        "is overwritten",
        REFUSED,
    ),
    Damage(
        "negative size",
        edited(lambda d: resized(d, "s05.txt", b"\xff" * 12)),
        "header",
        "a size of -1",
        REFUSED,
    ),
    Damage(
        "a member of 5 GiB",
        edited(lambda d: resized(d, "s05.txt", b"%011o\0" % (5 << 30))),
        "header",
        "4 GiB is the largest",
        REFUSED,
    ),
    Damage(
        "extended header overwritten",
        with_member("9 size=x\n", b"9 size=x\n", type=tarfile.XHDTYPE),
        "header",
        "the extended header at byte",
        REFUSED,
    ),
    Damage("empty file", edited(lambda d: b""), "empty", "the file is empty", REFUSED),
    Damage("no samples", edited(lambda d: bytes(10240)), "empty", "it holds no samples", REFUSED),
    Damage(
        "nothing that is read",
        write([(f"s{i}.bin", b"x") for i in range(12)]),
        "missing",
        "its 12 samples have no member that is ever read",
        REFUSED,
        "has any of the members",
    ),
    Damage(
        "keys with dots",
        write([(f"bird.{i:03d}.jpg", jpeg(i)) for i in range(12)]),
        "name",
        "12 extensions such as '000.jpg' occur once",
        REFUSED,
        "has any of the members",
    ),
    Damage("two archives joined", edited(lambda d: d + d), "trailing", "data after the end mark", REFUSED),
    Damage("compressed", edited(gzip.compress), "compressed", "it is compressed (gzip)", REFUSED),
    Damage(
        "an error page of a server",
        edited(lambda d: b"<html>404 Not Found</html>".ljust(600)),
        "header",
        "the header at byte 0 is overwritten",
        REFUSED,
    ),
    Damage("empty member", write(samples(s05_jpg=b"")), "empty", "member 's05.jpg' is empty", REFUSED),
    Damage("a sample twice", write([*S, *S[:3]]), "duplicate", "sample 's00' comes twice", REFUSED),
    Damage("a member twice", write([*S, S[-1]]), "duplicate", "sample 's11' has two members 'cls'", REFUSED),
    Damage("members reordered", write([*S[1:], S[0]]), "scattered", "do not stand together", REFUSED),
    Damage(
        "a member missing", write(samples(s05_txt=None)), "missing", "sample 's05'", REFUSED, "no member for 'text'"
    ),
    Damage(
        "a symbolic link",
        with_member("t.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        "link",
        "member 't.jpg' is no regular file",
        REFUSED,
    ),
    Damage("a hard link", with_member("t.jpg", type=tarfile.LNKTYPE, linkname="s00.jpg"), "link", "'t.jpg'", REFUSED),
    Damage("a named pipe", with_member("t.jpg", type=tarfile.FIFOTYPE), "link", "'t.jpg' is no regular", REFUSED),
    Damage(
        "a sparse file",
        with_member("t.jpg", b"x", pax_headers={"GNU.sparse.major": "1"}),
        "link",
        "'t.jpg' is no regular file",
        REFUSED,
    ),
    Damage("a name with `..`", with_member("../../t.jpg", b"x"), "name", "leads out of the archive", REFUSED),
    Damage("an absolute name", with_member("/tmp/t.jpg", b"x"), "name", "leads out of the archive", REFUSED),
    Damage("control characters in a name", with_member("t\x1b[2J\n.jpg", b"x"), "name", "control characters", REFUSED),
]

CONTENT = [
    Damage("second half of a JPEG zeroed", write(samples(s05_jpg=half_zeroed(jpeg()))), "undecodable", "end", REPLACED),
    Damage(
        "a hole of zeros in a JPEG", write(samples(s05_jpg=hole(jpeg(5, 160)))), "undecodable", "is damaged", REPLACED
    ),
    Damage(
        "a hole of zeros in a PNG",
        write(samples(s05_jpg=hole(jpeg(form="PNG")))),
        "undecodable",
        "the PNG is damaged: wrong checksum",
        REPLACED,
    ),
    Damage("a JPEG cut", write(samples(s05_jpg=jpeg()[:900])), "undecodable", "end", REPLACED),
    Damage("a text named `.jpg`", write(samples(s05_jpg=b"no picture")), "undecodable", "not a JPEG", REPLACED),
    Damage(
        "a GIF named `.jpg`",
        write(samples(s05_jpg=jpeg(form="GIF"))),
        "undecodable",
        "not a JPEG, PNG or WebP",
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
    Damage("absurd dimensions", write(samples(s05_jpg=huge_picture())), "undecodable", "pixels", REPLACED),
    Damage("empty caption", write(samples(s05_txt=b" \n")), "caption", "sample 's05'", REFUSED, "has an empty caption"),
    Damage("invalid UTF-8", write(samples(s05_txt=b"caf\xe9")), "undecodable", "neither UTF-8 nor", REPLACED),
    Damage(
        "UTF-16",
        write(samples(s05_txt="text".encode("utf-16-le"))),
        "undecodable",
        "UTF-16 without a byte-order mark",
        REPLACED,
    ),
    Damage("a label in words", write(samples(s05_cls=b"cat")), "undecodable", "'cat' is no whole number", REPLACED),
    Damage("a label like `1_0`", write(samples(s05_cls=b"1_0")), "undecodable", "is no whole number", REPLACED),
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
        "Expecting ':'",
        REPLACED,
    ),
    Damage(
        "JSON nested without end",
        write([(f"s{i}.json", b"[" * 200_000 if i == 5 else b'{"caption": "x"}') for i in range(12)]),
        "undecodable",
        "nested too deeply",
        REPLACED,
    ),
    Damage(
        "captions that are no texts",
        write([(f"s{i}.json", b'{"caption": 7}' if i == 5 else b'{"caption": "x"}') for i in range(12)]),
        "undecodable",
        "not a list of strings",
        REPLACED,
    ),
    Damage("0 seconds of audio", recording(sound(np.zeros(0))), "undecodable", "has no samples", REPLACED, "", AUDIO),
    Damage(
        "10 hours of audio",
        recording(ten_hours()),
        "undecodable",
        "10.0 hours",
        REPLACED,
        "",
        AUDIO,
    ),
    Damage("NaN in audio", recording(sound(np.full(400, np.nan))), "undecodable", "not finite", REPLACED, "", AUDIO),
    Damage("silent audio", recording(sound(np.zeros(400))), "undecodable", "is silent", REPLACED, "", AUDIO),
    Damage("7 samples a second", recording(sound(rate=7)), "undecodable", "7 samples a second", REPLACED, "", AUDIO),
    Damage("a recording cut", recording(sound()[:900]), "undecodable", "the recording is cut", REPLACED, "", AUDIO),
    Damage(
        "a recording of another kind",
        recording(sound(form="AIFF", subtype="PCM_16")),
        "undecodable",
        "known: WAV, FLAC, Ogg, MP3",
        REPLACED,
        "",
        AUDIO,
    ),
    Damage(
        "an array of terabytes",
        arrays(lambda folder: b"\x93NUMPY\x01\x00\x76\x00" + TERABYTES.ljust(117) + b"\n"),
        "undecodable",
        "more memory than there is",
        REPLACED,
        "",
        VECTOR,
    ),
    Damage("an archive named `.npy`", arrays(npz), "undecodable", "not a single array", REPLACED, "", VECTOR),
    Damage("an array of objects", arrays(objects), "undecodable", "allow_pickle=False", REPLACED, "", VECTOR),
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

FILES = [
    Damage("other bytes than indexed", changed_after_indexing, "changed", "its bytes changed after", REPLACED),
    Damage("index older than the tar", older_index, "stale", "index is older than the shard", SAID),
    Damage("index damaged", broken_index, "stale", "index is older than the shard, damaged", SAID),
    Damage("SHA-256 not the manifest's", lambda f: manifest(f, sha256="0" * 64), "manifest", "SHA-256", REFUSED),
    Damage("size not the manifest's", lambda f: manifest(f, bytes=7), "manifest", "manifest.json says 7", REFUSED),
    Damage("count not the manifest's", lambda f: manifest(f, samples=13), "manifest", "12 samples, but", REFUSED),
    Damage("manifest broken", broken_manifest, "manifest", "cannot be read", REFUSED),
    Damage(
        "a shard of the manifest missing",
        lambda f: manifest(f, ("a.tar", "b.tar")),
        "missing",
        "manifest.json lists it, but it is not there",
        REFUSED,
        "manifest.json lists b.tar, which is not there",
        shards=("*.tar",),
    ),
    Damage(
        "a copy of a shard", copied, "copy", "the same samples", REFUSED, "the same samples", shards=("a.tar", "b.tar")
    ),
    Damage("a link to a shard", linked, "", "is listed twice", REFUSED, shards=("a.tar", "b.tar"), lint_refuses=True),
    Damage("two shards of one name", one_name, "names", "has the same name", READ, shards=("one/x.tar", "two/x.tar")),
    Damage(
        "permission denied", forbidden, "unreadable", "it cannot be read: Permission denied", REFUSED, unprivileged=True
    ),
    Damage("no such shard", lambda f: None, "", "does not exist", REFUSED, lint_refuses=True),
    Damage("a command for a shard", write(S), "", "pipe:", REFUSED, shards=("pipe:cat a.tar",), lint_refuses=True),
    Damage("a `file:` address", write(S), "", "file:", REFUSED, shards=("file:/etc/passwd",), lint_refuses=True),
]

DAMAGES = [*ARCHIVE, *CONTENT, *FILES]


def table() -> str:
    """The table of `docs/shards.md`."""
    rows = ["| damage | `mmcl shards lint` | training |", "|---|---|---|"]
    for damage in DAMAGES:
        told = damage.because or damage.says
        lint = f"`{damage.lint}`: {damage.says}" if damage.lint else f"exit code 2: {damage.says}"
        rows.append(f"| {damage.name} | {lint} | {damage.training}{'' if damage.training == READ else f': {told}'} |")
    return "\n".join(rows)
