"""A run that was cut off anywhere goes on as if nothing had happened."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from toy import ErrorProbe, Killed, killed_at, metrics, network, runner, same, stream

from mmcl import Stream, checkpoint, distributed
from mmcl.errors import RunError
from mmcl.interrupt import Interrupted
from mmcl.outputs import Outputs


@pytest.mark.parametrize("batch", [8, 9])
def test_a_signal_between_accumulated_batches_waits_for_the_step(tmp_path: Path, batch: int) -> None:
    """Batches of half a step would go into running statistics twice."""
    halves = {"accumulate_grad_batches": 2}
    runner(tmp_path / "whole", trainer=halves).fit()
    made = runner(tmp_path / "cut", trainer=halves)
    inner, batches = made.engine.after_step, 0

    def after_step(engine: Any, given: Any) -> None:
        nonlocal batches
        inner(engine, given)
        batches += 1
        if batches == batch:
            os.kill(os.getpid(), signal.SIGUSR1)

    made.engine.after_step = after_step
    with pytest.raises(Interrupted):
        made.fit()
    runner(tmp_path / "cut", trainer=halves).fit()
    assert same(network(tmp_path / "whole"), network(tmp_path / "cut"))


def test_killed_while_a_task_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its checkpoint is there in the end, wherever the process died."""

    def die(*_: Any, **__: Any) -> None:
        raise Killed

    monkeypatch.setattr(checkpoint, "link", die)
    with pytest.raises(Killed):
        runner(tmp_path).fit()
    monkeypatch.undo()
    runner(tmp_path).fit()
    assert same(network(tmp_path), network(tmp_path, "task-2"))
    assert {p.name for p in (tmp_path / "checkpoints").glob("task-*")} == {"task-1.ckpt", "task-2.ckpt"}


def test_a_stream_without_evaluation_sets_continues(tmp_path: Path) -> None:
    bare = Stream("bare", stream().with_tasks([replace(t, evaluates=None) for t in stream().tasks]).tasks)
    whole = runner(tmp_path / "whole", stream=bare).fit()
    for step in (5, 12):
        killed_at(tmp_path / "cut", step, [], stream=bare)
    resumed = runner(tmp_path / "cut", stream=bare).fit()
    assert [t["name"] for t in resumed["tasks"]] == [t["name"] for t in whole["tasks"]]
    assert same(network(tmp_path / "whole"), network(tmp_path / "cut"))
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "cut")


def test_metrics_that_the_checkpoint_counts_must_be_there(tmp_path: Path) -> None:
    killed_at(tmp_path, 5, [])
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(file.read_bytes()[:10])
    with pytest.raises(RunError, match=r"metrics.jsonl has 10 bytes, and the checkpoint counts \d+ of it; put it back"):
        runner(tmp_path).fit()
    assert len(file.read_bytes()) == 10


def test_processes_look_for_a_checkpoint_before_one_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a slow one finds what a fast one has just begun, and goes on from it alone."""
    events: list[str] = []

    def noted(name: str, inner: Any) -> Any:
        return lambda *args, **kwargs: (events.append(name), inner(*args, **kwargs))[1]

    monkeypatch.setattr(checkpoint, "load_newest", noted("read", checkpoint.load_newest))
    monkeypatch.setattr(checkpoint, "save", noted("write", checkpoint.save))
    monkeypatch.setattr(distributed, "barrier", noted("wait", distributed.barrier))
    runner(tmp_path).fit()
    assert events[:3] == ["read", "wait", "write"]


def test_killed_between_two_renames_after_a_broken_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The good one is never behind the broken one."""
    killed_at(tmp_path, 8, [])
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    replace_file, broken = os.replace, last.stat().st_ino

    def die(source: Any, target: Any) -> None:
        if Path(target) == last and Path(source).suffix == ".part":
            raise Killed
        replace_file(source, target)

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(Killed):
        runner(tmp_path).fit()
    monkeypatch.undo()
    assert broken not in {p.stat().st_ino for p in last.parent.glob("*.ckpt")}
    assert runner(tmp_path).fit()["run"]["status"] == "finished"


class Draws(ErrorProbe):
    """A measurement with chance in it."""

    def update(self, batch: dict[str, Any], outputs: Outputs) -> None:
        super().update(batch, outputs)
        self.total += torch.rand(())


def test_chance_in_an_evaluation_is_the_same_in_a_resumed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy, "ErrorProbe", Draws)
    whole = runner(tmp_path / "whole").fit()
    for step in (5, 12):
        killed_at(tmp_path / "cut", step, [])
    assert runner(tmp_path / "cut").fit()["matrix"] == whole["matrix"]
    assert [c.result.value for c in runner(tmp_path / "cut").test("last")[""]] == whole["matrix"]["values"][-1]
