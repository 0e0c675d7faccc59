"""Batches of samples of like size, so that little of a batch is padding."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from mmcl.datamodules.order import Order, mix, shuffled


class BucketedOrder(Order):
    """An `Order` in which neighbours are of like size.

    The positions are cut into blocks of `bucket` chunks. The samples that `Order` puts into a block are sorted by size
    and dealt out, a chunk of neighbours to each chunk of the block, in an order that seed, epoch and block fix. A block
    ends where its epoch ends, so every epoch is a permutation all the same; the chunks are counted from position 0, so
    that batches stay whole chunks in later epochs. Nothing depends on ranks, workers or shares.

    Args:
        shard_sizes: kept samples of each shard.
        seed: of this source in this task.
        window: shards whose samples are shuffled together.
        sizes: (N,) of the samples, in any unit.
        chunk: samples of a chunk: the batch's.
        bucket: chunks of a block. Larger ones pad less and mix less.
    """

    def __init__(
        self,
        shard_sizes: Sequence[int],
        seed: int,
        window: int,
        sizes: npt.NDArray[np.int64],
        chunk: int,
        bucket: int,
    ) -> None:
        super().__init__(shard_sizes, seed, window)
        self._lengths, self._chunk, self._span = sizes, chunk, chunk * bucket
        self._block_seed = seed
        self._blocks = lru_cache(maxsize=4)(self._make_block)

    def at(self, position: int) -> tuple[int, int]:
        """Epoch and index of a position."""
        epoch, block = position // self.size, position // self._span
        begin = max(block * self._span, epoch * self.size)
        return epoch, int(self._blocks(epoch, block)[position - begin])

    def _make_block(self, epoch: int, block: int) -> npt.NDArray[np.int64]:
        """What lies at the positions that a block and an epoch share."""
        begin = max(block * self._span, epoch * self.size)
        end = min((block + 1) * self._span, (epoch + 1) * self.size)
        samples = np.array([super(BucketedOrder, self).at(position)[1] for position in range(begin, end)])
        samples = samples[np.argsort(self._lengths[samples], kind="stable")]
        first = begin - begin % self._chunk
        cuts = np.array([begin, *range(first + self._chunk, end, self._chunk), end])
        widths = np.diff(cuts)  # all of a chunk's, but for those that the epoch's ends cut
        turn = shuffled(np.arange(len(widths)), mix(self._block_seed, epoch, 2, block))
        dealt = dict(zip(turn.tolist(), np.split(samples, np.cumsum(widths[turn])[:-1]), strict=True))
        return np.concatenate([dealt[place] for place in range(len(widths))])
