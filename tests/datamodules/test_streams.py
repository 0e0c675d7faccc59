"""Sources without an index: every sample once a pass, the same batches again, and no damage passed over."""

import io
import os
import pickle
import shlex
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from web import Fault, Web

from mmcl.datamodules import OWN, write_shard
from mmcl.datamodules.stream_files import Turn, one_pass
from mmcl.errors import ConfigError, RunError
from mmcl.stream import Budget, EvalSet, Source, Task

EXTENSIONS = frozenset(("png", "txt", "cls"))


@pytest.fixture
def streamed(make_source):
    """Four shards of 10 samples, read as a stream."""
    return make_source((10, 10, 10, 10), stream=True)


def piped(source, command="cat"):
    """The same shards through a command."""
    shards = [f"pipe:{command} {shlex.quote(shard)}" for shard in source.shards]
    return replace(source, shards=shards, stream=False)


def taken(shards, epoch, readers, seed=3, ordered=False):
    """Keys by reader."""
    wanted = dict.fromkeys(shards, EXTENSIONS)
    return [
        [s["__key__"] for s in one_pass(shards, Turn(seed, epoch, r, readers), wanted, ordered, 8)]
        for r in range(readers)
    ]


@pytest.mark.parametrize("readers", [1, 3, 4, 7])
def test_readers_share_a_pass(streamed, readers):
    """Also where they are more than the shards."""
    found = taken(streamed.shards, 0, readers)
    assert Counter(key for keys in found for key in keys) == {f"s{i:05d}": 1 for i in range(40)}
    assert found == taken(streamed.shards, 0, readers)
    assert found != taken(streamed.shards, 1, readers)
    assert found != taken(streamed.shards, 0, readers, seed=4)
    whole = taken(streamed.shards, 5, 1, ordered=True)[0]
    assert whole == sorted(whole)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["file", "pipe"])
def test_batches(make_data, streamed, draw_batches, same, workers, kind):
    source = piped(streamed) if kind == "pipe" else streamed
    options = {"workers": workers, "allow_pipe": kind == "pipe", "stream_buffer": 6}
    data = make_data(source, **options)
    data.check()
    batches = draw_batches(data, steps=10)
    assert Counter(key for batch in batches for key in batch["__key__"]) == {f"s{i:05d}": 2 for i in range(40)}
    for batch in batches:
        numbers = [int(key[1:]) for key in batch["__key__"]]
        assert batch["labels"].tolist() == [n % 4 for n in numbers]
        assert batch["text"][:, 1].tolist() == numbers
        assert batch["image"].shape == (8, 3, 4, 4) and batch["valid"].all()
    again = draw_batches(make_data(source, **options), steps=10)
    assert all(same(a, b) for a, b in zip(batches, again, strict=True))
    other = draw_batches(make_data(source, seed=1, **options), steps=10)
    assert [b["__key__"] for b in other] != [b["__key__"] for b in batches]
    assert not list(Path(streamed.shards[0]).parent.glob("*.index"))


@pytest.mark.parametrize(("workers", "accumulate"), [(0, 1), (2, 1), (3, 2), (2, 3)])
def test_resume_is_by_replay_and_exact(make_data, streamed, draw_batches, same, workers, accumulate):
    data = make_data(streamed, batch_size=12, workers=workers, accumulate=accumulate)
    whole = draw_batches(data, steps=7)
    for begin in (1, 2, 5):
        tail = draw_batches(
            make_data(streamed, batch_size=12, workers=workers, accumulate=accumulate), steps=7, first_step=begin
        )
        assert all(same(a, b) for a, b in zip(whole[begin * accumulate :], tail, strict=True)), begin


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_segments_go_on_where_the_last_one_ended(make_data, make_source, streamed, draw_batches, same, workers):
    """A pass is a pass wherever the cuts are, and shares may change at them."""
    replay = make_source((9, 9), "replay", "r", share=0.25)
    data = make_data(streamed, workers=workers)
    (task,) = data.stream.tasks
    first = draw_batches(data, [replay], steps=3)
    positions = data.advance({}, data.plan(task, [replay]), 3)
    assert positions[OWN] == 18 and sum(n for name, n in positions.items() if name.startswith("own/")) == 18
    second = draw_batches(data, steps=2, positions=positions, segment=1)
    assert same(second[1], draw_batches(data, steps=2, positions=positions, segment=1, first_step=1)[0])
    drawn = [key for batch in [*first, *second] for key in batch["__key__"] if key.startswith("s")]
    assert len(drawn) == 34 and set(Counter(drawn).values()) <= ({1} if workers < 3 else {1, 2})


