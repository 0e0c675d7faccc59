"""Which samples a rank's batches hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from mmcl.datamodules.order import Order


class Draw(NamedTuple):
    """One row of a batch: which pool, the epoch of that pool, the sample in it; `valid` is False for padding."""

    pool: int
    epoch: int
    sample: int
    valid: bool = True


def interleave(counts: Sequence[int]) -> list[tuple[int, int]]:
    """Spread the samples of several pools evenly over a batch, so that every slice of it has its fair part.

    Args:
        counts: samples of each pool.

    Returns:
        For each row of the batch the pool and the number of the sample among the pool's samples.

    Example:
        >>> interleave([4, 2])
        [(0, 0), (1, 0), (0, 1), (0, 2), (1, 1), (0, 3)]
    """
    rows = [(pool, i) for pool, count in enumerate(counts) for i in range(count)]
    return sorted(rows, key=lambda row: ((2 * row[1] + 1) / counts[row[0]], row[0]))


@dataclass(frozen=True)
class Cut:
    """How a global batch is cut: micro-batch by micro-batch, and in each one rank by rank."""

    rank: int = 0
    world_size: int = 1
    accumulate: int = 1

    @property
    def parts(self) -> int:
        """Slices of one optimizer step."""
        return self.world_size * self.accumulate

    def rows(self, total: int, micro: int) -> range:
        """The rows of a global batch of `total` that this rank takes in micro-batch `micro`."""
        size = total // self.parts
        begin = (micro * self.world_size + self.rank) * size
        return range(begin, begin + size)


@dataclass(frozen=True)
class Part:
    """What a pool gives to a batch.

    Args:
        pool: its number.
        order: of its samples.
        count: samples in a step.
        begin: samples drawn from it before the segment.
    """

    pool: int
    order: Order
    count: int
    begin: int

    def draw(self, step: int, i: int) -> Draw:
        """Sample `i` of this pool in a step."""
        return Draw(self.pool, *self.order.at(self.begin + step * self.count + i))


class Draws(Protocol):
    """What gives its samples to every batch of a segment: a `Part`, or the like."""

    @property
    def count(self) -> int:
        """Samples in a step."""

    def draw(self, step: int, i: int) -> Draw:
        """Sample `i` of a step."""


class TrainBatches(Sampler[list[Draw]]):
    """The batches of optimizer steps `first_step` .. `steps` - 1 of a segment.

    Args:
        groups: parts that share a batch: first those of the training batch, then each side batch alone.
        cut: this rank's part of a step.
        first_step: where to begin in the segment.
        steps: steps of the segment.
    """

    def __init__(self, groups: Sequence[Sequence[Draws]], cut: Cut, first_step: int, steps: int) -> None:
        self._groups = [(group, interleave([p.count for p in group])) for group in groups]
        self._cut, self._steps = cut, range(first_step, steps)

    def __len__(self) -> int:
        return len(self._steps) * self._cut.accumulate

    def __iter__(self) -> Iterator[list[Draw]]:
        for step in self._steps:
            for micro in range(self._cut.accumulate):
                yield [
                    group[rows[row][0]].draw(step, rows[row][1])
                    for group, rows in self._groups
                    for row in self._cut.rows(len(rows), micro)
                ]


class PassBatches(Sampler[list[Draw]]):
    """Every sample exactly once over all ranks, in fixed order. All ranks get equally many batches of equal size.

    The last batch of each rank is as small as can be and filled with samples that are not valid.

    Args:
        samples: (N,) what to visit, in order.
        rows: samples of one rank in one batch.
        rank: this process.
        world_size: number of processes.
    """

    def __init__(self, samples: npt.NDArray[np.int64], rows: int, rank: int = 0, world_size: int = 1) -> None:
        self._samples, self._rows, self._rank, self._world = samples, rows, rank, world_size

    def __len__(self) -> int:
        return -(-len(self._samples) // (self._rows * self._world))

    def __iter__(self) -> Iterator[list[Draw]]:
        for begin in range(0, len(self._samples), self._rows * self._world):
            left = len(self._samples) - begin
            rows = min(self._rows, -(-left // self._world))
            places = np.arange(begin + self._rank * rows, begin + (self._rank + 1) * rows)
            last = len(self._samples) - 1
            samples = self._samples[np.minimum(places, last)]
            yield list(map(Draw, repeat(0), repeat(0), samples.tolist(), (places <= last).tolist()))


def choose(size: int, limit: int | None, order: Order) -> npt.NDArray[np.int64]:
    """All samples, or a fixed choice of `limit` of them, ascending."""
    if limit is None or limit >= size:
        return np.arange(size)
    return np.array(sorted(order.at(i)[1] for i in range(limit)), np.int64)
