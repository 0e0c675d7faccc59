"""Fashion-MNIST, complete: Xiao, Rasul and Vollgraf (2017), arXiv:1708.07747."""

from __future__ import annotations

import gzip
import io
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmcl.assets import Asset, Package
from mmcl.benchmarks.assets.common import Sample, only
from mmcl.errors import RunError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
FILES = {"train": "train", "test": "t10k"}
IN_A_SHARD = 20_000


def build_fashion_mnist(unpacked: Mapping[str, Path], out: Path) -> None:
    """Write ``train-NNN.tar``, ``test-NNN.tar`` (png, cls) and ``classes.txt``; the order is a fixed random one.

    Args:
        unpacked: the folder of ``dataset-fashion-mnist``.
        out: folder to fill.

    Raises:
        RunError: a file is not what the package had.
    """
    folder = only(unpacked["dataset-fashion-mnist"], "usr/share/datasets/fashion-mnist")
    for split, prefix in FILES.items():
        images = _read(only(folder, f"{prefix}-images-idx3-ubyte.gz"), 3)
        labels = _read(only(folder, f"{prefix}-labels-idx1-ubyte.gz"), 1)
        if len(images) != len(labels) or not len(labels) or labels.max() >= len(CLASSES):
            raise RunError(f"Fashion-MNIST {split}: {len(images)} pictures and {len(labels)} labels do not fit")
        write_grey(out, split, images, labels)
    (out / "classes.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")


def write_grey(out: Path, split: str, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8]) -> None:
    """Write ``SPLIT-NNN.tar`` (png, cls) in a fixed random order.

    Args:
        out: folder to fill.
        split: its name, which the keys begin with.
        images: (N, H, W) grey pictures.
        labels: (N,) their classes.
    """
    from mmcl.datamodules.write import write_shard

    order = list(range(len(labels)))
    random.Random(split).shuffle(order)
    for shard, begin in enumerate(range(0, len(order), IN_A_SHARD)):
        part = order[begin : begin + IN_A_SHARD]
        write_shard(out / f"{split}-{shard:03d}.tar", _samples(split, part, images, labels))


def _samples(
    split: str, order: Sequence[int], images: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8]
) -> Iterator[Sample]:
    from PIL import Image

    for i in order:
        buffer = io.BytesIO()
        Image.fromarray(images[i]).save(buffer, "PNG")
        yield {"__key__": f"{split}-{i:05d}", "png": buffer.getvalue(), "cls": int(labels[i])}


def _read(file: Path, axes: int) -> npt.NDArray[np.uint8]:
    """An array of bytes in the IDX format: two zeros, type 8, the number of axes, their lengths, the values."""
    import numpy as np

    try:
        data = gzip.decompress(file.read_bytes())
    except (OSError, EOFError) as error:
        raise RunError(f"{file.name} is damaged: {error}") from error
    head = 4 + 4 * axes
    shape: Any = np.frombuffer(data[4:head].ljust(4 * axes, b"\0"), ">u4")
    if data[:4] != bytes((0, 0, 8, axes)) or len(data) != head + int(shape.prod()):
        raise RunError(f"{file.name} is damaged: it is no IDX file of {axes} axes")
    return np.frombuffer(data, np.uint8, offset=head).reshape(shape)


FASHION_MNIST = Asset(
    name="fashion-mnist",
    title="classes: 60,000 + 10,000 grey pictures of clothes, 28 x 28, ten classes",
    licence="MIT",
    source="Zalando SE",
    megabytes=30.9,
    packages=(
        Package(
            "apt",
            "dataset-fashion-mnist",
            "0.0~git20200523.55506a9-1",
            "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
        ),
    ),
    build=build_fashion_mnist,
    use="classification",
)
