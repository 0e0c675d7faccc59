from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mmcl.datamodules.order import Order, derive, mix
from mmcl.datamodules.sampler import Cut, Draw, Part, PassBatches, TrainBatches, choose, interleave

sizes = st.lists(st.integers(0, 7), min_size=1, max_size=8).filter(any)
seeds = st.integers(0, 2**64 - 1)


@given(sizes, seeds, st.integers(1, 9), st.booleans())
def test_every_epoch_is_a_permutation(sizes, seed, window, ordered):
    order = Order(sizes, seed, window, ordered)
    for epoch in (0, 1, 5):
        found = [order.at(epoch * order.size + i) for i in range(order.size)]
        assert {e for e, _ in found} == {epoch}
        assert sorted(i for _, i in found) == list(range(order.size))
        if ordered:
            assert [i for _, i in found] == list(range(order.size))


def test_epochs_and_seeds_differ():
    orders = {tuple(Order([50, 50], seed, 8).at(e * 100 + i)[1] for i in range(100)) for seed in (0, 1) for e in (0, 1)}
    assert len(orders) == 4


def test_shuffles_within_windows_of_shards():
    order = Order([10] * 6, seed=3, window=2)
    windows = [{order.at(w * 20 + i)[1] // 10 for i in range(20)} for w in range(3)]
    assert [len(w) for w in windows] == [2, 2, 2]
    assert set.union(*windows) == set(range(6))


def test_order_is_fixed_for_all_time():
    # Runs are resumed with later versions: these values may never change.
    order = Order([3, 4, 5], derive(0, "task", "own"), 2)
    assert derive(0, "task", "own") == 14555230994728472672
    assert mix(7, 1, 2) == 1650069959653123811
    assert [order.at(i)[1] for i in range(12)] == [3, 1, 5, 0, 6, 2, 4, 7, 9, 11, 10, 8]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=4), st.integers(1, 4))
def test_interleave_is_fair(counts, parts):
    rows = interleave(counts)
    assert sorted(rows) == [(p, i) for p, c in enumerate(counts) for i in range(c)]
    for begin in range(0, len(rows) - len(rows) // parts + 1, max(len(rows) // parts, 1)):
        part = Counter(p for p, _ in rows[begin : begin + len(rows) // parts])
        assert all(abs(part[p] - c / parts) < 2 for p, c in enumerate(counts))


def batches(world, accumulate, counts, side, first=0, steps=5, begin=0, sizes=(5, 6, 7)):
    """rank -> its batches."""
    found = []
    for rank in range(world):
        parts = [
            Part(i, Order(sizes, seed=i, window=2), count, begin * count) for i, count in enumerate([*counts, *side])
        ]
        groups = [parts[: len(counts)], *([p] for p in parts[len(counts) :])]
        sampler = TrainBatches(groups, Cut(rank, world, accumulate), first, steps)
        found.append(list(sampler))
        assert len(sampler) == len(found[-1]) == (steps - first) * accumulate
    return found


@given(
    st.lists(st.integers(0, 24), min_size=1, max_size=3),
    st.sampled_from([(2, 1), (1, 2), (2, 2), (3, 1), (4, 3)]),
)
def test_steps_are_the_same_on_any_devices(counts, devices):
    world, accumulate = devices
    counts[0] += -sum(counts) % 12
    side = [12]
    (whole,) = batches(1, 1, counts, side)
    parts = batches(world, accumulate, counts, side)
    for step, draws in enumerate(whole):
        cut = [d for m in range(accumulate) for r in range(world) for d in parts[r][step * accumulate + m]]
        assert Counter(cut) == Counter(draws)
        total = sum(counts)
        mine = [d for d in draws if d.pool < len(counts)]
        assert [d for d in cut if d.pool < len(counts)] == mine and len(mine) == total
    assert {len(b) for rank in parts for b in rank} == {(sum(counts) + 12) // world // accumulate}


@given(st.integers(0, 6), st.integers(1, 7))
def test_resume_is_the_tail(first, cut_at):
    """Beginning within a segment, or at a later segment, gives what an uninterrupted run saw."""
    (whole,) = batches(1, 2, [5, 3], [4], steps=8)
    (rest,) = batches(1, 2, [5, 3], [4], first=first, steps=8)
    assert rest == whole[first * 2 :]
    (later,) = batches(1, 2, [5, 3], [4], begin=cut_at, steps=8 - cut_at)
    assert later == whole[cut_at * 2 :]


def test_batches_straddle_epochs():
    (found,) = batches(1, 1, [8], [], steps=18 * 2, sizes=(5, 6, 7))
    draws = [d for b in found for d in b]
    for epoch in range(16):
        assert sorted(d.sample for d in draws if d.epoch == epoch) == list(range(18))
    assert {d.epoch for d in found[2]} == {0, 1}


@given(st.integers(1, 40), st.integers(1, 7), st.integers(1, 4))
def test_a_pass_sees_every_sample_once(size, rows, world):
    samples = np.arange(100, 100 + size)
    ranks = [list(PassBatches(samples, rows, r, world)) for r in range(world)]
    assert (
        len({len(r) for r in ranks})
        == 1
        == len({len(PassBatches(samples, rows, r, world)) - len(ranks[r]) for r in range(world)})
    )
    assert [[len(b) for b in r] for r in ranks] == [[len(b) for b in ranks[0]]] * world
    in_order = [d for i in range(len(ranks[0])) for r in ranks for d in r[i]]
    assert [d.sample for d in in_order if d.valid] == list(samples)
    assert sum(not d.valid for d in in_order) < world


def test_choice_is_fixed_and_ascending():
    order = Order([100], derive(0, "x"), 1)
    few, more = choose(100, 10, order), choose(100, 20, order)
    assert list(few) == sorted(few) and len(set(few)) == 10
    assert set(few) < set(more)
    assert list(choose(100, 200, order)) == list(range(100))
    assert Draw(0, 0, 1).valid
