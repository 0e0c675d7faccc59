import tarfile
from dataclasses import replace
from types import SimpleNamespace

import pytest

from mmcl.benchmarks.folders import joined
from mmcl.datamodules import StreamDataModule, write_shard
from mmcl.errors import ConfigError
from mmcl.needs import check_samples
from mmcl.stream import Budget, Source, Stream, Task

NAMES = ["a", "b", "c", "d"]


def test_a_good_stream_passes(make_data, make_source):
    source = make_source((10, 10))
    data = make_data(source, class_names=NAMES, evals=[source], sources={"ref": source}, world_size=2)
    data.check()
    assert data.count(source) == 20


@pytest.mark.parametrize("place", ["evaluation set 'e0'", "stream source 'ref'"])
def test_every_part_of_what_is_drawn_as_one_is_looked_at(make_data, make_source, tmp_path, make_samples, place):
    good = make_source((10,))
    write_shard(tmp_path / "bad.tar", [{**sample, "txt": " "} for sample in make_samples(2, prefix="b")])
    whole = joined("whole", [good, Source([str(tmp_path / "bad.tar")])])
    more = {"evals": [whole]} if place.startswith("eval") else {"sources": {"ref": whole}}
    with pytest.raises(ConfigError, match=f"{place}: .*sample 'b00000' in shard .*bad.tar has an empty caption"):
        make_data(good, **more).check()
    with pytest.raises(ConfigError, match=r"evaluation set 'e0': sample 'x00000' in .* has label 9, but there are 4"):
        write_shard(tmp_path / "label.tar", [{**s, "cls": 9} for s in make_samples(2, prefix="x")])
        wrong = joined("whole", [good, Source([str(tmp_path / "label.tar")])])
        make_data(good, class_names=NAMES, evals=[wrong]).check()


def test_data_of_a_task_that_is_not_there(make_data, make_source):
    with pytest.raises(ConfigError, match="task 't': source 'train' is of task 'T', which the stream lacks"):
        make_data(replace(make_source((10,)), task="T")).check()


def edit(samples, index, **changes):
    samples[index] = {k: v for k, v in {**samples[index], **changes}.items() if v is not None}
    return samples


@pytest.mark.parametrize(
    ("index", "changes", "message"),
    [
        (2, {"cls": 4}, "'s00002' in shard .* has label 4, but there are 4 class names"),
        (2, {"cls": -1}, "has label -1"),
        (5, {"txt": " \n"}, "sample 's00005' in shard .* has an empty caption"),
        (5, {"txt": None, "json": {"captions": ["x", ""]}}, "empty caption"),
        (5, {"txt": None, "json": {"captions": []}}, "empty caption"),
        (1, {"png": None}, "'s00001' in shard .* has no member for 'image' .*9 of 10 samples have one"),
        (1, {"txt": None}, "has no member for 'text'"),
        (1, {"txt": None, "json": {"width": 3}}, "has no member for 'text'"),
        (1, {"cls": None}, "has no member for 'labels'"),
    ],
)
def test_samples_that_do_not_fit(make_data, make_samples, tmp_path, index, changes, message):
    write_shard(tmp_path / "a.tar", edit(make_samples(10), index, **changes))
    source = Source([str(tmp_path / "a.tar")])
    with pytest.raises(ConfigError, match=message) as error:
        make_data(source, class_names=NAMES).check()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("changes", [{"txt": b"\xff\xff"}, {"cls": b"three"}])
def test_unreadable_texts_are_refused_in_evaluation_only(make_data, make_source, make_samples, tmp_path, changes):
    write_shard(tmp_path / "a.tar", edit(make_samples(10), 4, **changes))
    source = Source([str(tmp_path / "a.tar")])
    make_data(source, class_names=NAMES).check()
    with pytest.raises(ConfigError, match=r"'s00004' in shard .* cannot be decoded"):
        make_data(make_source((8,)), class_names=NAMES, evals=[source]).check()


def test_class_names_without_labels(make_data, make_samples, tmp_path):
    write_shard(tmp_path / "a.tar", [{k: v for k, v in s.items() if k != "cls"} for s in make_samples(10)])
    source = Source([str(tmp_path / "a.tar")])
    make_data(source).check()
    with pytest.raises(ConfigError, match="`class_names` are given, but the samples of source 'train' have no labels"):
        make_data(source, class_names=NAMES).check()
    bare = replace(source, labels={0: 0}, fields={"image": ["png"]})
    with pytest.raises(ConfigError, match=r"`labels` maps classes, but its samples have none; add members KEY\.cls"):
        make_data(bare).check()


