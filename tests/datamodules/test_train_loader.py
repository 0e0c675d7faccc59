import random
import tarfile
import threading
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from mmcl.datamodules import OWN, write_shard
from mmcl.errors import ConfigError, RunError
from mmcl.stream import Budget, Source


@pytest.fixture
def mixture(make_source):
    return [
        make_source((9, 9), "pretraining", "p", share=0.25),
        make_source((7,), "reference", "r", role="side", batch_size=4),
        make_source((11,), "replay", "b", share=0.25),
    ]


def test_a_batch(make_data, make_source, mixture, draw_batches):
    data = make_data(make_source((10, 10)), accumulate=2)
    first, second, *_ = draw_batches(data, mixture)
    assert set(first) == {
        "image",
        "text",
        "labels",
        "domain",
        "valid",
        "noise",
        "__key__",
        "__index__",
        "side",
    }
    assert first["image"].shape == (4, 3, 4, 4)
    assert first["text"].shape == (4, 2)
    assert first["labels"].dtype == first["domain"].dtype == first["__index__"].dtype == torch.long
    assert first["valid"].tolist() == [True] * 4
    assert first["domain"].tolist() == [0] * 4
    assert Counter(k[0] for k in first["__key__"]) == {"s": 2, "p": 1, "b": 1}
    assert first["side"]["reference"]["image"].shape == (2, 3, 4, 4)
    assert "side" not in first["side"]["reference"]
    for batch in (first, second):
        numbers = [int(k[1:]) for k in batch["__key__"]]
        assert batch["text"][:, 1].tolist() == numbers
        assert batch["labels"].tolist() == [n % 4 for n in numbers]
        assert batch["__index__"].tolist() == [n for n in numbers]


def test_plan(make_data, make_source, mixture):
    data = make_data(make_source((10, 10)), batch_size=8, budget=Budget(epochs=2))
    plan = data.plan(data.stream.tasks[0], mixture)
    assert (plan.own_per_batch, plan.counts, plan.side) == (4, {"pretraining": 2, "replay": 2}, {"reference": 4})
    assert plan.steps == 10 and plan.batch_size == 8 and plan.own_samples == 20
    assert data.advance({"replay": 1, "gone": 5}, plan, 3) == {
        OWN: 12,
        "pretraining": 6,
        "replay": 7,
        "reference": 12,
        "gone": 5,
    }
    tokens = make_data(make_source((10,), prefix="q"), budget=Budget(tokens=100))
    tokens.bind(lambda sample, augment: sample, seed=0, sample_tokens=5)
    assert tokens.plan(tokens.stream.tasks[0]).steps == 3


def test_the_published_split(make_data, make_source, mixture):
    """FoMo-in-Flux: 512 samples in 0.33 pretraining, 0.34 update, 0.33 buffer are 169, 175, 168."""
    data = make_data(make_source((600,)), batch_size=512)
    (task,) = data.stream.tasks
    pretraining, _, replay = mixture
    plan = data.plan(task, [replace(pretraining, share=0.33), replace(replay, share=0.33)])
    assert (plan.counts, plan.own_per_batch) == ({"pretraining": 169, "replay": 168}, 175)
    plan = data.plan(task, [replace(pretraining, share=0.495)])
    assert (plan.counts, plan.own_per_batch) == ({"pretraining": 253}, 259)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ([{"share": 0.6}, {"share": 0.5}], "above 1: a 0.6 \\+ b 0.5 = 1.1"),
        ([{"share": 0.5}, {"share": 0.5, "name": "a"}], "two extra sources have this name"),
        ([{"share": 0.5, "name": "own"}, {"share": 0.1}], "stands for the task's own data"),
        ([{"share": 0.05}], "share 0.05 of batch size 8 is no sample"),
        ([{}, {"share": 0.5}], "needs a `share`"),
        ([{"role": "side", "batch_size": 3}, {"share": 0.5}], "side source 'a' \\(3\\) does not divide"),
        ([{"share": 0.5}, {"share": 0.5}], "none"),
    ],
)
def test_plans_that_cannot_be(make_data, make_source, change, message):
    data = make_data(make_source((10,)), world_size=2, budget=Budget(epochs=1))
    extra = [make_source((5,), **{"name": n, "prefix": n, **c}) for n, c in zip("ab", change, strict=False)]
    with pytest.raises(ConfigError, match=message):
        data.plan(data.stream.tasks[0], extra)


