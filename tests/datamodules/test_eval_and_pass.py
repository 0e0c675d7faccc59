import numpy as np
import pytest
import torch

from mmcl.datamodules import write_shard
from mmcl.errors import ConfigError, RunError
from mmcl.stream import Source


def ranks(make_data, train, world, loader, **options):
    return [list(loader(make_data(train, rank=r, world_size=world, batch_size=12, **options))) for r in range(world)]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 1])
def test_every_sample_once(make_data, make_source, world, workers):
    source = make_source((10, 0 + 13))
    found = ranks(
        make_data, source, world, lambda d: d.eval_loader(source), eval_batch_size=4, workers=workers, seed=world
    )
    assert len({len(batches) for batches in found}) == 1
    for batches in zip(*found, strict=True):
        assert len({len(b["__key__"]) for b in batches}) == 1
    in_order = [batch for step in zip(*found, strict=True) for batch in step]
    valid = torch.cat([b["valid"] for b in in_order])
    assert torch.cat([b["__index__"] for b in in_order])[valid].tolist() == list(range(23))
    images = torch.cat([b["image"] for b in in_order])[valid]
    assert images[:, 0, 1, 1].tolist() == list(range(23))
    assert {int(d) for b in in_order for d in b["domain"]} == {-1}


def test_more_ranks_than_samples(make_data, make_source):
    source = make_source((12,))
    few = Source(source.shards, keys=["s00003"])
    found = ranks(make_data, source, 3, lambda d: d.eval_loader(few))
    assert [[b["valid"].tolist() for b in r] for r in found] == [[[True]], [[False]], [[False]]]


def test_a_fixed_choice(make_data, make_source):
    source = make_source((30,))
    data = make_data(source, seed=0)

    def chosen(data, **options):
        return torch.cat([b["__index__"] for b in data.eval_loader(source, **options)]).tolist()

    few = chosen(data, limit=7)
    assert few == sorted(few) and len(set(few)) == 7
    assert chosen(make_data(source, seed=1, eval_batch_size=2), limit=7) == few
    assert chosen(data, limit=7, seed=1) != few
    assert chosen(data, limit=99) == list(range(30))


@pytest.fixture
def captioned(tmp_path, make_samples):
    """Sample i has 1 + i % 3 captions."""
    samples = []
    for i, sample in enumerate(make_samples(9)):
        texts = [f"picture {j} {10 * i + j}" for j in range(1 + i % 3)]
        samples.append({"__key__": sample["__key__"], "png": sample["png"], "json": {"captions": texts}})
    write_shard(tmp_path / "captions.tar", samples)
    return Source([str(tmp_path / "captions.tar")])


def test_all_captions_in_evaluation(make_data, captioned):
    data = make_data(captioned, eval_batch_size=6)
    first, second = data.eval_loader(captioned)
    assert first["image"].shape[0] == 6 and second["image"].shape[0] == 3
    assert first["text"].shape == (12, 2)
    assert first["text_rows"].tolist() == [0, 1, 1, 2, 2, 2, 3, 4, 4, 5, 5, 5]
    assert second["text"][:, 1].tolist() == [60, 70, 71, 80, 81, 82]
    assert list(data.captions(captioned))[:3] == ["picture 0 0", "picture 0 10", "picture 1 11"]


def test_one_caption_in_training(make_data, captioned, draw_batches, same):
    batches = draw_batches(make_data(captioned, batch_size=9), steps=40)
    chosen = {}
    for batch in batches:
        assert batch["text"].shape == (9, 2) and "text_rows" not in batch
        for index, text in zip(batch["__index__"].tolist(), batch["text"][:, 1].tolist(), strict=True):
            assert text // 10 == index
            chosen.setdefault(index, set()).add(text % 10)
    assert chosen == {i: set(range(1 + i % 3)) for i in range(9)}
    again = draw_batches(make_data(captioned, batch_size=9), steps=40)
    assert all(same(a, b) for a, b in zip(batches, again, strict=True))


def test_pass_over_a_task(make_data, make_source):
    train = [make_source((5, 6), "a", "a"), make_source((8,), "b", "b")]
    for world in (1, 2, 3):
        found = ranks(make_data, train, world, lambda d: d.pass_loader(d.stream.tasks[0], batch_size=6))
        in_order = [batch for step in zip(*found, strict=True) for batch in step]
        valid = torch.cat([b["valid"] for b in in_order])
        assert torch.cat([b["__index__"] for b in in_order])[valid].tolist() == list(range(19))
        assert sum(len(b["__key__"]) for b in found[0]) * world == len(valid)
        assert {int(d) for b in in_order for d in b["domain"]} == {0}
    with pytest.raises(ConfigError, match="batches of 7 does not divide by 2 processes"):
        make_data(train, world_size=2).pass_loader(data_task(make_data(train)), batch_size=7)


