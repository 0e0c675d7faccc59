"""Small inputs for `mmcl shards write`, and what came of them."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import webdataset
from PIL import Image

from mmcl.datamodules.writing import Options, write_set


def picture(number: int, form: str = "PNG", size: tuple[int, int] = (12, 8), **options: Any) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 255, (*size[::-1], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


def recording(number: int, form: str = "WAV") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.random.default_rng(number).uniform(-0.5, 0.5, 800), 8000, format=form)
    return buffer.getvalue()


def fill(folder: Path, files: Mapping[str, bytes | str]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def write(source: Path | list[Path], to: Path, restart: bool = False, **options: Any) -> dict[str, dict[str, bytes]]:
    """Write, and return key -> extension -> content of all samples."""
    sources = tuple(map(str, source)) if isinstance(source, list) else (str(source),)
    write_set(Options(sources, to, **options), restart)
    return read(to)


def read(folder: Path) -> dict[str, dict[str, bytes]]:
    shards = sorted(map(str, folder.glob("*.tar")))
    found = webdataset.WebDataset(shards, shardshuffle=False)
    return {s["__key__"]: {k: v for k, v in s.items() if not k.startswith("__")} for s in found}


def manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return found


def reasons(folder: Path) -> dict[str, str]:
    """The last word of each bad row's place -> why it cannot be used."""
    rows = [json.loads(line) for line in (folder / "bad.jsonl").read_text().splitlines()]
    return {row["row"].replace("/", " ").split()[-1]: row["reason"] for row in rows}