MANY_WORKERS = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@MANY_WORKERS
def test_workers_change_nothing(make_data, make_source, mixture, draw_batches, same):
    train = make_source((10, 10))
    found = [draw_batches(make_data(train, workers=w), mixture, steps=7) for w in (0, 1, 2, 3)]
    assert len(found[0]) == 7
    assert all(same(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@MANY_WORKERS
def test_one_shard_serves_eight_workers(make_data, make_source, draw_batches, same):
    alone, many = (draw_batches(make_data(make_source((16,)), batch_size=4, workers=w), steps=10) for w in (0, 8))
    assert len(many) == 10 and all(same(a, b) for a, b in zip(alone, many, strict=True))


@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (1, 2), (2, 2)])
def test_devices_change_nothing(make_data, make_source, mixture, draw_batches, world, accumulate):
    train = make_source((10, 10))
    whole = draw_batches(make_data(train), mixture, steps=6)
    parts = [
        draw_batches(make_data(train, rank=r, world_size=world, accumulate=accumulate), mixture, steps=6)
        for r in range(world)
    ]
    for step, batch in enumerate(whole):
        cut = [parts[r][step * accumulate + a] for a in range(accumulate) for r in range(world)]
        for key in ("image", "text", "labels", "__index__", "noise"):
            assert torch.equal(torch.cat([c[key] for c in cut]), batch[key])
            side = [c["side"]["reference"][key] for c in cut]
            assert torch.equal(torch.cat(side), batch["side"]["reference"][key])


def test_resume_and_segments(make_data, make_source, mixture, draw_batches, same):
    data = make_data(make_source((10, 10)), accumulate=2)
    (task,) = data.stream.tasks
    whole = draw_batches(data, mixture, steps=9)
    tail = draw_batches(data, mixture, steps=9, first_step=4)
    assert all(same(a, b) for a, b in zip(whole[8:], tail, strict=True))
    positions = data.advance({}, data.plan(task, mixture), 6)
    later = draw_batches(data, mixture, steps=3, first_step=1, positions=positions, segment=1)
    assert all(same(a, b) for a, b in zip(whole[14:], later, strict=True))
    assert draw_batches(data, mixture, steps=9, first_step=9) == []
    with pytest.raises(ConfigError, match="segment 2: cannot begin at step 4 of 3"):
        draw_batches(data, mixture, steps=3, first_step=4, segment=2)


def test_augmentation_is_random_over_epochs_and_leaves_the_random_state(make_data, make_source, draw_batches):
    train = make_source((10,))
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    batches = draw_batches(make_data(train, batch_size=5), steps=4)
    assert states[0] == random.getstate()
    assert states[1] == np.random.get_state()[1].tolist()
    assert torch.equal(states[2], torch.get_rng_state())
    images = {}
    for batch in batches:
        for index, image in zip(batch["__index__"].tolist(), batch["image"], strict=True):
            images.setdefault(index, []).append(image)
    assert all(len(seen) == 2 and not torch.equal(*seen) for seen in images.values())
    plain = draw_batches(make_data(make_source((10,), prefix="q", augment=False), batch_size=5), steps=1)
    assert torch.equal(plain[0]["image"], plain[0]["image"].round())
    other = draw_batches(make_data(train, batch_size=5, seed=1), steps=4)
    assert [b["__index__"].tolist() for b in other] != [b["__index__"].tolist() for b in batches]


def test_ordered_sources(make_data, make_source, draw_batches):
    batches = draw_batches(make_data(make_source((5, 6, 7), ordered=True), batch_size=9), steps=4)
    assert torch.cat([b["__index__"] for b in batches]).tolist() == [*range(18), *range(18)]


def test_own_data_of_several_sources(make_data, make_source, draw_batches):
    train = [make_source((5, 6), "a", "a"), make_source((7,), "b", "b", augment=False)]
    data = make_data(train, batch_size=9)
    batches = draw_batches(data, steps=2)
    assert torch.cat([b["__index__"] for b in batches]).sort().values.tolist() == list(range(18))
    for batch in batches:
        plain = [torch.equal(i, i.round()) for i in batch["image"]]
        assert plain == [k[0] == "b" for k in batch["__key__"]]


