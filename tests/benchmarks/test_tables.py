"""Figures of finished runs outlive their folders, and tables are made of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mmcl.benchmarks import methods, modalities, tables


def test_a_recorded_run_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def fit(arguments: tuple[str, ...], folder: Path, seed: int) -> bool:
        made.append(f"{folder.name} {arguments[-1]}")
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps({"run": {"versions": {"mmcl": "1"}}, "score": seed}))
        return True

    monkeypatch.setattr(tables, "fit", fit)
    page = tmp_path / "docs" / "page.md"
    for rate in ("1", "1", "2"):
        record = tables.record(page, "few", tmp_path, lambda results: {"score": results["score"]})
        record.run("a", ("--rate", rate), tmp_path / "runs" / "a", 3)
        shutil.rmtree(tmp_path / "runs")
        (tmp_path / "runs").mkdir()
    assert made == ["a 1", "a 2"]
    assert record.figures("a", ("--rate", "2"), 3) == {"score": 3} and record.figures("b", ("--rate", "2"), 3) is None
    assert record.figures("a", ("--rate", "1"), 3) is None, "a table would show another setting's figures"
    (stored,) = json.loads((tmp_path / "docs" / "page" / "few.json").read_text()).values()
    assert stored["command"] == "mmcl fit --rate 2 --seed_everything 3" and stored["versions"] == {"mmcl": "1"}


def test_a_run_that_failed_is_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "fit", lambda *_: False)
    record = tables.Record(tmp_path / "few.json", dict)
    record.run("a", (), tmp_path, 0)
    assert record.figures("a", (), 0) is None and not record.file.exists()


def test_records_that_are_open_at_once_keep_each_others_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "fit", lambda *_: True)
    (tmp_path / "results.json").write_text(json.dumps({"run": {"versions": {}}}))
    both = [tables.Record(tmp_path / "few.json", lambda _: {}) for _ in range(2)]
    for name, record in zip("ab", both, strict=True):
        record.run(name, (), tmp_path, 0)
    assert tables.Record(tmp_path / "few.json", dict).runs.keys() == {"a", "b"}


def test_a_table_of_methods_has_means_over_seeds() -> None:
    runs = [methods.Run(10.0, 20.0, None, 50.0, None, 2**30), methods.Run(14.0, 20.0, 3.0, 50.0, 8.0, 2**29)]
    *_, row = methods.table({"EWC": runs})
    assert row == "| EWC | 2 | 12.0 ± 2.8 | 20.0 ± 0.0 | 3.0 | 50.0 ± 0.0 | 8 | 1.0 GiB |"


def test_rows_of_a_modality_leave_out_tasks_that_changed_nothing(tmp_path: Path) -> None:
    matrix = {"columns": ["a", "b"], "directions": ["higher", "lower"], "counts": [5, 7], "tasks": ["a"]}
    figures = {"held_out": ["b"], "tasks": ["a"], "seconds": 9.0, "peak": 2**30, "cells": []}
    record = tables.Record(tmp_path / "few.json", dict)
    for name, after in (("text/frozen", [0.5, 20.0]), ("text/finetune", [0.75, 21.0])):
        values = [[0.5, 20.0], after]
        command = f"mmcl fit --config pocket/{name} --seed_everything 0"
        record.runs[name] = {"command": command, "figures": {**figures, "matrix": {**matrix, "values": values}}}
    assert modalities.gather(record, 1) == ""
    lines = modalities.gather(record, 0).splitlines()
    assert lines[4] == "| method | after | a (5) | *b* ↓ (7) | training, peak memory |"
    assert lines[6:] == ["| any | nothing | 0.500 | 20.0 |  |", "| finetune | a | 0.750 | 21.0 | 9 s, 1.0 GiB |"]
