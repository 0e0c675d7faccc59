"""The streams of classes and of towers on the fetched pictures, where they are; the emoji part everywhere."""

from __future__ import annotations

import pytest

from mmcl import assets
from mmcl.benchmarks.pocket_classes import CLASSES, pocket_classes
from mmcl.benchmarks.pocket_towers import STYLES, pocket_towers
from mmcl.datamodules.reader import SourceReader
from mmcl.errors import ConfigError


def fetched(*names: str) -> pytest.MarkDecorator:
    lacking = [name for name in names if not assets.here(assets.find(name))]
    return pytest.mark.skipif(bool(lacking), reason=f"mmcl data get {' '.join(lacking)}")


@fetched("fashion-mnist")
def test_classes_come_two_at_a_time() -> None:
    stream = pocket_classes(test=10)
    assert [name for task in stream.tasks for name in task.class_names or ()] == list(CLASSES["fashion-mnist"])
    for task, column in zip(stream.tasks, stream.evals, strict=True):
        (source,) = task.train
        assert len(SourceReader(source)) == 12_000
        labels = SourceReader(column.source).labels()
        assert labels is not None and sorted(labels.tolist()) == [0] * 10 + [1] * 10
        assert task.evaluates == column.name and task.class_names == column.class_names
    assert len(pocket_classes(classes_per_task=4).tasks) == 3


@fetched("fashion-mnist", "mnist")
def test_digits_come_after_clothes() -> None:
    stream = pocket_classes(test=10, sets=["fashion-mnist", "mnist"])
    assert [name for task in stream.tasks for name in task.class_names or ()] == [
        n for s in CLASSES.values() for n in s
    ]
    assert stream.tasks[5].name == "digit 0 + digit 1" and "and then MNIST's ten digits" in stream.protocol
    assert len(SourceReader(stream.tasks[5].train[0])) == 5923 + 6742
    few = pocket_classes(test=10, sets=["fashion-mnist", "mnist"], train=5421)
    labels = SourceReader(few.tasks[7].train[0]).labels()  # the five is the rarest digit
    assert labels is not None and sorted(labels.tolist()) == [0] * 5421 + [1] * 5421
    assert "the first 5421 training pictures of each" in few.protocol


def test_numbers_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="the test set of fashion-mnist has 1 to 1000 pictures of each class"):
        pocket_classes(test=1001)
    with pytest.raises(ConfigError, match="train is 5422; the train set of mnist has 1 to 5421"):
        pocket_classes(sets=["mnist"], train=5422)
    with pytest.raises(ConfigError, match=r"'nist' is no data set of it; did you mean mnist\?"):
        pocket_classes(sets=["nist"])
    with pytest.raises(ConfigError, match="name each set once"):
        pocket_classes(sets=["mnist", "mnist"])
    with pytest.raises(ConfigError, match="classes_per_task is 11"):
        pocket_classes(classes_per_task=11)
    with pytest.raises(ConfigError, match=r"'googel' is no domain; did you mean google\?"):
        pocket_towers(domains=["googel"])
    with pytest.raises(ConfigError, match=r"'google' has .* test captions that differ, not 9999"):
        pocket_towers(domains=["google"], test=9999)


def test_no_emoji_of_a_column_is_trained_in_any_style() -> None:
    stream = pocket_towers(seed=3, domains=STYLES, test=50)
    trained = {key.split("-", 1)[1] for task in stream.tasks for key in task.train[0].keys or ()}
    for column in stream.evals:
        reader = SourceReader(column.source)
        rows = [reader.read(i) for i in range(len(reader))]
        assert len(rows) == 50 and trained.isdisjoint(row["__key__"].split("-", 1)[1] for row in rows)
        assert len({row["text"] for row in rows}) > 48  # one caption is one concept; phrasings differ by picture
    other = pocket_towers(seed=4, domains=STYLES, test=50)
    assert stream.evals[0].source.keys != other.evals[0].source.keys


@fetched("clip-art", "tux-paint")
def test_captions_of_a_column_differ() -> None:
    for column in pocket_towers(test=80).evals[3:]:
        reader = SourceReader(column.source)
        captions = [reader.read(i)["text"] for i in range(len(reader))]
        assert len(captions) == len(set(captions)) == 80