def test_rows_without_labels(make_data, make_source, make_samples, draw_batches, tmp_path):
    pairs = [{k: v for k, v in s.items() if k != "cls"} for s in make_samples(6, prefix="w")]
    write_shard(tmp_path / "pairs.tar", pairs)
    web = Source([str(tmp_path / "pairs.tar")], name="web", share=0.5)
    (batch,) = draw_batches(make_data(make_source((8,))), [web], steps=1)
    assert [label == -100 for label in batch["labels"]] == [k[0] == "w" for k in batch["__key__"]]
    (batch,) = draw_batches(make_data(Source(web.shards), batch_size=4), steps=1)
    assert "labels" not in batch


@pytest.fixture
def broken(tmp_path, make_samples):
    """Twelve samples, of which 3 and 4 are no pictures."""
    samples = make_samples(12)
    for bad in (3, 4):
        samples[bad]["png"] = b"\x89PNG no picture"
    write_shard(tmp_path / "broken.tar", samples)
    return Source([str(tmp_path / "broken.tar")])


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_samples_are_replaced_and_counted(make_data, broken, draw_batches, caplog, workers):
    data = make_data(broken, batch_size=6, max_bad=0.5, workers=workers)
    batches = draw_batches(data, steps=4)
    drawn = Counter(torch.cat([b["__index__"] for b in batches]).tolist())
    assert drawn == {i: 6 if i == 5 else 2 for i in range(12) if i not in (3, 4)}
    assert all(b["valid"].all() and not any(k.startswith("__bad") for k in b) for b in batches)
    assert data.bad.count == 4
    assert sorted(data.bad.names.values()) == [2, 4]  # 3 is followed by 4, which is bad too
    assert caplog.text.count("replaced by the next sample") == 2
    assert "sample 's00003' in shard" in caplog.text and "broken.tar" in caplog.text


def test_replacing_does_not_move_the_others(make_data, broken, make_source, draw_batches):
    good = draw_batches(make_data(make_source((12,)), batch_size=6), steps=2)
    bad = draw_batches(make_data(broken, batch_size=6, max_bad=1.0), steps=2)
    for a, b in zip(good, bad, strict=True):
        pairs = zip(a["__index__"].tolist(), b["__index__"].tolist(), strict=True)
        assert all(x == y or (x in (3, 4) and y == 5) for x, y in pairs)


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_bad_samples_stop(make_data, broken, draw_batches, workers):
    with pytest.raises(RunError, match=r"draws could not be decoded, more than max_bad = 0\.01") as error:
        draw_batches(make_data(broken, batch_size=6, max_bad=0.01, workers=workers), steps=4)
    assert "\n" not in str(error.value)


def test_nothing_but_bad_samples(make_data, make_samples, draw_batches, tmp_path):
    write_shard(tmp_path / "b.tar", [{**s, "png": b"x"} for s in make_samples(4)])
    with pytest.raises(RunError, match="4 samples in a row"):
        draw_batches(make_data(Source([str(tmp_path / "b.tar")]), batch_size=2, max_bad=1.0), steps=1)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_is_cut_while_in_use(make_data, make_source, draw_batches, workers):
    train = make_source((10,))
    data = make_data(train, workers=workers)
    data.check()
    with open(train.shards[0], "r+b") as file:
        file.truncate(5000)
    with pytest.raises(RunError, match="it was cut while in use") as error:
        draw_batches(data)
    assert "\n" not in str(error.value)


def test_bytes_that_change_after_indexing_are_named(make_data, make_source, draw_batches, caplog):
    train = make_source((10,))
    data = make_data(train, max_bad=1.0)
    data.check()
    with tarfile.open(train.shards[0]) as tar:
        offset = tar.getmember("s00002.png").offset_data
    with open(train.shards[0], "r+b") as file:
        file.seek(offset)
        file.write(b"oops")
    draw_batches(data)
    assert "changed after the shard was indexed" in caplog.text


def test_abandoned_loaders_leave_no_threads(make_data, make_source):
    before = threading.active_count()
    data = make_data(make_source((10,)), workers=1)
    loader = data.train_loader(data.stream.tasks[0], positions={}, segment=0, first_step=0, steps=50)
    next(iter(loader))
    assert len(loader) == 50
    del loader
    assert threading.active_count() <= before + 1


def test_samples_of_one_batch_need_equal_fields(make_data, make_source, make_samples, draw_batches, tmp_path):
    write_shard(tmp_path / "p.tar", [{k: v for k, v in s.items() if k != "txt"} for s in make_samples(6, prefix="w")])
    bare = Source([str(tmp_path / "p.tar")], name="bare", share=0.5)
    with pytest.raises(RunError, match="share a batch, but one lacks text"):
        draw_batches(make_data(make_source((8,))), [bare])
