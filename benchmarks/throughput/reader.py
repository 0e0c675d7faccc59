"""Pictures a second, read, decoded and made into batches in one process, by mmcl and by what one would use instead.

All readers give equal batches, bit for bit: open_clip's preprocessing of JPEG pictures that have the network's size.
"""

from __future__ import annotations

import io
import tarfile
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import webdataset
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch.utils.data import DataLoader

from mmcl.benchmarks.throughput.figures import ratios, show, summary
from mmcl.benchmarks.throughput.turns import Plan
from mmcl.collate import BatchMemory, collate
from mmcl.datamodules import StreamDataModule, write_shard
from mmcl.datamodules.decode import decode
from mmcl.errors import RunError
from mmcl.modules.clip_transform import SampleTransform
from mmcl.outputs import draws_to_augment, takes_pixels
from mmcl.stream import Budget, Source, Stream, Task

THEIRS = "webdataset, decode('pil')"
LIMIT = "mmcl's decoder and transform, files in memory"
QUALITY = 90
DIFFERENT = 64
"""Pictures that are drawn; a shard repeats them."""

T = TypeVar("T")
Read = Callable[[], Iterator[dict[str, Any]]]


def add_arguments(parser: ArgumentParser) -> None:
    """Options of this measurement."""
    parser.add_argument("--batch_size", type=int, default=64, help="samples of a batch (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=512, help="pictures of a pass (default: %(default)s)")
    parser.add_argument("--pixels", type=int, nargs="+", default=[224, 64], help="sides (default: %(default)s)")


def run(arguments: Namespace, plan: Plan) -> None:
    """Measure and print: whole passes over one shard in this process, `blocks` of each reader in turn."""
    torch.set_num_threads(plan.threads)
    for size in arguments.pixels:
        with tempfile.TemporaryDirectory() as folder:
            readers = _readers(Path(folder), size, arguments.samples, arguments.batch_size)
            _check(readers)  # and caches are warm now
            rates = _measure(readers, plan, arguments.samples)
        rows = [
            [
                name,
                summary(found).show(0),
                "1" if name == THEIRS else ratios(found, rates[THEIRS]).show(2),
                "1" if name == LIMIT else ratios(found, rates[LIMIT]).show(2),
            ]
            for name, found in rates.items()
        ]
        title = f"{arguments.samples} JPEG pictures of {size} px in one process, {plan.blocks} passes each in turn"
        show(title, ["reader", "pictures per CPU second", "ratio", "of the limit"], rows, plan.threads)


def _measure(readers: Mapping[str, Read], plan: Plan, samples: int) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {name: [] for name in readers}
    for block in range(plan.blocks):
        for name in list(readers) if block % 2 == 0 else reversed(list(readers)):
            began = time.process_time()
            for _ in readers[name]():
                pass
            rates[name].append(samples / (time.process_time() - began))
    return rates


def _check(readers: Mapping[str, Read]) -> None:
    """Refuse to compare readers that do not give the same.

    Raises:
        RunError: they do not.
    """
    expected = [batch["image"] for batch in readers[THEIRS]()]
    for name, read in readers.items():
        found = [batch["image"] for batch in read()]
        if len(found) != len(expected) or not all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)):
            raise RunError(f"'{name}' does not give the pictures of '{THEIRS}'")


def _readers(folder: Path, size: int, samples: int, batch_size: int) -> dict[str, Read]:
    """Name -> one pass in batches of ``image`` (B, 3, H, W) and ``labels``."""
    pictures = [jpeg(size, i) for i in range(min(DIFFERENT, samples))]
    files = [bytes(bytearray(pictures[i % len(pictures)])) for i in range(samples)]  # each in memory of its own
    for i, data in enumerate(files):
        (folder / f"{i:06d}.jpg").write_bytes(data)
    shard = str(folder / "pictures.tar")
    write_shard(shard, ({"__key__": f"{i:06d}", "jpg": data, "cls": i % 10} for i, data in enumerate(files)))
    plain = image_transform_v2(PreprocessCfg(size=size), is_train=False)
    return {
        "mmcl": _ours(shard, size, batch_size),
        LIMIT: lambda: _limit(files, size, batch_size),
        THEIRS: lambda: _webdataset(shard, plain, batch_size),
        "a loop over tarfile, Pillow": lambda: _tarfile(shard, plain, batch_size),
        "torch DataLoader over files, Pillow": lambda: _files(sorted(folder.glob("*.jpg")), plain, batch_size),
    }


def jpeg(size: int, seed: int) -> bytes:
    """A picture with the spectrum of photographs, 1 / f."""
    random = np.random.default_rng(seed)
    spectrum = np.fft.rfft2(random.standard_normal((3, size, size)))
    spectrum /= np.maximum(np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)), 1 / size)
    values = np.fft.irfft2(spectrum, s=(size, size))
    values = 128 + 50 * (0.6 * values + 0.4 * values.mean(0)) / values.std()
    buffer = io.BytesIO()
    Image.fromarray(values.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _ours(shard: str, size: int, batch_size: int) -> Read:
    task = Task("read", [Source([shard], augment=False)], Budget(steps=1))
    data = StreamDataModule(Stream("reader", [task]), batch_size)
    samples = SampleTransform({"size": size}, None, None)
    data.bind(draws_to_augment(takes_pixels(lambda sample, augment: samples(sample, augment))), seed=0)
    return lambda: iter(data.pass_loader(task))


def _limit(files: list[bytes], size: int, batch_size: int) -> Iterator[dict[str, Any]]:
    transform = SampleTransform({"size": size}, None, None)
    for some in _batches(files, batch_size):
        memory, rows = BatchMemory(len(some)), []
        for i, data in enumerate(some):
            rows.append(transform({"image": decode("jpg", data, as_pixels=True)}, False))
            memory.put(i, rows[-1])
        yield collate(rows)


def _webdataset(shard: str, plain: Any, batch_size: int) -> Iterator[dict[str, Any]]:
    def sample(raw: dict[str, Any]) -> dict[str, Any]:
        return {"image": plain(raw["jpg"]), "labels": raw["cls"], "__key__": raw["__key__"]}

    pipeline = webdataset.WebDataset(shard, shardshuffle=False).decode("pil").map(sample)
    return iter(pipeline.batched(batch_size, collation_fn=collate))


def _tarfile(shard: str, plain: Any, batch_size: int) -> Iterator[dict[str, Any]]:
    def rows() -> Iterator[dict[str, Any]]:
        row: dict[str, Any] = {}
        with tarfile.open(shard) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                if member.name.endswith(".jpg"):
                    row = {"image": plain(Image.open(io.BytesIO(file.read())))}
                else:
                    yield {**row, "labels": int(file.read()), "__key__": member.name}

    return (collate(some) for some in _batches(rows(), batch_size))


def _batches(rows: Iterable[T], batch_size: int) -> Iterator[list[T]]:
    left = iter(rows)
    while some := list(islice(left, batch_size)):
        yield some


class _Files:
    """A map-style dataset as torchvision's ImageFolder reads it."""

    def __init__(self, paths: list[Path], plain: Any) -> None:
        self._paths, self._plain = paths, plain

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        with self._paths[index].open("rb") as file:
            return {"image": self._plain(Image.open(file)), "labels": index % 10, "__key__": str(index)}


def _files(paths: list[Path], plain: Any, batch_size: int) -> Iterator[dict[str, Any]]:
    return iter(DataLoader(_Files(paths, plain), batch_size, collate_fn=collate))  # type: ignore[arg-type]
