"""The order of a source's samples: a pure function of a seed and a position, with nothing to save.

Made of hashes and sorts, not of a random generator, so that no library version can change it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

_MASK = (1 << 64) - 1


def derive(*parts: object) -> int:
    """A 64-bit seed out of any printable parts."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


def mix(seed: int, *numbers: int) -> int:
    """A 64-bit hash of a seed and numbers (splitmix64)."""
    for number in (0, *numbers):  # the seed is scattered first: seed 0 in epoch 1 is not seed 1 in epoch 0
        seed = (seed ^ number) & _MASK
        seed = (seed + 0x9E3779B97F4A7C15) & _MASK
        seed = ((seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        seed = ((seed ^ (seed >> 27)) * 0x94D049BB133111EB) & _MASK
        seed ^= seed >> 31
    return seed


def shuffled(values: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.int64]:
    """The values in an order that the seed fixes."""
    hashed = values.astype(np.uint64) ^ np.uint64(seed & _MASK)
    with np.errstate(over="ignore"):
        hashed += np.uint64(0x9E3779B97F4A7C15)
        hashed = (hashed ^ (hashed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        hashed = (hashed ^ (hashed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        hashed ^= hashed >> np.uint64(31)
    return values[np.argsort(hashed, kind="stable")]


class Order:
    """Position -> (epoch, index in the kept list). Every epoch is a permutation; positions run on over epochs.

    In each epoch the shards are permuted, and the samples within windows of `window` shards, so that reading stays
    local however large the source is.

    Args:
        shard_sizes: kept samples of each shard.
        seed: of this source in this task.
        window: shards whose samples are shuffled together.
        ordered: take the samples as they lie.
    """

    def __init__(self, shard_sizes: Sequence[int], seed: int, window: int, ordered: bool = False) -> None:
        self.size = int(sum(shard_sizes))
        self._sizes = np.array(shard_sizes, np.int64)
        self._begins = np.cumsum(self._sizes) - self._sizes
        self._seed, self._window, self._ordered = seed, window, ordered
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)
        self._samples = lru_cache(maxsize=4)(self._make_window)

    def at(self, position: int) -> tuple[int, int]:
        """Epoch and index of a position."""
        epoch, rest = divmod(position, self.size)
        if self._ordered:
            return epoch, rest
        _, begins = self._epoch(epoch)
        window = int(np.searchsorted(begins, rest, side="right")) - 1
        return epoch, int(self._samples(epoch, window)[rest - int(begins[window])])

    def _make_epoch(self, epoch: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The epoch's shards, and the first position of each window."""
        shards = shuffled(np.arange(len(self._sizes)), mix(self._seed, epoch, 0))
        shards = shards[self._sizes[shards] > 0]
        sizes = np.add.reduceat(self._sizes[shards], np.arange(0, len(shards), self._window))
        return shards, np.cumsum(sizes) - sizes

    def _make_window(self, epoch: int, window: int) -> npt.NDArray[np.int64]:
        shards = self._epoch(epoch)[0][window * self._window : (window + 1) * self._window]
        samples = np.concatenate(
            [np.arange(b, b + n) for b, n in zip(self._begins[shards], self._sizes[shards], strict=True)]
        )
        return shuffled(samples, mix(self._seed, epoch, 1))
