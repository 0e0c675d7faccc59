"""What the builders of data sets share: finding files, splitting without leaks, small pictures."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from mmcl.errors import RunError

LONGEST = 160
"""Pixels of the longer side of a picture."""
QUALITY = 90
TOO_LARGE = 40_000_000
"""Pixels beyond which a picture is not decoded: it would take gigabytes."""

Sample = dict[str, Any]


def only(folder: Path, pattern: str) -> Path:
    """The one file or folder that a glob pattern names.

    Raises:
        RunError: there is none, or more than one.
    """
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise RunError(f"the archive has {len(found)} of '{pattern}', expected 1; it is not laid out as the pinned one")
    return found[0]


def rank(text: str) -> float:
    """A number in [0, 1) that depends on the text alone, the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def split_of(group: str, test: float) -> str:
    """``test`` for the given share of all groups, ``train`` for the others."""
    return "test" if rank(group) < test else "train"


def write_splits(out: Path, prefix: str, samples: Mapping[str, Iterable[Sample]]) -> dict[str, int]:
    """Write ``PREFIXtrain.tar`` and ``PREFIXtest.tar``, or whatever the splits are called.

    Returns:
        Samples by split.

    Raises:
        RunError: a split is empty.
    """
    from mmcl.datamodules.write import write_shard

    counts = {split: write_shard(out / f"{prefix}{split}.tar", rows) for split, rows in samples.items()}
    for split, count in counts.items():
        if not count:
            raise RunError(f"nothing was found for {prefix}{split}.tar; the archive is not laid out as the pinned one")
    return counts


def write_json(path: Path, value: Any) -> None:
    """Write JSON that a person can read."""
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def small_picture(data: bytes, longest: int = LONGEST) -> bytes:
    """A PNG on white, not larger than `longest` on either side, as WebP.

    Raises:
        ValueError: the bytes are no PNG, are damaged, or hold more than `TOO_LARGE` pixels.
    """
    from PIL import Image

    if data[:8] != b"\x89PNG\r\n\x1a\n" or len(data) < 24:
        raise ValueError("not a PNG picture")
    width, height = struct.unpack(">II", data[16:24])
    if width * height > TOO_LARGE:
        raise ValueError(f"{width} x {height} pixels are too many")
    try:
        picture = Image.open(BytesIO(data), formats=("PNG",)).convert("RGBA")
    except (OSError, SyntaxError) as error:  # Pillow's for a damaged picture
        raise ValueError(f"damaged: {error}") from error
    flat = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    flat.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    out = BytesIO()
    flat.save(out, "WEBP", quality=QUALITY, method=4)
    return out.getvalue()


def read_shard(path: Path) -> Iterator[dict[str, bytes]]:
    """The samples of a shard, undecoded, with their ``__key__``."""
    import tarfile

    sample: dict[str, bytes] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, extension = member.name.partition(".")
            if sample and sample["__key__"] != key.encode():
                yield sample
                sample = {}
            content = tar.extractfile(member)
            assert content is not None
            sample |= {"__key__": key.encode(), extension: content.read()}
    if sample:
        yield sample
