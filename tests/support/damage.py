"""Shards with every kind of damage, and what lint and training say of each. `docs/shards.md` has the table of it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import struct
import tarfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from mmcl.datamodules.index import load_index

Member = tuple[str, bytes]
COUNT = 12
REFUSED, REPLACED, SAID = "refused", "replaced", "said"


@dataclass(frozen=True)
class Damage:
    """One kind of damage.

    Args:
        name: for the table.
        make: makes the shard ``a.tar`` in a folder, or more of them.
        lint: kind of the finding.
        says: a part of the finding's text.
        training: what training does: ``refused`` before it begins, ``replaced`` by the next sample, or ``said`` in
            the log and read.
        because: a part of what training says; the finding's text where it is empty.
        fields: of the source.
        shards: what is given to both.
        lint_refuses: lint ends with exit code 2, as training does.
        unprivileged: root would not notice it.
    """

    name: str
    make: Callable[[Path], Any]
    lint: str
    says: str
    training: str
    because: str = ""
    fields: Mapping[str, Sequence[str]] | None = None
    shards: Sequence[str] = ("a.tar",)
    lint_refuses: bool = False
    unprivileged: bool = False


def jpeg(number: int = 0, side: int = 48, form: str = "JPEG", **options: Any) -> bytes:
    """A picture with much in it, another one for each number."""
    pixels = np.random.default_rng(number).integers(0, 255, (side // 4, side // 4, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC).save(buffer, form, **options)
    return buffer.getvalue()


def sound(samples: Any = None, rate: int = 8000, form: str = "WAV", subtype: str = "FLOAT", number: int = 0) -> bytes:
    """A recording; noise, if not told otherwise."""
    if samples is None:
        samples = np.random.default_rng(number).normal(0, 0.1, 400)
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=form, subtype=subtype)
    return buffer.getvalue()


def samples(**changes: bytes | None) -> list[Member]:
    """Members of 12 good samples; those named like ``s05_jpg`` are changed, or left out where None."""
    members: list[Member] = []
    for i in range(COUNT):
        for extension, data in (("jpg", jpeg(i)), ("txt", f"caption {i}".encode()), ("cls", str(i % 3).encode())):
            found = changes.get(f"s{i:02d}_{extension}", data)
            if found is not None:
                members.append((f"s{i:02d}.{extension}", found))
    return members


def sounds(**changes: bytes) -> list[Member]:
    """The same with recordings."""
    return [(f"s{i:02d}.wav", changes.get(f"s{i:02d}_wav", sound(number=i))) for i in range(COUNT)]


def add(tar: tarfile.TarFile, name: str, data: bytes = b"", **fields: Any) -> None:
    """A member with any header."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(data))


def write(members: Sequence[Member], name: str = "a.tar") -> Callable[[Path], Path]:
    """A maker of a shard with these members, one after another."""

    def make(folder: Path) -> Path:
        (folder / name).parent.mkdir(exist_ok=True)
        with tarfile.open(folder / name, "w", format=tarfile.GNU_FORMAT) as tar:
            for member, data in members:
                add(tar, member, data)
        return folder / name

    return make


def edited(edit: Callable[[bytes], bytes], members: Sequence[Member] | None = None) -> Callable[[Path], None]:
    """A maker of a good shard whose bytes are then changed."""

    def make(folder: Path) -> None:
        path = write(samples() if members is None else members)(folder)
        path.write_bytes(edit(path.read_bytes()))

    return make


def with_member(name: str, data: bytes = b"", **fields: Any) -> Callable[[Path], None]:
    """A maker of a good shard with one more member, with any header."""

    def make(folder: Path) -> None:
        with tarfile.open(write(samples())(folder), "a") as tar:
            add(tar, name, data, **fields)

    return make


def header_of(data: bytes, name: str) -> int:
    """Where the header of a member stands."""
    return data.index(name.encode().ljust(100, b"\0"))


def put(data: bytes, offset: int, new: bytes) -> bytes:
    """The data with some bytes overwritten."""
    return data[:offset] + new + data[offset + len(new) :]


def at_header(name: str, new: bytes) -> Callable[[Path], None]:
    """A maker of a shard with a header overwritten."""
    return edited(lambda data: put(data, header_of(data, name), new))


def cut_at(name: str, plus: int) -> Callable[[Path], None]:
    """A maker of a shard that ends so many bytes behind the beginning of a header."""
    return edited(lambda data: data[: header_of(data, name) + plus])


