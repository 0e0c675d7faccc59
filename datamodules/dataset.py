"""Draws to batches: read, decode, transform, collate. Runs in the workers."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import accumulate
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from mmcl.collate import BatchMemory
from mmcl.datamodules.order import mix
from mmcl.datamodules.packed import PackedReader
from mmcl.datamodules.reader import NO_LABEL, BadSample, SourceReader
from mmcl.datamodules.sampler import Draw
from mmcl.datamodules.stream_source import StreamPool
from mmcl.errors import MmclError, RunError, SampleError
from mmcl.outputs import SKIP

Transform = Callable[[dict[str, Any], bool], dict[str, Any]]
"""The module's: (sample, whether to augment) -> sample with tensors."""

Collate = Callable[[Sequence[dict[str, Any]]], dict[str, Any]]
"""The module's: rows -> batch."""

Purpose = Literal["train", "pass", "read", "eval"]

BAD = "__bad__"
"""Batch key: for each replaced draw the samples that failed. The loader takes it out and counts."""
ERROR = "__error__"
"""Batch key: an error for the user that arose in a worker, as one line instead of a stack trace."""

_MAX_TRIES = 100


class Pool:
    """Samples that are drawn as one: the readers of one or several sources, one after another.

    Args:
        name: of the pool.
        readers: its sources.
        seed: of the pool in this task, for the order, the augmentation and the choice of captions.
    """

    def __init__(self, name: str, readers: Sequence[SourceReader | PackedReader], seed: int) -> None:
        self.name, self.readers, self.seed = name, list(readers), seed
        self._begins = [0, *accumulate(map(len, self.readers))]

    def __len__(self) -> int:
        return self._begins[-1]

    @property
    def shard_sizes(self) -> list[int]:
        """Kept samples of each shard."""
        return [size for reader in self.readers for size in reader.shard_sizes]

    def sizes(self) -> npt.NDArray[np.int64]:
        """(N,) bytes of what is read of each sample."""
        return np.concatenate([reader.sizes() for reader in self.readers])

    def fetched_sizes(self) -> list[int]:
        """Bytes of each shard in the cache; 0 of a local one."""
        return [size for reader in self.readers for size in reader.fetched_sizes()]

    @property
    def ordered(self) -> bool:
        """Whether the samples are taken as they lie."""
        return all(reader.source.ordered for reader in self.readers)

    @property
    def has_labels(self) -> bool:
        """Whether any of its sources has labels."""
        return any("labels" in reader.present for reader in self.readers)

    def next_of(self, index: int, step: int) -> int:
        """The sample that stands in for a bad one: the next one, and so on."""
        return (index + step) % len(self)

    def locate(self, index: int) -> tuple[SourceReader | PackedReader, int]:
        """The reader of a sample, and the sample's place there."""
        which = bisect_right(self._begins, index) - 1
        return self.readers[which], index - self._begins[which]


