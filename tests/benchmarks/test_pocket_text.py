"""The stream of texts, on documents made on the spot."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmcl import assets
from mmcl.benchmarks import pocket_text as benchmark
from mmcl.benchmarks.pocket_text import pocket_text
from mmcl.datamodules import write_shard
from mmcl.datamodules.reader import SourceReader
from mmcl.errors import ConfigError


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for domain in (*benchmark.DOMAINS, benchmark.UPSTREAM):
        for split, count in (("train", 6), ("test", 9)):
            rows = [{"__key__": f"{domain}/{split}-{i}", "txt": f"{domain} {i} " * 200} for i in range(count)]
            write_shard(tmp_path / f"{domain}-{split}.tar", rows)
    monkeypatch.setattr(assets, "folder", lambda name: {"texts": tmp_path}[name])
    return tmp_path


def test_columns_are_a_fixed_part_of_the_test_splits(texts: Path) -> None:
    stream = pocket_text(steps=3)
    assert [task.name for task in stream.tasks] == ["bible", "medical", "german"]
    assert stream.columns() == ["bible", "medical", "german", "english"]
    assert [e.group for e in stream.evals] == ["task", "task", "task", "held_out"]
    assert stream.trained_columns() == ["bible", "medical", "german"]
    for column in stream.evals:
        documents = list(SourceReader(column.source).texts())
        assert 0 < sum(len(d.encode()) for d in documents) <= benchmark.COLUMN_BYTES
        assert all(key.startswith(f"{column.name}/test-") for key in column.source.keys or ())
        assert f"{len(documents)} of {column.name}" in stream.protocol
    assert [e.source.keys for e in pocket_text().evals] == [e.source.keys for e in stream.evals]


def test_english_can_be_replayed(texts: Path) -> None:
    stream = pocket_text(["law"], replay=0.25)
    (task,) = stream.tasks
    (replay,) = task.mix
    assert replay.share == 0.25 and next(SourceReader(replay).texts()).startswith("english 0")
    assert "25% of every batch is English replayed." in stream.protocol and not pocket_text().tasks[0].mix


def test_what_is_refused(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="'bibel' is no domain; did you mean bible"):
        pocket_text(["bibel"])
    with pytest.raises(ConfigError, match="replay is 1"):
        pocket_text(replay=1)
    monkeypatch.undo()
    monkeypatch.setenv("MMCL_CACHE", str(texts / "nothing"))
    with pytest.raises(ConfigError, match="fetch it: mmcl data get texts"):
        pocket_text()