def resized(data: bytes, name: str, size: bytes) -> bytes:
    """A header with another size, and the right checksum."""
    offset = header_of(data, name)
    header = bytearray(data[offset : offset + 512])
    header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return put(data, offset, bytes(header))


def huge_picture() -> bytes:
    """A PNG whose header tells of 60,000 x 60,000 pixels."""
    data = jpeg(form="PNG")
    header = b"IHDR" + struct.pack(">II", 60_000, 60_000) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


def half_zeroed(data: bytes) -> bytes:
    """A picture with its second half overwritten by zeros."""
    return data[: len(data) // 2] + bytes(len(data) - len(data) // 2)


def hole(data: bytes) -> bytes:
    """A picture with 1,000 bytes in its middle overwritten by zeros."""
    return put(data, len(data) // 2, bytes(1000))


def npz(folder: Path) -> bytes:
    """Several arrays in one file."""
    buffer = io.BytesIO()
    np.savez(buffer, a=np.arange(3))
    return buffer.getvalue()


def ten_hours() -> bytes:
    """A FLAC whose header tells of ten hours at 16 kHz."""
    data = bytearray(sound(rate=16_000, form="FLAC", subtype="PCM_16"))
    told = int.from_bytes(data[18:26], "big")  # rate, channels, bits, and 36 bits of samples
    data[18:26] = (told >> 36 << 36 | 10 * 3600 * 16_000).to_bytes(8, "big")
    return bytes(data)


class Canary:
    """Pickled, it makes a folder where it is opened."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._place),)


def with_code(extension: str) -> Callable[[Path], None]:
    """A maker of a shard with a pickle that would make the folder ``ran``."""

    def make(folder: Path) -> None:
        write([*samples(), (f"s11.{extension}", pickle.dumps(Canary(folder / "ran")))])(folder)

    return make


def arrays(last: Callable[[Path], bytes]) -> Callable[[Path], None]:
    """A maker of a shard with arrays, the last one as given."""

    def one(number: int) -> bytes:
        buffer = io.BytesIO()
        np.save(buffer, np.arange(number, number + 3))
        return buffer.getvalue()

    def make(folder: Path) -> None:
        write([*((f"s{i:02d}.npy", one(i)) for i in range(COUNT - 1)), ("s11.npy", last(folder))])(folder)

    return make


def objects(folder: Path) -> bytes:
    """An array that holds a pickle."""
    buffer = io.BytesIO()
    np.save(buffer, np.array([Canary(folder / "ran")], object), allow_pickle=True)
    return buffer.getvalue()


def manifest(folder: Path, names: Sequence[str] = ("a.tar",), **changes: Any) -> None:
    """A good shard, and a manifest that tells of it with some values changed."""
    path = write(samples())(folder)
    told = {
        "samples": COUNT,
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        **changes,
    }
    rows = [{"name": name, **told} for name in names]
    (folder / "manifest.json").write_text(json.dumps({"shards": rows}))


def broken_manifest(folder: Path) -> None:
    write(samples())(folder)
    (folder / "manifest.json").write_text('{"shards": [{"name": "a.tar"}]}')


def changed_after_indexing(folder: Path) -> None:
    """Other bytes of a picture; size and time of the shard as the index knows them."""
    path = write(samples())(folder)
    load_index(str(path))
    stat, data = path.stat(), path.read_bytes()
    path.write_bytes(put(data, header_of(data, "s05.jpg") + 512 + 700, b"\x55" * 20))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def older_index(folder: Path) -> None:
    path = write(samples()[:9])(folder)
    load_index(str(path))
    write(samples())(folder)
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1_000_000_000))


def broken_index(folder: Path) -> None:
    path = write(samples())(folder)
    load_index(str(path))
    Path(f"{path}.index").write_bytes(b"PK\x03\x04 not any more")


def copied(folder: Path) -> None:
    (folder / "b.tar").write_bytes(write(samples())(folder).read_bytes())


def linked(folder: Path) -> None:
    (folder / "b.tar").symlink_to(write(samples())(folder))


def one_name(folder: Path) -> None:
    write(samples()[:18], "one/x.tar")(folder)
    write([(f"t{name}", data) for name, data in samples()[18:]], "two/x.tar")(folder)


def forbidden(folder: Path) -> None:
    write(samples())(folder).chmod(0)
