"""Every kind of damage is found by lint and by training; nothing is lost silently, and nothing is executed."""

import contextlib
import os
import re
import resource
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import COUNT, REFUSED, REPLACED, SAID, Damage, jpeg, samples, write
from damages import DAMAGES

from mmcl.cli import main
from mmcl.datamodules import StreamDataModule
from mmcl.errors import ConfigError, RunError
from mmcl.stream import Budget, EvalSet, Source, Stream, Task

NOBODY = 65534


def plain(text):
    """A message without sizes and places in bytes: those depend on the version of the JPEG encoder."""
    return re.sub(r"\d{4,}", "N", text)


def tensors(sample, augment):
    """Any sample as numbers."""
    row = {k: v for k, v in sample.items() if k in ("__key__", "labels", "vector")}
    if "image" in sample:
        row["image"] = torch.from_numpy(np.asarray(sample["image"]).mean(axis=(0, 1)))
    if "text" in sample:
        row["text"] = len(sample["text"])
    if "audio" in sample:
        row["audio"] = torch.from_numpy(sample["audio"].samples[:100])
    return row


def opened(source, evaluation=False):
    evals = [EvalSet("e", source)] if evaluation else []
    data = StreamDataModule(Stream("s", [Task("t", [source], Budget(steps=3))], evals), batch_size=4, max_bad=1.0)
    data.bind(tensors, seed=0)
    data.check()
    return data


def train(source):
    """An epoch of training: keys and names of the replaced samples."""
    data = opened(source)
    loader = data.train_loader(data.stream.tasks[0], positions={}, segment=0, first_step=0, steps=COUNT // 4)
    return [key for batch in loader for key in batch["__key__"]], data.bad


@contextlib.contextmanager
def unprivileged():
    """As a user whom permissions bind."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder where every user may go, and the working directory."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    monkeypatch.chdir(folder)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name.replace(" ", "-"))
def test_is_found(damage: Damage, place: Path, capsys, caplog):
    damage.make(place)
    with unprivileged() if damage.unprivileged else contextlib.nullcontext():
        shards = [name if ":" in name else str(place / name) for name in damage.shards]
        linted(damage, shards, capsys)
        trained(damage, shards, caplog)
    assert not (place / "ran").exists()
    capsys.readouterr()


def linted(damage, shards, capsys):
    """Lint names it, in one line, and writes nothing."""
    before = sorted(Path().iterdir())
    code = main(["shards", "lint", "--workers", "0", *shards])
    out, err = capsys.readouterr()
    if damage.lint_refuses:
        assert code == 2 and damage.says in err and err.count("\n") == 1
        return
    found = [line for line in out.splitlines() if f": {damage.lint}: " in line or f": {damage.lint} (susp" in line]
    assert any(plain(damage.says) in plain(line) for line in found), out
    assert code == (0 if all("(suspicious)" in line for line in found) else 1)
    assert sorted(Path().iterdir()) == before
    assert all(c.isprintable() for c in out.replace("\n", ""))


def trained(damage, shards, caplog):
    """Training says it, or takes the next sample and says that."""
    told = damage.because or damage.says
    source = Source(shards, fields=damage.fields)
    if damage.training == REFUSED:
        with pytest.raises(ConfigError) as error:
            opened(source)
        assert plain(told) in plain(str(error.value)) and "\n" not in str(error.value)
        return
    with caplog.at_level("INFO", logger="mmcl"):
        keys, bad = train(source)
    assert len(keys) == COUNT
    if damage.training == REPLACED:
        (name,) = bad.names
        assert told in name and "\n" not in name and f"in shard {shards[0]}" in name
        assert len(set(keys)) == COUNT - 1 and bad.count == 1
        with pytest.raises((RunError, ConfigError), match="mend it"):
            evaluate(source)
        return
    assert len(set(keys)) == COUNT and not bad.count
    assert damage.training == SAID and any(told in m for m in caplog.messages)


def evaluate(source):
    """An evaluation leaves nothing out: it stops."""
    data = opened(source, evaluation=True)
    return list(data.eval_loader(source))


def test_the_list_is_long_and_names_each_damage_once():
    assert len({damage.name for damage in DAMAGES}) == len(DAMAGES) >= 50


def test_good_shards_have_no_findings(place, capsys):
    write(samples())(place)
    assert main(["shards", "lint", str(place / "a.tar")]) == 0
    assert "faults: none\nsuspicious: none\n" in capsys.readouterr().out


def test_a_full_disk_costs_the_index_alone(place, caplog):
    """The index cannot be written; the shard is read all the same, and it is said."""
    write(samples())(place)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))  # the system refuses to write more, as on a full disk
    try:
        keys, _ = train(Source([str(place / "a.tar")]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(set(keys)) == COUNT
    assert any("could not be kept" in m for m in caplog.messages)
    assert [path.name for path in place.iterdir()] == ["a.tar"]


def test_a_shard_cut_while_in_use_stops_the_run(place):
    path = write(samples())(place)
    data = opened(Source([str(place / "a.tar")]))
    os.truncate(path, 20_000)
    loader = data.train_loader(data.stream.tasks[0], positions={}, segment=0, first_step=0, steps=3)
    with pytest.raises(RunError, match="was cut while in use"):
        list(loader)


def test_too_many_bad_samples_stop_the_run(place):
    half = {f"s{i:02d}_jpg": jpeg()[:900] for i in range(6)}
    write(samples(**half))(place)
    source = Source([str(place / "a.tar")])
    data = StreamDataModule(Stream("s", [Task("t", [source], Budget(steps=3))]), batch_size=4)
    data.bind(tensors, seed=0)
    data.check()
    with pytest.raises(RunError, match=r"could not be decoded, more than max_bad = 0\.001 allows"):
        list(data.train_loader(data.stream.tasks[0], positions={}, segment=0, first_step=0, steps=3))