def test_fields_of_a_joined_source_are_its_own(make_data, make_source, make_samples, tmp_path):
    """The one that lacks a field is named, not the first of those that are drawn with it."""
    write_shard(tmp_path / "bare.tar", [{k: v for k, v in s.items() if k != "txt"} for s in make_samples(4, 90)])
    whole, bare = make_source((8,), "whole"), Source([str(tmp_path / "bare.tar")], "bare")
    source = joined("both", [whole, bare])
    data = make_data(source)
    assert data.fields(source) == {"image", "text", "labels"} and data.fields(bare) == {"image", "labels"}
    module = SimpleNamespace(objective=None, needed=lambda probe="": frozenset({"text"}))
    with pytest.raises(ConfigError, match=r"task 't': the samples of source 'bare' \(.*bare\.tar\) have no text"):
        check_samples(data.stream, module, data)
    check_samples(data.stream, module, data, trains=False)
    far = Source(["https://joe:secret@host/a.tar?signature=secret"], "far")
    assert data.title(far) == "source 'far' (https://host/a.tar?...)"
    idle = make_data(source, budget=Budget(steps=0))
    check_samples(idle.stream, module, idle)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 16}, "a batch takes 16 of its samples, but it has 10; make `batch_size`"),
        ({"batch_size": 9, "world_size": 2}, r"`batch_size` \(9\) does not divide by 2 processes x 1"),
        ({"batch_size": 9, "accumulate": 2, "world_size": 2}, "take a multiple of 4"),
    ],
)
def test_batches_that_do_not_fit(make_data, make_source, options, message):
    with pytest.raises(ConfigError, match=message):
        make_data(make_source((10,)), **options).check()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shards": ["nowhere/a.tar"]}, "shard nowhere/a.tar does not exist"),
        ({"shards": ["pipe:cat a.tar"]}, "would run a shell command"),
        ({"keys": ["s00001", "s00077"]}, "1 of 2 `keys` are in no shard: s00077"),
        ({"keys": "nowhere.txt"}, "file of keys nowhere.txt does not exist"),
        ({"labels": {0: 0, 9: 1}}, "maps classes without a sample: 9"),
        ({"fields": {"image": ["pkl"]}}, "cannot be read from members 'pkl'"),
        ({"fields": {"labels": ["json"]}}, "cannot be read from members 'json'"),
        ({"fields": {"image": ["webp"]}}, "has no member for 'image'"),
    ],
)
@pytest.mark.parametrize("place", ["train", "evals", "sources"])
def test_sources_that_cannot_be_opened(make_data, make_source, change, message, place):
    good = make_source((10,))
    bad = replace(good, **change)
    others = {"train": {}, "evals": {"evals": [bad]}, "sources": {"sources": {"x": bad}}}[place]
    if place == "evals" and bad.is_stream:
        message = "its source is a stream, and an evaluation needs an index"
    with pytest.raises(ConfigError, match=message):
        make_data(bad if place == "train" else good, **others).check()


def test_keys_and_labels_choose(make_data, make_source, draw_batches, tmp_path):
    source = make_source((10, 10))
    (tmp_path / "keys.txt").write_text("s00013\n\ns00002\ns00007\n", encoding="utf-8-sig")
    by_file = replace(source, keys=str(tmp_path / "keys.txt"))
    (batch,) = make_data(by_file, batch_size=3).eval_loader(by_file)
    assert batch["__key__"] == ["s00002", "s00007", "s00013"]
    assert batch["__index__"].tolist() == [0, 1, 2]
    two = replace(source, labels={3: 0, 1: 1})
    data = make_data(two, class_names=["three", "one"])
    data.check()
    (batch,) = data.eval_loader(two)
    assert [(int(k[1:]) % 4, y) for k, y in zip(batch["__key__"], batch["labels"].tolist(), strict=True)] == [
        (1, 1),
        (3, 0),
    ] * 5
    assert data.count(two) == 10


def test_keys_that_two_shards_share(make_source, make_data):
    a, b = make_source((5,), "a"), make_source((6,), "b")
    both = Source([*a.shards, *b.shards])
    assert make_data(both).count(both) == 11
    chosen = replace(both, keys=["s00001"])
    with pytest.raises(ConfigError, match="key 's00001' is in two shards"):
        make_data(chosen).count(chosen)


def test_pickles_are_neither_read_nor_in_the_way(make_data, make_samples, tmp_path):
    import io

    write_shard(tmp_path / "a.tar", make_samples(8))
    with tarfile.open(tmp_path / "a.tar", "a") as tar:
        for extension, data in (("png", make_samples(9)[8]["png"]), ("pkl", b"cos\nsystem\n(S'false'\ntR.")):
            if extension == "png":
                buffer = io.BytesIO()
                data.save(buffer, "PNG")
                data = buffer.getvalue()
            info = tarfile.TarInfo(f"s00008.{extension}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    source = Source([str(tmp_path / "a.tar")], fields={"image": ["png"]})
    (batch,) = make_data(source).eval_loader(source)
    assert len(batch["__key__"]) == 9
    assert not any("pkl" in key for key in batch)


@pytest.mark.parametrize(
    "options", [{"batch_size": 0}, {"workers": -1}, {"window": 0}, {"max_bad": 2.0}, {"eval_batch_size": 0}]
)
def test_numbers_that_cannot_be(make_source, options):
    stream = Stream("s", [Task("t", [make_source((5,))], Budget(steps=1))])
    with pytest.raises(ConfigError, match=next(iter(options))):
        StreamDataModule(stream, **options)
