"""Damage to archives and to what they are made of."""

from __future__ import annotations

import gzip
import tarfile

from damage import (
    REFUSED,
    Damage,
    at_header,
    cut_at,
    edited,
    header_of,
    jpeg,
    put,
    resized,
    samples,
    with_member,
    write,
)

S = samples()

ARCHIVE = [
    Damage("cut inside a member", cut_at("s05.jpg", 700), "cut", "the file ends inside member 's05.jpg'", REFUSED),
    Damage(
        "cut inside a header", cut_at("s05.jpg", 100), "cut", "the file ends inside the header at byte 20480", REFUSED
    ),
    Damage(
        "cut between two members",
        cut_at("s05.jpg", 0),
        "cut",
        "the file ends at byte 20480 without an end mark",
        REFUSED,
    ),
    Damage(
        "header overwritten",
        at_header("s05.jpg", b"\xff" * 512),
        "header",
        "the header at byte 20480 is overwritten (bad checksum)",
        REFUSED,
    ),
    Damage(
        "header zeroed",
        at_header("s05.jpg", bytes(512)),
        "trailing",
        "there are data after the end mark at byte 20480",
        REFUSED,
    ),
    Damage(
        "size in a header changed",
        edited(lambda d: put(d, header_of(d, "s05.txt") + 124, b"00000000001")),
        "header",
        "the header at byte 22528 is overwritten (bad checksum)",
        REFUSED,
    ),
    Damage(
        "negative size",
        edited(lambda d: resized(d, "s05.txt", b"\xff" * 12)),
        "header",
        "the header at byte 22528 is overwritten (a size of -1)",
        REFUSED,
    ),
    Damage(
        "a member of 5 GiB",
        edited(lambda d: resized(d, "s05.txt", b"%011o\0" % (5 << 30))),
        "header",
        "member 's05.txt' has 5368709120 bytes; 4 GiB is the largest that is read",
        REFUSED,
    ),
    Damage(
        "extended header overwritten",
        with_member("9 size=x\n", b"9 size=x\n", type=tarfile.XHDTYPE),
        "header",
        "the extended header at byte 49152 is overwritten",
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
        "has any of the members jpg, jpeg, png, webp",
    ),
    Damage(
        "keys with dots",
        write([(f"bird.{i:03d}.jpg", jpeg(i)) for i in range(12)]),
        "name",
        "12 extensions such as '000.jpg' occur once",
        REFUSED,
        "has any of the members jpg, jpeg, png, webp",
    ),
    Damage(
        "two archives joined",
        edited(lambda d: d + d),
        "trailing",
        "there are data after the end mark at byte 49152",
        REFUSED,
    ),
    Damage("compressed", edited(gzip.compress), "compressed", "it is compressed (gzip)", REFUSED),
    Damage(
        "an error page of a server",
        edited(lambda d: b"<html>404 Not Found</html>".ljust(600)),
        "header",
        "the header at byte 0 is overwritten (bad checksum)",
        REFUSED,
    ),
    Damage("empty member", write(samples(s05_jpg=b"")), "empty", "member 's05.jpg' is empty", REFUSED),
    Damage("a sample twice", write([*S, *S[:3]]), "duplicate", "sample 's00' comes twice", REFUSED),
    Damage("a member twice", write([*S, S[-1]]), "duplicate", "sample 's11' has two members 'cls'", REFUSED),
    Damage(
        "members reordered",
        write([*S[1:], S[0]]),
        "scattered",
        "the members of sample 's00' do not stand together",
        REFUSED,
    ),
    Damage(
        "a member missing",
        write(samples(s05_txt=None)),
        "missing",
        "sample 's05' has no member for 'text'",
        REFUSED,
        "no member for 'text'",
    ),
    Damage(
        "a symbolic link",
        with_member("t.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        "link",
        "member 't.jpg' is no regular file",
        REFUSED,
    ),
    Damage(
        "a hard link",
        with_member("t.jpg", type=tarfile.LNKTYPE, linkname="s00.jpg"),
        "link",
        "member 't.jpg' is no regular file",
        REFUSED,
    ),
    Damage(
        "a named pipe",
        with_member("t.jpg", type=tarfile.FIFOTYPE),
        "link",
        "member 't.jpg' is no regular file",
        REFUSED,
    ),
    Damage(
        "a sparse file",
        with_member("t.jpg", b"x", pax_headers={"GNU.sparse.major": "1"}),
        "link",
        "member 't.jpg' is no regular file",
        REFUSED,
    ),
    Damage("a name with `..`", with_member("../../t.jpg", b"x"), "name", "t.jpg' leads out of the archive", REFUSED),
    Damage("an absolute name", with_member("/t.jpg", b"x"), "name", "t.jpg' leads out of the archive", REFUSED),
    Damage(
        "control characters in a name",
        with_member("t\x1b[2J\n.jpg", b"x"),
        "name",
        "has control characters in its name",
        REFUSED,
    ),
]