def test_processes_share_a_stream(make_data, streamed, make_source, draw_batches):
    """Two processes with two workers each, and a mixed and a side source that have an index or not."""
    mix = make_source((20,), "mix", "m", share=0.5, stream=True)
    side = make_source((20,), "side", "d", role="side", batch_size=4)
    parts = [draw_batches(make_data(streamed, rank=r, world_size=2, workers=2), [mix, side], steps=10) for r in (0, 1)]
    for step in zip(*parts, strict=True):
        keys = Counter(key[0] for batch in step for key in batch["__key__"])
        assert keys == {"s": 4, "m": 4}
        assert sum(len(batch["side"]["side"]["__key__"]) for batch in step) == 4
    drawn = [key for part in parts for batch in part for key in batch["__key__"]]
    assert Counter(drawn) == {**{f"s{i:05d}": 1 for i in range(40)}, **{f"m{i:05d}": 2 for i in range(20)}}


def test_fields_labels_and_order(make_data, streamed, draw_batches):
    source = replace(streamed, labels={3: 0, 1: 1}, fields={"image": ["png"], "labels": ["cls"]}, ordered=True)
    batches = draw_batches(make_data(source, batch_size=10, class_names=["three", "one"]), steps=2)
    numbers = [int(key[1:]) for batch in batches for key in batch["__key__"]]
    assert numbers == [i for i in range(40) if i % 2]
    assert torch.cat([b["labels"] for b in batches]).tolist() == [1 if i % 4 == 1 else 0 for i in numbers]
    assert "text" not in batches[0]
    with pytest.raises(RunError, match="gave reader 1 of 1 no sample"):
        draw_batches(make_data(replace(source, labels={9: 0}), batch_size=4), steps=1)
    few = make_data(replace(source, labels=None), batch_size=10, class_names=["a", "b"])
    few.check()
    with pytest.raises(RunError, match="has label 2, but there are 2 class names"):
        draw_batches(few, steps=1)


def test_commands_are_refused_unless_allowed(make_data, streamed, tmp_path):
    trick = Source([f"pipe:touch {tmp_path / 'ran'}"])
    with pytest.raises(ConfigError, match=r"would run a shell command.*allow_pipe"):
        make_data(trick).check()
    assert not (tmp_path / "ran").exists()


def test_a_range_of_commands(make_data, streamed, draw_batches):
    pattern = streamed.shards[0].replace("000.tar", "{000..003}.tar")
    data = make_data(Source([f"pipe:cat {pattern} | (cat; x={{a,b}}; true)"]), allow_pipe=True)
    assert len({key for batch in draw_batches(data, steps=5) for key in batch["__key__"]}) == 40


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("false", "ended with exit code 1"),
        ("head -c 300", "the file ends inside the header at byte 0"),
        ("cat {}; exit 3", "ended with exit code 3"),
        ("cat {} {}", "there are data after the end mark"),
    ],
)
def test_commands_that_fail(make_data, streamed, draw_batches, command, says):
    shard = streamed.shards[0]
    data = make_data(
        Source([f"pipe:{command.format(shard, shard) if '{}' in command else f'{command} {shard}'}"]), allow_pipe=True
    )
    with pytest.raises((ConfigError, RunError), match=says) as error:
        data.check()
        draw_batches(data, steps=5)
    assert "\n" not in str(error.value)