class BatchDataset(Dataset[dict[str, Any]]):
    """Maps a list of draws to a batch.

    Args:
        pools: what draws refer to.
        sides: pools that arrive as a batch of their own, number -> name.
        transform: the module's. It gets pictures as `PIL.Image.Image`, or as arrays where it is marked with
            `mmcl.outputs.takes_pixels`.
        collate: the module's. Where both are marked with `mmcl.outputs.draws_to_augment`, random generators are seeded
            for augmented samples alone.
        domain: the task's position in the stream; -1 outside of tasks.
        domains: name of a task -> its position, for sources that say whose data they are.
        purpose: ``train`` replaces a bad sample by the next one; ``pass`` and ``read`` do too and mark it as not valid;
            ``eval`` stops at it. ``read`` and ``eval`` keep all captions of a sample; the others choose one.
        augment: whether sources that may be augmented are.
    """

    def __init__(
        self,
        pools: Sequence[Pool | StreamPool],
        sides: Mapping[int, str],
        transform: Transform,
        collate: Collate,
        domain: int,
        domains: Mapping[str, int],
        purpose: Purpose,
        augment: bool,
    ) -> None:
        self._pools, self._sides = list(pools), dict(sides)
        self._transform, self._collate = transform, collate
        self._as_pixels = bool(getattr(transform, "takes_pixels", False))
        self._draws_always = not all(getattr(part, "draws_to_augment", False) for part in (transform, collate))
        self._domain, self._domains, self.purpose, self._augment = domain, domains, purpose, augment
        mixed = [pool for i, pool in enumerate(self._pools) if i not in self._sides]
        self._labelled = any(pool.has_labels for pool in mixed)

    def __getitem__(self, draws: list[Draw]) -> dict[str, Any]:
        try:
            bad: list[list[str]] = []
            random_state = _kept_random_state() if self._augment or self._draws_always else nullcontext()
            # A loader may be read inside a forward's autocast, which workers inherit; samples take full precision.
            with random_state, torch.autocast("cpu", enabled=False):
                batch = self._batch([d for d in draws if d.pool not in self._sides], self._labelled, bad)
                if self._sides:
                    batch["side"] = {
                        name: self._batch([d for d in draws if d.pool == i], self._pools[i].has_labels, bad)
                        for i, name in self._sides.items()
                    }
            return {**batch, BAD: bad}
        except MmclError as error:
            return {ERROR: str(error)}

    def _batch(self, draws: Sequence[Draw], labelled: bool, bad: list[list[str]]) -> dict[str, Any]:
        samples, valid = [], []
        memory = BatchMemory(len(draws))
        for row, draw in enumerate(draws):
            sample, replaced = self._sample(draw, labelled, bad)
            memory.put(row, sample)
            samples.append(sample)
            valid.append(draw.valid and not (replaced and self.purpose != "train"))
        return {**self._collate(samples), "valid": torch.tensor(valid)}

    def _sample(self, draw: Draw, labelled: bool, bad: list[list[str]]) -> tuple[dict[str, Any], bool]:
        """The sample of a draw, or the first good one after it, and whether it was replaced."""
        pool = self._pools[draw.pool]
        failed: list[str] = []
        for step in range(min(_MAX_TRIES, len(pool))):
            index = pool.next_of(draw.sample, step)
            try:
                sample = self._load(draw, index, labelled)
            except BadSample as error:
                if self.purpose == "eval":
                    raise RunError(f"{error}; an evaluation cannot leave samples out: mend it") from error
                failed.append(str(error))
            else:
                if failed:
                    bad.append(failed)
                return sample, bool(failed)
        raise RunError(
            f"source '{pool.name}': {min(_MAX_TRIES, len(pool))} samples in a row cannot be decoded: {failed[-1]}"
        )

    def _load(self, draw: Draw, index: int, labelled: bool) -> dict[str, Any]:
        pool = self._pools[draw.pool]
        reader, place = pool.locate(index)
        if (owner := reader.source.task) is not None:
            domain = self._domains[owner]
        else:
            domain = -1 if draw.pool in self._sides else self._domain  # a side batch is of no task
        sample = reader.read(place, self._as_pixels)
        if labelled:  # of the shards; labels that a transform makes are its own
            sample.setdefault("labels", NO_LABEL)
        else:
            sample.pop("labels", None)
        if self.purpose in ("train", "pass") and isinstance(sample.get("text"), list):
            sample["text"] = sample["text"][mix(mix(pool.seed, draw.epoch, index), 1) % len(sample["text"])]
        known = {"__key__": sample["__key__"], "__index__": index, "domain": domain}
        sample.update(known)
        augment = self._augment and reader.source.augment
        if augment or self._draws_always:
            _seed_all(mix(pool.seed, draw.epoch, index))
        try:
            row = self._transform(sample, augment)
        except SampleError as error:
            raise BadSample(f"{reader.where(place)}: {error}") from error
        skip = row.pop(SKIP, None)
        if skip is not None and self.purpose != "eval":
            raise BadSample(f"{reader.where(place)}: {skip}")
        return {**row, **known}


@contextmanager
def _kept_random_state() -> Iterator[None]:
    """Batches made in the main process leave its random state as it was."""
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])


def _seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    # `torch.manual_seed` also visits every accelerator and takes a hundred times as long.
    torch.default_generator.manual_seed(seed >> 1)
