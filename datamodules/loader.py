"""The DataLoader of a stream: a known length, errors as one line, replaced samples counted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from mmcl.datamodules.dataset import ERROR, BatchDataset
from mmcl.datamodules.sampler import Draw
from mmcl.errors import RunError

logger = logging.getLogger("mmcl")


class BadSamples:
    """Samples that could not be decoded and were replaced, in this process.

    Args:
        max_bad: the largest tolerated part of the draws.

    Attributes:
        count: draws that were replaced.
        names: message of each bad sample (key, shard, reason) -> how often it was met.
    """

    def __init__(self, max_bad: float) -> None:
        self.max_bad = max_bad
        self.count = 0
        self.names: dict[str, int] = {}

    def note(self, replaced: list[list[str]]) -> None:
        """Count, and name each sample once in the log."""
        self.count += len(replaced)
        for name in (name for failed in replaced for name in failed):
            if name not in self.names:
                logger.warning("replaced by the next sample: %s", name)
            self.names[name] = self.names.get(name, 0) + 1


class StreamLoader(DataLoader[dict[str, Any]]):
    """Yields the batches of a dataset.

    Args:
        dataset: maps draws to batches.
        batches: which draws, in order.
        note: takes the names of replaced samples out of a batch and counts them in `bad`.
        bad: what was replaced so far.
        draws: all draws of this rank in the segment or pass, which `max_bad` is a part of.
        workers: processes that read; 0 reads in this one. The batches are the same for any number.
        pin_memory: copy batches to page-locked memory.
    """

    def __init__(
        self,
        dataset: BatchDataset,
        batches: Sampler[list[Draw]],
        note: Callable[[dict[str, Any]], None],
        bad: BadSamples,
        draws: int,
        workers: int,
        pin_memory: bool,
    ) -> None:
        super().__init__(
            dataset,
            batch_size=None,  # an item of the sampler is a whole batch, which the dataset collates
            sampler=batches,
            num_workers=workers,
            collate_fn=_same,  # type: ignore[arg-type]
            pin_memory=pin_memory,
            # Fork: transforms need not be picklable, and workers share the index.
            multiprocessing_context="fork" if workers else None,
            # Else each new iterator would draw from the global generator.
            generator=torch.Generator().manual_seed(0),
        )
        self._note, self._bad, self._draws = note, bad, draws
        # What a strategy reads, such as a small memory, training draws from as well and is held to its part there.
        self._bounded = dataset.purpose != "read" or not bad.max_bad

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        before = self._bad.count
        for batch in super().__iter__():
            if ERROR in batch:
                raise RunError(batch[ERROR])
            self._note(batch)
            replaced = self._bad.count - before
            if self._bounded and replaced > self._bad.max_bad * self._draws:
                raise RunError(
                    f"{replaced} of {self._draws} draws could not be decoded, more than max_bad = "
                    f"{self._bad.max_bad:g} allows; the last one: {next(reversed(self._bad.names))}"
                )
            yield batch


def _same(batch: dict[str, Any]) -> dict[str, Any]:
    return batch