def damaged(data, how):
    """A shard that `webdataset` would read half of without a word."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        header = tar.getmember("s00005.png").offset
    return {
        "boundary": data[:header],
        "header": data[: header + 100],
        "data": data[: header + 530],
        "overwritten": data[:header] + b"\xff" * 512 + data[header + 512 :],
        "zeroed": data[:header] + bytes(512) + data[header + 512 :],
    }[how]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("boundary", "without an end mark"),
        ("header", "ends inside the header"),
        ("data", "ends inside member 's00005.png'"),
        ("overwritten", "is overwritten"),
        ("zeroed", "data after the end mark"),
    ],
)
def test_damage_stops_the_run(make_data, make_source, draw_batches, how, says, workers):
    source = make_source((10,), stream=True)
    path = Path(source.shards[0])
    path.write_bytes(damaged(path.read_bytes(), how))
    with pytest.raises(RunError, match=says) as error:
        draw_batches(make_data(source, batch_size=2, workers=workers), steps=10)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def rewritten(path, names, extra=()):
    """The shard with other names for its members, and further members before them."""
    with tarfile.open(fileobj=io.BytesIO(path.read_bytes())) as old, tarfile.open(path, "w") as new:
        for name in extra:
            new.addfile(tarfile.TarInfo(name))
        for member in old:
            for name in names(member.name):
                info = tarfile.TarInfo(name)
                info.size = member.size
                new.addfile(info, old.extractfile(member))


def test_members_of_no_sample_are_none_in_a_stream_either(make_data, make_source, draw_batches):
    """As in a shard with an index: macOS puts a hidden file before each one, and some writers a folder of their own."""
    source = make_source((8,), stream=True)
    rewritten(Path(source.shards[0]), lambda name: [f"d/._{name}", f"d/{name}"], ["__meta__/info.json", "README"])
    data = make_data(source, batch_size=4)
    data.check()
    assert {key for batch in draw_batches(data, steps=2) for key in batch["__key__"]} == {
        f"d/s{i:05d}" for i in range(8)
    }


@pytest.mark.parametrize("workers", [0, 1])
def test_a_double_member_stops_the_run(make_data, make_source, draw_batches, workers):
    source = make_source((8,), stream=True)
    path = Path(source.shards[0])
    rewritten(path, lambda name: [name, name] if name == "s00005.cls" else [name])
    with pytest.raises(RunError, match=r"sample 's00005' has two members 'cls'") as error:
        draw_batches(make_data(source, batch_size=4, workers=workers), steps=2)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


class Canary:
    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


def test_nothing_is_executed(make_data, make_samples, draw_batches, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i in range(8):
            for name, data in (("txt", b"caption 1"), ("pyd", pickle.dumps(Canary(tmp_path / "ran")))):
                info = tarfile.TarInfo(f"k{i}.{name}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    (batch,) = draw_batches(make_data(Source([str(tmp_path / "a.tar")], stream=True)), steps=1)
    assert len(set(batch["__key__"])) == 8 and not (tmp_path / "ran").exists()
    with pytest.raises(ConfigError, match="cannot be read from members 'pyd'"):
        make_data(Source([str(tmp_path / "a.tar")], stream=True, fields={"x": ["pyd"]})).check()


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_samples_are_replaced_by_the_next(make_data, make_samples, draw_batches, same, tmp_path, workers):
    samples = make_samples(12)
    samples[3]["png"] = samples[4]["png"] = b"\x89PNG no picture"
    samples[8].pop("txt")
    write_shard(tmp_path / "a.tar", samples)
    source = Source([str(tmp_path / "a.tar")], stream=True, ordered=True)

    def made():
        return make_data(source, batch_size=3, max_bad=0.5, workers=workers)

    data = made()
    batches = draw_batches(data, steps=8)
    readers = max(1, workers)
    keys = Counter(int(key[1:]) for batch in batches for key in batch["__key__"])
    assert data.bad.count == 6 and not {3, 4, 8} & keys.keys()
    replaced = {1: {5: 6, 9: 4}, 2: {5: 4, 6: 4, 10: 4}}[readers]
    assert {n: times for n, times in keys.items() if times != 2} == replaced
    assert any("has no member for 'text'" in name for name in data.bad.names)
    tail = draw_batches(made(), steps=8, first_step=3)
    assert all(same(a, b) for a, b in zip(batches[3:], tail, strict=True))
    with pytest.raises(RunError, match="more than max_bad"):
        draw_batches(make_data(source, batch_size=3, workers=workers), steps=8)


def test_what_takes_an_index_is_refused(make_data, make_source, streamed):
    data = make_data(streamed)
    (task,) = data.stream.tasks
    for call, what in (
        (lambda: data.pass_loader(task), "a pass takes an index"),
        (lambda: data.eval_loader(streamed), "a pass takes an index"),
        (lambda: list(data.captions(streamed)), "going through all captions takes an index"),
        (lambda: data.task_samples(task), "a memory of samples takes an index"),
        (lambda: data.plan(Task("t", [streamed], Budget(epochs=1))), "give the budget in steps or samples"),
        (lambda: EvalSet("e", streamed), "an evaluation needs an index"),
        (lambda: replace(streamed, keys=["a"]), "`keys` are found in an index"),
        (lambda: make_data([streamed, make_source((5,), prefix="x")]).check(), "put one kind under `mix`"),
    ):
        with pytest.raises(ConfigError, match=what):
            call()
    assert data.count(streamed) == 0


def test_sources_that_cannot_be(make_data, streamed, make_samples, tmp_path):
    write_shard(tmp_path / "empty.tar", [])
    write_shard(tmp_path / "plain.tar", [{"__key__": "a", "npy": b"x"}])
    unlabelled = [{k: v for k, v in s.items() if k != "cls"} for s in make_samples(3)]
    write_shard(tmp_path / "unlabelled.tar", unlabelled)
    for shards, says in (
        ([tmp_path / "empty.tar"], "holds no samples"),
        ([tmp_path / "plain.tar"], "has no member jpg"),
        ([tmp_path / "none.tar"], "does not exist"),
        ([streamed.shards[0]] * 2, "listed twice"),
        (["file:/etc/passwd"], "has the URL scheme 'file:'"),
        (["tar::pipe:ls"], "has the URL scheme 'tar:'"),
    ):
        with pytest.raises(ConfigError, match=says):
            make_data(Source([str(s) for s in shards], stream=True)).check()
    source = Source([str(tmp_path / "unlabelled.tar")], stream=True)
    with pytest.raises(ConfigError, match="has no labels"):
        make_data(source, class_names=["a"], batch_size=2).check()


@pytest.mark.parametrize("lengths", [True, False])
def test_from_a_web_server(make_data, streamed, draw_batches, same, tmp_path, monkeypatch, lengths):
    """Also one that does not say how long a file is, which a cache could not use."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    local = draw_batches(make_data(streamed), steps=6)
    with Web(tmp_path) as web:
        web.lengths = lengths
        remote = replace(streamed, shards=[web.url("train-s-{000..003}.tar")])
        data = make_data(remote)
        data.check()
        assert all(same(a, b) for a, b in zip(local, draw_batches(data, steps=6), strict=True))
        assert not (tmp_path / "cache" / "mmcl" / "shards").exists()
        size = Path(streamed.shards[0]).stat().st_size
        web.faults = {f"train-s-{i:03d}.tar": [Fault(after=size // 2)] for i in range(4)}
        with pytest.raises(RunError, match=r"the file ends|cannot be read"):
            draw_batches(make_data(remote, seed=2), steps=20)
        web.faults = {f"train-s-{i:03d}.tar": [Fault(status=503)] for i in range(4)}
        with pytest.raises(ConfigError, match=r"cannot be read: .*503"):
            make_data(remote, seed=2).check()
