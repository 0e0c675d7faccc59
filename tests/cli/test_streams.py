"""Streams and schedules of shares in a config; the pages' own keys."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml

Command = Callable[..., Any]
DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture
def changes(tmp_path: Path) -> dict[str, Any]:
    """The first task out of a command, the second one with the schedule of docs/replay.md."""
    tiny.build(tmp_path)
    block = next(
        b for b in re.findall(r"```yaml\n(.*?)```", (DOCS / "replay.md").read_text(), re.S) if "_schedule" in b
    )
    (mixed,) = yaml.safe_load(block)["tasks"][0]["mix"]
    tasks = "data.stream.tasks"
    piped = [{"shards": [f"pipe:cat {tmp_path / 'dots.tar'}"]}]
    return {
        f"{tasks}.0.train": piped,
        f"{tasks}.1.mix": [{**mixed, "shards": [str(tmp_path / "dots.tar")], "task": "dots"}],
        f"{tasks}.1.segment": 3,
        "data.allow_pipe": True,
    }


def test_a_config_with_both(mmcl: Command, tmp_path: Path, changes: dict[str, Any]) -> None:
    config = tiny.write_config(tmp_path, tiny.config(tmp_path, (4, 6)), changes)
    answer = mmcl("fit", "--config", config, "--run_dir", tmp_path / "run")
    assert answer.code == 0, answer.err
    results = tiny.results(tmp_path / "run")
    assert [t["own_samples"] for t in results["stream"]["tasks"]] == [None, 24]
    assert [t["steps"] for t in results["tasks"]] == [4, 6]
    answer = mmcl("report", tmp_path / "run", "--out", tmp_path / "report")
    assert answer.code == 0, answer.err
    answer = mmcl("fit", "--config", config, "--run_dir", tmp_path / "dry", "--dry_run")
    assert answer.code == 0 and "task 1 dots: a stream of samples, 4 steps" in answer.out


def test_a_command_needs_leave(mmcl: Command, tmp_path: Path, changes: dict[str, Any]) -> None:
    config = tiny.write_config(tmp_path, tiny.config(tmp_path), {**changes, "data.allow_pipe": False})
    answer = mmcl("fit", "--config", config, "--run_dir", tmp_path / "run")
    assert answer.code == 2 and "would run a shell command" in answer.err and not (tmp_path / "run").exists()
