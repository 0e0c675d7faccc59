"""Rows of different lengths, rows that a module cannot use, and sources that a task mixes in."""

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mmcl.collate import collate
from mmcl.datamodules import StreamDataModule
from mmcl.errors import ConfigError, RunError, SampleError
from mmcl.outputs import SKIP, draws_to_augment, takes_pixels
from mmcl.stream import Stream


def row(key, length, width=None):
    shape = (length,) if width is None else (length, width)
    return {"__key__": key, "audio": torch.ones(shape)}


def test_rows_of_different_lengths_are_filled_up():
    batch = collate([row("a", 3), row("b", 5)], {"audio": -1.0, "tokens": 0})
    assert batch["audio"].shape == (2, 5) and batch["audio_lengths"].tolist() == [3, 5]
    assert batch["audio"][0].tolist() == [1, 1, 1, -1, -1]
    assert collate([row("a", 3, 2), row("b", 1, 2)], {"audio": 0.0})["audio"].shape == (2, 3, 2)
    with pytest.raises(RunError, match=r"'audio' of sample 'b' is \(5,\), but \(3,\)"):
        collate([row("a", 3), row("b", 5)])
    with pytest.raises(RunError, match="only lengths may differ"):
        collate([row("a", 3, 2), row("b", 3, 4)], {"audio": 0.0})


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([1, 2.5], torch.float32),
        ([2.5, 1], torch.float32),
        ([1, 2], torch.long),
        ([True, 2], torch.long),
        ([True, False], torch.bool),
    ],
)
def test_numbers_keep_their_values(values, dtype):
    """As of a `json` field, whose first value may be whole where others are not."""
    found = collate([{"__key__": str(i), "x": value} for i, value in enumerate(values)])["x"]
    assert found.tolist() == values and found.dtype == dtype


def test_numbers_beside_other_things_are_a_list():
    assert collate([{"__key__": "a", "x": 1.5}, {"__key__": "b", "x": None}])["x"] == [1.5, None]


def picky(sample, augment):
    """Uses no sample whose number ends in 3, and trains on none whose number ends in 5."""
    number = int(sample["__key__"][1:])
    if number % 10 == 3:
        raise SampleError("it ends in 3")
    return {"number": number} | ({SKIP: "it ends in 5"} if number % 10 == 5 else {})


def bound(source, evals=(), **options):
    from mmcl.stream import Budget, EvalSet, Task

    task = Task("t", [source], Budget(steps=3))
    data = StreamDataModule(Stream("s", [task], [EvalSet("e", s) for s in evals]), batch_size=4, **options)
    data.bind(picky, seed=0)
    return data, task


def test_transforms_that_take_pixels_get_them(make_source):
    def kinds(sample, augment):
        image = sample["image"]
        assert isinstance(image, Image.Image | np.ndarray)
        return {"array": isinstance(image, np.ndarray), "sum": int(np.array(image).sum())}

    source, found = make_source((6,)), {}
    for mark in (lambda transform: transform, takes_pixels):
        data, _ = bound(source)
        data.bind(mark(lambda sample, augment: kinds(sample, augment)), seed=0)
        (batch,) = data.eval_loader(source)
        (array,) = set(batch["array"].tolist())
        found[array] = batch["sum"].tolist()
    assert found[False] == found[True]


def test_generators_are_seeded_wherever_something_may_draw(make_source):
    def seeds(sample, augment):
        return {"seed": str(torch.initial_seed()), "drawn": random.random() + np.random.rand() + float(torch.rand(()))}

    def own(samples):
        return collate(samples)

    source, found = make_source((6,)), {}
    for marked in (False, True):
        for stacked in (collate, own):
            transform = (draws_to_augment if marked else lambda same: same)(
                lambda sample, augment: seeds(sample, augment)
            )
            data, task = bound(source, max_bad=0.0)
            data.bind(transform, seed=0, collate=stacked)
            before = random.getstate(), torch.get_rng_state().tolist()
            (batch,) = data.eval_loader(source)
            found[marked, stacked] = batch["seed"]
            seeded = not marked or stacked is own
            assert len(set(found[marked, stacked])) == (6 if seeded else 1)
            assert ((random.getstate(), torch.get_rng_state().tolist()) == before) == seeded
            drawn = [batch["drawn"].tolist() for batch in data.pass_loader(task, augment=True)]
            assert drawn == found.setdefault("drawn", drawn)  # augmentation is the same, marked or not
    assert found[False, collate] == found[False, own] == found[True, own]


def test_training_replaces_what_the_module_cannot_use(make_source):
    data, task = bound(make_source((12,), ordered=True), max_bad=0.5)
    batches = list(data.train_loader(task, positions={}, segment=0, first_step=0, steps=3))
    assert [b["number"].tolist() for b in batches] == [[0, 1, 2, 4], [4, 6, 6, 7], [8, 9, 10, 11]]
    assert SKIP not in batches[0]
    assert data.bad.count == 2
    assert any("s00003" in name and "it ends in 3" in name for name in data.bad.names)
    assert any("s00005" in name and "it ends in 5" in name for name in data.bad.names)


def test_evaluation_keeps_what_training_skips_and_stops_at_what_cannot_be_used(make_source):
    source = make_source((12,))
    data, _ = bound(source, evals=[replace(source, keys=["s00004", "s00005", "s00006"])])
    (batch,) = data.eval_loader(data.stream.evals[0].source)
    assert batch["number"].tolist() == [4, 5, 6]
    with pytest.raises(RunError, match=r"s00003.*it ends in 3.*cannot leave samples out"):
        list(data.eval_loader(source))


def test_a_task_mixes_other_sources_in(make_source, make_data):
    data = make_data(make_source((10,)), steps=4)
    task = replace(data.stream.tasks[0], mix=[make_source((7,), "old", "p", share=0.25)])
    data.stream = Stream("s", [task])
    data.check()
    plan = data.plan(task, task.mix)
    assert (plan.own_per_batch, plan.counts) == (6, {"old": 2})
    for batch in data.train_loader(task, task.mix, positions={}, segment=0, first_step=0, steps=4):
        assert Counter(key[0] for key in batch["__key__"]) == {"s": 6, "p": 2}
    with pytest.raises(ConfigError, match="each source of `mix` needs a `share`"):
        replace(task, mix=[make_source((3,), "other", "o")])
