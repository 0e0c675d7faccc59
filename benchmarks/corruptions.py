"""The standard corruption stream over any classification: fifteen corruptions of each picture, in the usual order.

Hendrycks and Dietterich, ICLR 2019 (arXiv:1903.12261); the pictures are made by the package corrupt-tta.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from mmcl import assets
from mmcl.datamodules.reader import SourceReader
from mmcl.datamodules.write import ShardFile, encode_member, pack
from mmcl.errors import ConfigError, near
from mmcl.stream import EvalSet, Source, Stream

NAMES = (
    *("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
"""The fifteen, in the order of the published streams."""
IMPULSES = (0.03, 0.06, 0.09, 0.17, 0.27)
"""Share of pixels that impulse noise takes, by severity."""
PROTOCOL = (
    "Columns are corruptions of {sets} at severity {severity}, in the standard order; strategies that adapt at test "
    "meet them one after another. The mean over the columns is the published number."
)
Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def corruptions(
    stream: Stream,
    sets: Sequence[str] | None = None,
    severity: int = 5,
    names: Sequence[str] = NAMES,
    size: int | None = None,
    folder: str | None = None,
) -> Stream:
    """The tasks of another stream, measured on corrupted pictures of its evaluation sets.

    The shards are made once: with lossless pictures, whose noise is a function of a sample's key and the corruption.

    Args:
        stream: the tasks, and what is corrupted.
        sets: evaluation sets to corrupt; None takes all that have class names.
        severity: from 1 to 5.
        names: corruptions, in the order in which they are measured; the standard fifteen.
        size: pictures are first resized and cropped in the middle to a square of so many pixels; None leaves them.
        folder: where the shards go, in a folder of their own for each set; None is mmcl's cache.

    Raises:
        ConfigError: corrupt-tta is missing, a name is unknown, a number cannot be, or a set has no classes.
    """
    if not 1 <= severity <= 5:
        raise ConfigError(f"corruptions: severity is {severity}; it goes from 1 to 5")
    if size is not None and size < 2:
        raise ConfigError(f"corruptions: size is {size}; take 2 pixels or more")
    for name in names:
        if name not in _package().corruption_dict:
            raise ConfigError(f"corruptions: '{name}' is unknown; {near(name, _package().corruption_dict)}")
    known = {e.name: e for e in stream.evals if e.class_names is not None}
    for name in sets or ():
        if name not in known:
            raise ConfigError(
                f"corruptions: the stream has no evaluation set '{name}' with classes; {near(name, known)}"
            )
    chosen = [known[name] for name in (known if sets is None else sets)]
    if not chosen:
        raise ConfigError("corruptions: no evaluation set of the stream has class names")
    home = Path(folder) if folder is not None else assets.cache() / "corruptions"
    made = {evalset.name: _made(evalset, severity, names, size, home) for evalset in chosen}
    columns = [_column(evalset, name, made[evalset.name]) for name in names for evalset in chosen]
    protocol = PROTOCOL.format(sets=", ".join(known if sets is None else sets), severity=severity)
    tasks = [replace(task, evaluates=None) for task in stream.tasks]
    whole = f"{stream.protocol} {protocol}".strip()
    return Stream(f"{stream.name}_corruptions", tasks, columns, stream.sources, whole)


def _package() -> Any:
    try:
        return importlib.import_module("corrupt_tta")
    except ImportError as error:
        raise ConfigError(
            f"corruptions needs the package corrupt-tta (pip install 'mmcl[corruptions]'): {error}"
        ) from error


def _column(evalset: EvalSet, name: str, folder: Path) -> EvalSet:
    source = Source([str(folder / f"{name}.tar")], name=f"{evalset.name}-{name}", augment=False)
    return replace(evalset, name=source.name, source=source, group="corruptions")


def _made(evalset: EvalSet, severity: int, names: Sequence[str], size: int | None, home: Path) -> Path:
    """The folder with the shards of a set; those that are not there are made."""
    readers = [SourceReader(part) for part in evalset.source.all]
    for reader in readers:
        if not {"image", "labels"} <= set(reader.present):
            raise ConfigError(f"corruptions: evaluation set '{evalset.name}' has no pictures or no labels")
    keys = Counter(reader.key(i) for reader in readers for i in range(len(reader)))
    if double := next((key for key, times in keys.items() if times > 1), None):
        raise ConfigError(
            f"corruptions: evaluation set '{evalset.name}' has two samples with the key '{double}', which would be one "
            "in the shards of corrupted pictures; give the samples different keys"
        )
    described = {
        "package": f"corrupt-tta {version('corrupt-tta')}",
        "set": evalset.name,
        "severity": severity,
        "size": size,
        "content": [[r.content("image"), [r.key(i) for i in range(len(r))], _labels(r)] for r in readers],
    }
    digest = hashlib.sha256(json.dumps(described).encode()).hexdigest()
    folder = home / f"{evalset.name.replace('/', '-')}-severity-{severity}-{digest[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / "manifest.json"
    rows = {row["name"]: row for row in json.loads(manifest.read_text())["shards"]} if manifest.is_file() else {}
    for name in names:
        file = folder / f"{name}.tar"
        if f"{name}.tar" in rows and file.is_file():
            continue
        with ShardFile(file) as shard:
            title = f"{evalset.name} {name}"
            for key, pixels, label in tqdm(_samples(readers, size), title, disable=None, leave=False):
                picture = Image.fromarray(corrupted(pixels, name, severity, key))
                members = (("png", picture), ("cls", label))
                shard.add(pack(key, [(kind, encode_member(kind, value, key)) for kind, value in members]))
        assert shard.written is not None
        rows[file.name] = {"name": file.name, **shard.written._asdict()}
        facts = {key: value for key, value in described.items() if key != "content"}
        whole = {"format": "mmcl.corruptions/1", **facts, "digest": digest, "shards": list(rows.values())}
        beside = manifest.with_name(f".manifest.{file.stem}")
        beside.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
        beside.replace(manifest)
    return folder


def _labels(reader: SourceReader) -> list[int]:
    labels = reader.labels()
    return [] if labels is None else labels.tolist()


def _samples(readers: Sequence[SourceReader], size: int | None) -> Iterator[tuple[str, Pixels, int]]:
    for reader in readers:
        for index in range(len(reader)):
            row: Mapping[str, Any] = reader.read(index)
            picture: Image.Image = row["image"].convert("RGB")
            if size is not None:
                picture = ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC)
            yield row["__key__"], np.asarray(picture), int(row["labels"])


def corrupted(pixels: Pixels, name: str, severity: int, key: str) -> Pixels:
    """A picture (H, W, 3), uint8, with one corruption; what is random in it is a function of `key` and `name`."""
    seed = int.from_bytes(hashlib.blake2b(f"{key}/{name}".encode(), digest_size=4).digest(), "big")
    state = np.random.get_state()
    np.random.seed(seed)  # the package draws from NumPy's global generator
    try:
        if name == "impulse_noise":  # but for this one, which would be another at every call
            noise: Callable[..., Any] = importlib.import_module("skimage.util").random_noise
            found = 255 * noise(pixels / 255.0, mode="s&p", amount=IMPULSES[severity - 1], rng=seed)
        else:
            found = _package().corrupt(pixels, severity=severity, corruption_name=name)
    finally:
        np.random.set_state(state)
    return np.asarray(found).clip(0, 255).astype(np.uint8)
