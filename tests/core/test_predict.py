"""Predictions: a line of JSON for each sample, whatever sets, keys and scores are like."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import cases
import pytest

from mmcl import Stream
from mmcl.metrics.classification_probe import ClassificationProbe
from mmcl.predict import predict


def with_foreign_keys(stream: Stream) -> Stream:
    """The last evaluation set under a name with a slash, its keys no UTF-8."""
    *rest, last = stream.evals
    (shard,) = last.source.shards
    foreign = Path(shard).with_name("foreign.tar")
    with tarfile.open(shard) as old, tarfile.open(foreign, "w", format=tarfile.GNU_FORMAT) as new:
        for member in old:
            content = old.extractfile(member)
            assert content is not None
            member.name = f"\udcff{member.name}"
            new.addfile(member, io.BytesIO(content.read()))
    changed = replace(last, name="held/out", source=replace(last.source, shards=[str(foreign)]))
    return Stream(stream.name, stream.tasks, [*rest, changed], stream.sources, stream.protocol)


def test_any_name_key_and_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shards").mkdir()
    stream = with_foreign_keys(cases.found()["classes"][1](tmp_path / "shards"))
    cases.runner("classes", stream, tmp_path / "run").fit()
    found = ClassificationProbe.predict

    def not_finite(probe: ClassificationProbe, *args: Any) -> list[dict[str, Any]]:
        return [{**row, "scores": {"a": float("-inf"), "b": 0.5}, "p": float("nan")} for row in found(probe, *args)]

    monkeypatch.setattr(ClassificationProbe, "predict", not_finite)
    files = predict(cases.runner("classes", stream, tmp_path / "run"), "last")
    assert [file.name for file in files][-1] == "predictions-held%2Fout.jsonl"
    rows = [json.loads(line, parse_constant=pytest.fail) for line in files[-1].read_text("utf-8").splitlines()]
    assert rows and all(row["key"].startswith("\udcff") for row in rows)
    assert all(row["scores"] == {"a": None, "b": 0.5} and row["p"] is None for row in rows)