def data_task(data):
    return data.stream.tasks[0]


def test_pass_is_repeatable_and_augments_on_demand(make_data, make_source, same):
    data = make_data(make_source((20,)), accumulate=2)
    (task,) = data.stream.tasks
    plain, augmented = list(data.pass_loader(task)), list(data.pass_loader(task, augment=True))
    assert [len(b["__key__"]) for b in plain] == [4] * 5
    assert all(same(a, b) for a, b in zip(augmented, data.pass_loader(task, augment=True), strict=True))
    assert torch.equal(plain[0]["image"], plain[0]["image"].round())
    assert not torch.equal(augmented[0]["image"], augmented[0]["image"].round())
    assert sum(len(b["__key__"]) for b in data.pass_loader(task, limit=6)) == 6


@pytest.fixture
def broken(tmp_path, make_samples):
    samples = make_samples(12)
    samples[3]["png"] = b"no picture"
    write_shard(tmp_path / "broken.tar", samples)
    return Source([str(tmp_path / "broken.tar")])


@pytest.mark.parametrize("workers", [0, 1])
def test_an_evaluation_stops_at_a_bad_sample(make_data, broken, workers):
    data = make_data(broken, workers=workers)
    with pytest.raises(RunError) as error:
        list(data.eval_loader(broken))
    message = str(error.value)
    assert "sample 's00003'" in message and "broken.tar" in message and "\n" not in message


def test_a_pass_leaves_bad_samples_out(make_data, broken):
    data = make_data(broken, max_bad=0.5)
    batches = list(data.pass_loader(data.stream.tasks[0]))
    valid = torch.cat([b["valid"] for b in batches])
    assert torch.cat([b["__index__"] for b in batches])[valid].tolist() == [i for i in range(12) if i != 3]
    assert data.bad.count == 1


def test_what_a_strategy_reads_is_held_to_training_s_part(make_data, broken, caplog):
    """One sample of twelve is more than 0.1 %; training draws it as one of many."""
    data = make_data(broken, eval_batch_size=5)
    batches = list(data.eval_loader(broken, strict=False))
    valid = torch.cat([b["valid"] for b in batches])
    assert torch.cat([b["__index__"] for b in batches])[valid].tolist() == [i for i in range(12) if i != 3]
    assert data.bad.count == 1 and "'s00003'" in caplog.text
    with pytest.raises(RunError, match="max_bad = 0 allows"):
        list(make_data(broken, max_bad=0.0).eval_loader(broken, strict=False))


def test_a_choice_is_held_to_the_part_of_the_whole(make_data, broken):
    for limit in range(1, 13):
        data = make_data(broken, max_bad=0.1)
        batches = list(data.pass_loader(data.stream.tasks[0], limit=limit))
        assert sum(len(b["__key__"]) for b in batches) == limit and data.bad.count <= 1


def test_what_a_strategy_reads_has_all_captions(make_data, captioned, same):
    data = make_data(captioned, eval_batch_size=6)
    read, seen = data.eval_loader(captioned, strict=False), data.eval_loader(captioned)
    assert all(same(a, b) for a, b in zip(read, seen, strict=True))


def test_fields(make_data, make_samples, tmp_path):
    samples = [
        {
            "__key__": s["__key__"],
            "left.png": s["png"],
            "right.png": s["png"],
            "points.npy": np.arange(6.0).reshape(2, 3),
            "meta.json": {"number": i},
        }
        for i, s in enumerate(make_samples(8))
    ]
    write_shard(tmp_path / "f.tar", samples)
    fields = {"image": ["center.png", "left.png"], "points": ["points.npy"], "meta": ["meta.json"]}
    (batch,) = make_data(source := Source([str(tmp_path / "f.tar")], fields=fields)).eval_loader(source)
    assert batch["image"].shape == (8, 3, 4, 4)
    assert batch["points"].shape == (8, 2, 3)
    assert batch["meta"] == [{"number": i} for i in range(8)]


def test_loaders_need_bind(make_source):
    from mmcl.datamodules import StreamDataModule
    from mmcl.stream import Budget, Stream, Task

    data = StreamDataModule(Stream("s", [Task("t", [source := make_source((8,))], Budget(steps=1))]))
    with pytest.raises(RuntimeError, match="bind"):
        data.eval_loader(source)


@pytest.mark.parametrize("workers", [0, 1])
def test_samples_are_made_in_full_precision(make_data, make_source, workers):
    """An evaluation in mixed precision on a CPU reads its loader inside autocast."""
    source = make_source((5,))
    data = make_data(source, workers=workers)
    data.bind(lambda sample, augment: {"image": torch.ones(2, 2) @ torch.full((2, 2), 1 / 3)}, seed=0)
    with torch.autocast("cpu", torch.bfloat16):
        (batch,) = data.eval_loader(source)
    assert batch["image"].dtype == torch.float32
