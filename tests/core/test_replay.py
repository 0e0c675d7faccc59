"""The memory of earlier tasks."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch

from mmcl import Budget, Source, Task
from mmcl.errors import ConfigError
from mmcl.replay import ReplayBuffer, unfilled
from mmcl.stream import JoinedSource, TaskSamples


def samples(task: str, count: int, classes: int = 2) -> TaskSamples:
    return TaskSamples(
        [i % 2 for i in range(count)], [f"{task}-{i}" for i in range(count)], [i % classes for i in range(count)]
    )


def keys(buffer: ReplayBuffer) -> set[str]:
    return {sample.key for kept in buffer.kept.values() for sample in kept}


def test_a_reservoir_keeps_every_sample_with_the_same_chance() -> None:
    """Over 400 seeds each of 40 samples of three tasks stays about 400 x 10 / 40 times."""
    times: Counter[str] = Counter()
    for seed in range(400):
        buffer = ReplayBuffer(10, seed=seed)
        for task, count in (("a", 20), ("b", 5), ("c", 15)):
            buffer.add(task, samples(task, count))
        assert len(keys(buffer)) == 10
        times.update(keys(buffer))
    assert len(times) == 40
    assert all(60 < n < 145 for n in times.values())  # 5 standard deviations


def test_a_reservoir_does_not_depend_on_what_it_forgot() -> None:
    grown, whole = ReplayBuffer(6, seed=3), ReplayBuffer(1000, seed=3)
    for buffer in (grown, whole):
        for task in "abc":
            buffer.add(task, samples(task, 10))
    ranked = sorted(
        ((whole._hash(task, s), s.key) for task, kept in whole.kept.items() for s in kept),
    )
    assert keys(grown) == {key for _, key in ranked[:6]}


def test_classes_share_the_memory_evenly() -> None:
    buffer = ReplayBuffer(12, "class_balanced")
    buffer.add("a", samples("a", 40, classes=4))
    assert Counter(s.label for s in buffer.kept["a"]) == {0: 3, 1: 3, 2: 3, 3: 3}
    buffer.add("b", samples("b", 10, classes=2))
    assert Counter((t, s.label) for t, kept in buffer.kept.items() for s in kept) == {
        **{("a", c): 2 for c in range(4)},
        **{("b", c): 2 for c in range(2)},
    }
    with pytest.raises(ConfigError, match="needs labels"):
        buffer.add("c", TaskSamples([0], ["x"], None))


@pytest.mark.parametrize("rule", ["herding", "k_means"])
def test_exemplars_share_by_size_and_old_ones_are_cut(rule: str) -> None:
    torch.manual_seed(0)
    buffer = ReplayBuffer(12, rule)  # type: ignore[arg-type]
    buffer.add("a", samples("a", 30), torch.randn(30, 4))
    before = list(buffer.kept["a"])
    buffer.add("b", samples("b", 10), torch.randn(10, 4))
    assert [len(kept) for kept in buffer.kept.values()] == [9, 3]
    assert buffer.kept["a"] == before[:9]
    if rule == "herding":
        assert abs(sum(1 if s.label else -1 for s in buffer.kept["a"])) <= 1  # classes in turn


def test_the_source_joins_tasks_and_survives_a_checkpoint() -> None:
    tasks = [
        Task(name, [Source([f"{name}-{i}.tar"], name=f"{name}{i}", labels={5: i}) for i in range(2)], Budget(steps=1))
        for name in "ab"
    ]
    buffer = ReplayBuffer(8)
    assert buffer.source(tasks, "replay") is None
    for task in tasks:
        buffer.add(task.name, samples(task.name, 10))
    again = ReplayBuffer(8)
    again.load(json.loads(json.dumps(buffer.state())))
    assert again == buffer
    source = again.source(tasks, "replay", share=0.5)
    assert isinstance(source, JoinedSource) and source.share == 0.5
    assert {key for part in source.all for key in part.keys or ()} == keys(buffer)
    for part in source.all:
        assert part.task is not None and part.name == "replay"
        assert all(key.startswith(part.task) for key in part.keys or ())
        own = next(t for t in tasks if t.name == part.task)
        assert part.labels in [s.labels for s in own.train if list(s.shards) == list(part.shards)]


def test_data_that_are_drawn_as_one_are_kept_part_by_part() -> None:
    """`TaskSamples` numbers the parts of a joined source, and so does the memory."""
    part = Source(["a-1.tar"], name="a1")
    task = Task("a", [JoinedSource(["a-0.tar"], name="a0", parts=[part])], Budget(steps=1))
    buffer = ReplayBuffer(8)
    buffer.add("a", samples("a", 8))
    source = buffer.source([task], "replay", share=0.5)
    assert source is not None
    found = {tuple(own.shards): sorted(own.keys or ()) for own in source.all}
    assert found == {
        ("a-0.tar",): ["a-0", "a-2", "a-4", "a-6"],
        ("a-1.tar",): ["a-1", "a-3", "a-5", "a-7"],
    }
    (whole,) = unfilled([task], "replay", share=0.5)
    assert [list(own.shards) for own in whole.all] == [["a-0.tar"], ["a-1.tar"]]


@pytest.mark.parametrize(
    ("size", "rule", "message"), [(0, "reservoir", "1 or more"), (5, "herdin", "did you mean herding")]
)
def test_bad_settings(size: int, rule: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ReplayBuffer(size, rule)  # type: ignore[arg-type]
