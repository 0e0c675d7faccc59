"""Shards in, batches out: the data of a stream as a LightningDataModule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lightning.pytorch import LightningDataModule

from mmcl.collate import collate as stack
from mmcl.datamodules.bucket import BucketedOrder
from mmcl.datamodules.cache import GIGABYTES, ShardCache, check_room
from mmcl.datamodules.dataset import BAD, BatchDataset, Collate, Pool, Purpose, Transform
from mmcl.datamodules.loader import BadSamples, StreamLoader
from mmcl.datamodules.order import Order, derive
from mmcl.datamodules.plan import OWN, BatchPlan, make_plan
from mmcl.datamodules.reader import SourceReader
from mmcl.datamodules.readers import Readers, check_sources
from mmcl.datamodules.remote import public
from mmcl.datamodules.sampler import Cut, Part, PassBatches, TrainBatches, choose, interleave
from mmcl.datamodules.stream_part import StreamPart, Topology
from mmcl.datamodules.stream_source import StreamPool, StreamReader
from mmcl.errors import ConfigError
from mmcl.outputs import Packing
from mmcl.stream import Source, Stream, Task, TaskSamples


class StreamDataModule(LightningDataModule):
    """Reads a stream's shards.

    A batch is a dictionary: ``image``, ``text``, ``labels`` and what else the sources' `fields` name, as the module's
    transform gives them; ``domain`` (B,), the task's position in the stream (-1 in evaluation); ``valid`` (B,), False
    for padding; ``__key__``, a list; ``__index__`` (B,), the sample's place in its source's kept list; and ``side``,
    name -> batch, where there are side sources. ``labels`` are -100 in rows of sources without labels. In training a
    sample with several captions gives one, chosen by seed, epoch and sample; in evaluation it gives all: ``text``
    (N, L) with ``text_rows`` (N,), the row of each caption's image.

    Batches do not depend on `workers`, and an optimizer step sees the same samples on any number of devices.

    Args:
        stream: the tasks and evaluation sets.
        batch_size: samples of one optimizer step over all ranks and accumulated batches.
        eval_batch_size: samples of one batch on one rank in evaluation.
        workers: processes that read and decode; 0 reads in the main process.
        window: shards whose samples are shuffled together. Larger mixes better and reads less locally.
        max_bad: part of the draws of a segment that may be undecodable samples; above it the run stops.
        pin_memory: copy batches to page-locked memory, for GPUs.
        bucket: the samples of so many consecutive training batches are sorted by the bytes of what is read of them and
            dealt out again, so that a batch holds recordings or texts of like length and little of it is padding. 1
            leaves the order as it is; sources that are `ordered` stay so.
        cache_dir: folder for remote shards, on a local disk; None is ``shards`` in mmcl's cache.
        cache_gb: bound of that folder (1e9 bytes).
        stream_buffer: samples of a stream that are shuffled together by each reader.
        allow_pipe: let ``pipe:COMMAND`` stand for a shard that a command writes. Whoever writes the config may then run
            anything.

    Raises:
        ConfigError: a number that cannot be.
    """

    def __init__(
        self,
        stream: Stream,
        batch_size: int = 64,
        eval_batch_size: int = 256,
        workers: int = 0,
        window: int = 8,
        max_bad: float = 0.001,
        pin_memory: bool = False,
        bucket: int = 1,
        cache_dir: str | None = None,
        cache_gb: float = GIGABYTES,
        stream_buffer: int = 1000,
        allow_pipe: bool = False,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("workers", workers, 0),
            ("window", window, 1),
            ("bucket", bucket, 1),
            ("stream_buffer", stream_buffer, 1),
        ):
            if value < least:
                raise ConfigError(f"data: {name} is {value}; it must be {least} or more")
        if not 0.0 <= max_bad <= 1.0:
            raise ConfigError(f"data: max_bad is {max_bad}; it must be between 0 and 1")
        self.stream = stream
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.workers, self.window, self.pin_memory = workers, window, pin_memory
        self.bucket = bucket
        self.stream_buffer = stream_buffer
        self.cache = ShardCache(cache_dir, cache_gb)
        self.bad = BadSamples(max_bad)
        self._cut, self._seed = Cut(), 0
        self._transform: Transform | None = None
        self._collate: Collate = stack
        self._sample_tokens: int | None = None
        self._readers = Readers(self.cache, allow_pipe)

    def bind(
        self,
        transform: Transform,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
        sample_tokens: int | None = None,
        collate: Collate = stack,
        packing: Packing | None = None,
    ) -> None:
        """Say what the batches are for. Comes before `check` and the loaders; again whenever one of these changes.

        Args:
            transform: the module's: (sample, whether to augment) -> sample with tensors. It runs in the workers and
                may use the global generators of random, numpy and torch: they are seeded for each sample.
            seed: of the order, the augmentation and the choice of captions.
            rank: this process.
            world_size: number of processes.
            accumulate: batches of one optimizer step.
            sample_tokens: tokens of one sample, for budgets in tokens.
            collate: the module's: rows -> batch. It runs in the workers.
            packing: how documents become samples; None takes the samples of the shards as they are.
        """
        self._readers.pack(packing)
        self._transform, self._seed, self._sample_tokens = transform, seed, sample_tokens
        self._collate = collate
        self._cut = Cut(rank, world_size, accumulate)

    # -- before training ----------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Open every source of the stream, and refuse what cannot work. Shards without an index get one here.

        Raises:
            ConfigError: a missing or damaged shard; a cache too small for those that are read at a time; keys that are
                not found; labels without a class name; an empty caption; data of a task that is not there; a batch
                larger than a task, or one that devices and accumulation do not divide.
            RunError: a remote shard cannot be fetched.
        """
        self._check_divides(self.batch_size, "`batch_size`")
        check_sources(self.stream, self._readers)
        for task in self.stream.tasks:
            self.plan(task, task.mix)
            pools = [self._pool(OWN, task.train, task), *(self._pool(s.name, [s], task) for s in task.mix)]
            check_room(self.cache, [pool.fetched_sizes() for pool in pools], self.window, f"task '{task.name}'")

    def count(self, source: Source) -> int:
        """Samples of a source; 0 of one that is read as a stream, since nobody knows."""
        readers = [self._readers.open(part) for part in source.all]
        return sum(len(reader) for reader in readers if not isinstance(reader, StreamReader))

    def fields(self, source: Source) -> frozenset[str]:
        """What a source's own samples hold: ``image``, ``audio``, ``text``, ``labels``, or what its `fields` name."""
        return frozenset(self._readers.open(source).present)

    def has_labels(self, source: Source) -> bool:
        """Whether a source's samples have labels, or the documents that are packed into them."""
        return self._readers.labelled(source)

    def double_key(self, source: Source) -> str | None:
        """A key that two of a source's own samples have, or of the documents that are packed; None: all differ."""
        return self._readers.double_key(source)

    def title(self, source: Source) -> str:
        """A source's name and first shard, for messages: many are called alike."""
        return f"source '{source.name}' ({public(source.shards[0])})"

    def captions(self, source: Source) -> Iterator[str]:
        """All captions of a source, in the order of its samples.

        Raises:
            ConfigError: it is a stream.
        """
        for part in source.all:
            yield from self._readers.indexed(part, "going through all captions").texts()

    def task_samples(self, task: Task) -> TaskSamples:
        """Sources, keys and labels of a task's own samples, in the order of a pass, without reading the shards.

        Of documents that are packed into blocks these are the documents.

        Raises:
            ConfigError: they are a stream.
        """
        for source in _all(task.train):
            self._readers.indexed(source, "a memory of samples")
        readers = [SourceReader(source, self.cache) for source in _all(task.train)]
        found = [reader.labels() for reader in readers]
        return TaskSamples(
            [number for number, reader in enumerate(readers) for _ in range(len(reader))],
            [reader.key(i) for reader in readers for i in range(len(reader))],
            None if any(x is None for x in found) else [int(label) for x in found if x is not None for label in x],
        )

    def plan(self, task: Task, extra: Sequence[Source] = ()) -> BatchPlan:
        """What one step of a task sees and how many steps there are.

        Args:
            task: the task.
            extra: mixed and side sources of strategies.

        Raises:
            ConfigError: see `mmcl.datamodules.plan.make_plan`; also a side batch that does not divide.
        """
        own = None if task.is_stream else sum(self.count(source) for source in task.train)
        plan = make_plan(task, extra, own, self.batch_size, self._sample_tokens)
        for name, size in plan.side.items():
            self._check_divides(size, f"task '{task.name}': the batch of side source '{name}'")
        return plan

    def advance(self, positions: Mapping[str, int], plan: BatchPlan, steps: int) -> dict[str, int]:
        """Samples drawn from each source, and by each reader of a stream, after so many more steps."""
        moved = plan.advance(positions, steps)
        for name in plan.streams:
            moved |= self._stream_part(0, name, plan, positions).after(steps)
        return moved

    def note_bad(self, batch: dict[str, Any]) -> None:
        """Count the replaced samples of a batch and take their names out of it. The loaders do this with each batch."""
        self.bad.note(batch.pop(BAD, []))

    # -- loaders ------------------------------------------------------------------------------------------------------

    def train_loader(
        self,
        task: Task,
        extra: Sequence[Source] = (),
        *,
        positions: Mapping[str, int],
        segment: int,
        first_step: int,
        steps: int,
    ) -> StreamLoader:
        """The batches of optimizer steps `first_step` .. `steps` - 1 of a segment, `accumulate` for each step.

        Args:
            task: the task.
            extra: mixed and side sources of strategies.
            positions: samples drawn from each source when the segment began; {} at the task's start.
            segment: number of the segment, for messages: the order runs on from `positions`.
            first_step: where to begin in the segment.
            steps: steps of the segment.

        Raises:
            ConfigError: see `plan`.
        """
        if not 0 <= first_step <= steps:
            raise ConfigError(f"task '{task.name}', segment {segment}: cannot begin at step {first_step} of {steps}")
        self._check_divides(self.batch_size, "`batch_size`")
        plan = self.plan(task, extra)
        by_name = {source.name: [source] for source in extra} | {OWN: list(task.train)}
        counts = plan.drawn
        names = [*plan.order, *plan.side]
        pools = [self._pool(name, by_name[name], task) for name in names]
        check_room(self.cache, [pool.fetched_sizes() for pool in pools], self.window, f"task '{task.name}'")
        parts: list[Part | StreamPart] = [
            self._stream_part(i, name, plan, positions)
            if isinstance(pool, StreamPool)
            else Part(i, self._order(pool, plan.side.get(name, self.batch_size)), counts[name], positions.get(name, 0))
            for i, (name, pool) in enumerate(zip(names, pools, strict=True))
        ]
        mixed = len(plan.order)
        batches = TrainBatches([parts[:mixed], *([part] for part in parts[mixed:])], self._cut, first_step, steps)
        sides = {i: names[i] for i in range(mixed, len(names))}
        draws = steps * (self.batch_size + sum(plan.side.values())) // self._cut.world_size
        return self._loader(pools, sides, self.stream.position(task), "train", True, batches, draws)

    def eval_loader(
        self, source: Source, *, limit: int | None = None, seed: int = 0, strict: bool = True
    ) -> StreamLoader:
        """Every sample exactly once over all ranks, in fixed order, without augmentation.

        All ranks get equally many batches of equal size; rows that fill the last ones up have ``valid`` False.

        Args:
            source: the data.
            limit: take a fixed choice of so many samples, a function of `seed` and the source's name.
            seed: of that choice.
            strict: stop at a sample that cannot be decoded; else replace it, with ``valid`` False.
        """
        readers = [self._readers.indexed(part, "a pass") for part in source.all]
        pool = Pool(source.name, readers, derive(seed, "eval", source.name))
        return self._pass([pool], limit, self.eval_batch_size, "eval" if strict else "read", -1, False)

    def pass_loader(
        self, task: Task, *, augment: bool = False, batch_size: int | None = None, limit: int | None = None
    ) -> StreamLoader:
        """A pass over a task's own data: every sample exactly once over all ranks, in fixed order.

        A sample that cannot be decoded is replaced, with ``valid`` False.

        Args:
            task: the task.
            augment: apply the training transform; each pass gives the same pictures.
            batch_size: samples of a batch over all ranks; None takes what training has in memory at a time.
            limit: take a fixed choice of so many samples.

        Raises:
            ConfigError: `batch_size` does not divide by the number of processes; the task's own data are a stream.
        """
        readers = [self._readers.indexed(source, "a pass") for source in _all(task.train)]
        pool = Pool(OWN, readers, derive(self._seed, task.name, OWN))
        world = self._cut.world_size
        total = self.batch_size // self._cut.accumulate if batch_size is None else batch_size
        if total < 1 or total % world:
            raise ConfigError(f"task '{task.name}': a pass in batches of {total} does not divide by {world} processes")
        return self._pass([pool], limit, total // world, "pass", self.stream.position(task), augment)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _pass(
        self, pools: list[Pool], limit: int | None, rows: int, purpose: Purpose, domain: int, augment: bool
    ) -> StreamLoader:
        order = Order([len(pools[0])], derive(pools[0].seed, "choice"), 1)
        samples = choose(len(pools[0]), limit, order)
        batches = PassBatches(samples, rows, self._cut.rank, self._cut.world_size)
        draws = max(len(batches) * rows, len(pools[0]) // self._cut.world_size)  # a choice is held to the whole's part
        return self._loader(pools, {}, domain, purpose, augment, batches, draws)

    def _loader(
        self,
        pools: Sequence[Pool | StreamPool],
        sides: Mapping[int, str],
        domain: int,
        purpose: Purpose,
        augment: bool,
        batches: TrainBatches | PassBatches,
        draws: int,
    ) -> StreamLoader:
        if self._transform is None:
            raise RuntimeError("StreamDataModule.bind comes before its loaders")
        domains = {task.name: i for i, task in enumerate(self.stream.tasks)}
        dataset = BatchDataset(pools, sides, self._transform, self._collate, domain, domains, purpose, augment)
        return StreamLoader(dataset, batches, self.note_bad, self.bad, draws, self.workers, self.pin_memory)

    def _pool(self, name: str, sources: Sequence[Source], task: Task) -> Pool | StreamPool:
        readers = [self._readers.open(source) for source in _all(sources)]
        seed = derive(self._seed, task.name, name)
        streams = [reader for reader in readers if isinstance(reader, StreamReader)]
        if not streams:
            return Pool(name, [reader for reader in readers if not isinstance(reader, StreamReader)], seed)
        if len(streams) < len(readers):
            raise ConfigError(
                f"task '{task.name}': some of its own sources are streams and others are not; put one kind under `mix`"
            )
        return StreamPool(name, streams, seed, self._topology.readers, self.stream_buffer)

    def _stream_part(self, number: int, name: str, plan: BatchPlan, positions: Mapping[str, int]) -> StreamPart:
        if name in plan.side:
            total = plan.side[name]
            rows = list(range(total))
        else:
            total, place = plan.batch_size, plan.order.index(name)
            mixed = interleave([plan.drawn[other] for other in plan.order])
            rows = [row for row, (which, _) in enumerate(mixed) if which == place]
        return StreamPart(number, name, rows, total, self._topology, positions)

    @property
    def _topology(self) -> Topology:
        return Topology(self._cut.world_size, max(1, self.workers), self._cut.accumulate)

    def _order(self, pool: Pool, chunk: int) -> Order:
        if self.bucket > 1 and not pool.ordered:
            return BucketedOrder(pool.shard_sizes, pool.seed, self.window, pool.sizes(), chunk, self.bucket)
        return Order(pool.shard_sizes, pool.seed, self.window, pool.ordered)

    def _check_divides(self, size: int, what: str) -> None:
        if size % self._cut.parts:
            raise ConfigError(
                f"{what} ({size}) does not divide by {self._cut.world_size} processes x {self._cut.accumulate} "
                f"accumulated batches; take a multiple of {self._cut.parts}"
            )


def _all(sources: Sequence[Source]) -> list[Source]:
    return [part for source in sources for part in source.all]
