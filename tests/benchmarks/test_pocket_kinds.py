"""The class-incremental stream of kinds of emoji, and the stream that pocket-vit was made by."""

from __future__ import annotations

import pytest

from mmcl.benchmarks.pocket.concepts import STREAM_STYLE, concepts
from mmcl.benchmarks.pocket.kinds import KINDS, LEFT_OUT, pocket_kinds, pocket_names
from mmcl.datamodules.reader import SourceReader
from mmcl.errors import ConfigError


def test_kinds_come_once_and_halves_stay_apart() -> None:
    stream = pocket_kinds(seed=3)
    names = [name for task in stream.tasks for name in task.class_names or ()]
    assert len(stream.tasks) == 10 and len(names) == len(set(names)) == KINDS and LEFT_OUT not in names
    kind_of = {f"{STREAM_STYLE}-{r['hexcode']}": r["kind"] for records in concepts().values() for r in records}
    trained: set[str] = set()
    for task in stream.tasks:
        for reader in map(SourceReader, task.train):
            labels = reader.labels()
            assert labels is not None
            for i, label in enumerate(labels.tolist()):
                key = reader.read(i)["__key__"]
                assert kind_of[key] == (task.class_names or ())[label]
                trained.add(key)
    for column in stream.evals:
        measured = {reader.read(i)["__key__"] for reader in map(SourceReader, column.source.all) for i in range(5)}
        assert measured and not measured & trained
        assert {kind_of[key] for key in measured} <= set(column.class_names or ())


def test_the_seed_draws_the_order() -> None:
    first, second = (pocket_kinds(seed=seed).tasks[0].class_names for seed in (0, 1))
    assert first != second and first == pocket_kinds(seed=0).tasks[0].class_names
    assert len(pocket_kinds(classes_per_task=20).tasks) == 3
    with pytest.raises(ConfigError, match="classes_per_task is 51; take 1 to 50"):
        pocket_kinds(classes_per_task=51)


def test_names_are_trained_in_two_styles_and_measured_in_the_third() -> None:
    stream = pocket_names()
    (task,), (column,) = stream.tasks, stream.evals
    assert task.class_names == column.class_names and len(task.class_names or ()) == len(set(task.class_names or ()))
    seen = [label for reader in map(SourceReader, task.train) for label in (reader.labels() if reader else ())]
    assert set(seen) == set(range(len(task.class_names or ())))
    assert all(STREAM_STYLE not in shard for source in task.train for shard in source.shards)
