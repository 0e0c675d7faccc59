"""Length bucketing: the same samples in every epoch, in batches of like length."""

import io
import itertools
from collections import Counter

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from mmcl.datamodules import StreamDataModule, write_shard
from mmcl.datamodules.bucket import BucketedOrder
from mmcl.datamodules.order import Order
from mmcl.errors import ConfigError
from mmcl.stream import Budget, Source, Stream, Task

shards = st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any)


def bucketed(shard_sizes, seed=0, window=2, chunk=4, bucket=3, lengths=None):
    count = sum(shard_sizes)
    lengths = np.random.default_rng(seed % 2**32).integers(1, 100, count) if lengths is None else lengths
    return BucketedOrder(shard_sizes, seed, window, lengths, chunk, bucket), lengths


@given(shards, st.integers(0, 2**64 - 1), st.integers(1, 4), st.integers(1, 9), st.integers(1, 5))
def test_every_epoch_is_a_permutation_of_the_same_blocks(shard_sizes, seed, window, chunk, bucket):
    order, _ = bucketed(shard_sizes, seed, window, chunk, bucket)
    plain = Order(shard_sizes, seed, window)
    found = [order.at(i) for i in range(4 * order.size)]
    for epoch in range(4):
        part = found[epoch * order.size : (epoch + 1) * order.size]
        assert {e for e, _ in part} == {epoch}
        assert sorted(i for _, i in part) == list(range(order.size))
    for begin in range(0, len(found) - chunk * bucket, chunk * bucket):  # samples only move within their block
        block = slice(begin, begin + chunk * bucket)
        assert Counter(found[block]) == Counter(plain.at(i) for i in range(block.start, block.stop))


@given(shards, st.integers(0, 2**64 - 1), st.integers(1, 9), st.integers(1, 5), st.randoms())
def test_a_position_depends_on_nothing_before_it(shard_sizes, seed, chunk, bucket, random):
    order, _ = bucketed(shard_sizes, seed, 2, chunk, bucket)
    straight = [order.at(i) for i in range(3 * order.size)]
    again, _ = bucketed(shard_sizes, seed, 2, chunk, bucket)
    places = list(range(len(straight)))
    random.shuffle(places)
    assert all(again.at(i) == straight[i] for i in places)


@given(st.integers(0, 2**32), st.integers(2, 8), st.integers(2, 6))
def test_chunks_of_a_block_hold_neighbours_in_length(seed, chunk, bucket):
    order, lengths = bucketed([30, 40], seed, 2, chunk, bucket)
    for begin in range(0, order.size - chunk * bucket, chunk * bucket):
        chunks = [sorted(lengths[order.at(begin + c * chunk + i)[1]] for i in range(chunk)) for c in range(bucket)]
        chunks.sort(key=lambda c: (c[0], c[-1]))
        assert all(a[-1] <= b[0] for a, b in itertools.pairwise(chunks))


def test_the_order_of_the_chunks_is_shuffled_and_differs_between_epochs_and_blocks():
    order, lengths = bucketed([400], chunk=4, bucket=5, lengths=np.arange(400))
    shapes = set()
    for block in range(60):
        means = [np.mean([lengths[order.at(block * 20 + c * 4 + i)[1]] for i in range(4)]) for c in range(5)]
        shapes.add(tuple(np.argsort(means)))
    assert len(shapes) > 20


def test_batches_stay_chunks_in_later_epochs():
    # 23 samples in chunks of 4: an epoch ends within a chunk, and the next one begins by filling that chunk up.
    order, lengths = bucketed([23], chunk=4, bucket=50, lengths=np.arange(23))
    inner = [[order.at(i) for i in range(b, b + 4)] for b in range(0, 23 * 6, 4)]
    whole = [b for b in inner if len({epoch for epoch, _ in b}) == 1]
    assert len(whole) > 20
    assert all(np.ptp([lengths[i] for _, i in b]) == 3 for b in whole)


def test_bucketed_order_is_fixed_for_all_time():
    # Runs are resumed with later versions: these values may never change.
    order, _ = bucketed([3, 4, 5], 7, 2, 3, 2, np.arange(12)[::-1].copy())
    assert [order.at(i)[1] for i in range(12)] == [3, 1, 0, 6, 5, 4, 8, 7, 2, 11, 10, 9]


def recordings(folder, count):
    random = np.random.default_rng(0)
    rows = []
    for i in range(count):
        file = io.BytesIO()
        soundfile.write(file, random.uniform(-1, 1, int(random.integers(50, 2000))), 8000, format="WAV")
        rows.append({"__key__": f"s{i:03d}", "wav": file.getvalue()})
    write_shard(folder / "a.tar", rows)
    return Source([str(folder / "a.tar")], name="a", fields={"audio": ("wav",)})


def row(sample, augment):
    return {"length": len(sample["audio"].samples), "noise": float(np.random.rand()), "__key__": sample["__key__"]}


def batches(source, world=1, accumulate=1, bucket=4, first=0, workers=0, steps=9):
    """step -> the samples of all ranks and micro-batches."""
    stream = Stream("s", [Task("t", [source], Budget(steps=steps))])
    found = [[] for _ in range(steps - first)]
    for rank in range(world):
        data = StreamDataModule(stream, batch_size=8, bucket=bucket, workers=workers)
        data.bind(row, seed=3, rank=rank, world_size=world, accumulate=accumulate)
        loader = data.train_loader(stream.tasks[0], positions={}, segment=0, first_step=first, steps=steps)
        for i, batch in enumerate(loader):
            values = zip(batch["__key__"], batch["length"].tolist(), batch["noise"].tolist(), strict=True)
            found[i // accumulate] += list(values)
    return found


def test_equal_on_any_number_of_ranks_and_workers_and_after_resume(tmp_path):
    source = recordings(tmp_path, 44)
    whole = batches(source)
    as_sets = [set(b) for b in whole]
    assert [set(b) for b in batches(source, world=2, accumulate=2)] == as_sets
    assert batches(source, workers=2) == whole
    assert batches(source, first=5) == whole[5:]


def test_pads_less(tmp_path):
    source = recordings(tmp_path, 44)

    def padded(found):
        return sum(max(length for _, length, _ in b) * len(b) for b in found[:5])

    assert padded(batches(source, bucket=5)) < 0.8 * padded(batches(source, bucket=1))


def test_sources_that_are_ordered_stay_so(tmp_path):
    source = recordings(tmp_path, 24)
    source = Source(source.shards, name="a", fields=source.fields, ordered=True)
    keys = [key for b in batches(source, steps=3) for key, _, _ in b]
    assert keys == [f"s{i:03d}" for i in range(24)]


def test_refuses_a_bucket_below_one(tmp_path):
    stream = Stream("s", [Task("t", [Source(["a.tar"])], Budget(steps=1))])
    with pytest.raises(ConfigError, match="bucket is 0"):
        StreamDataModule(stream, bucket=0)
