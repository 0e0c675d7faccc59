"""Kill -9 at random moments: the same command continues the run, and it ends as if nothing had happened.

`pytest -m slow -s tests/system/test_kill.py` prints the moments; MMCL_KILL_SEED chooses others.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny
import torch

from mmcl.cli import main

SEED = int(os.environ.get("MMCL_KILL_SEED", "0"))


@dataclass
class Moment:
    """Where a run was when it was killed."""

    seconds: float
    checkpoint: str
    writing: bool
    recorded: str

    def __str__(self) -> str:
        writing = ", a file half written" if self.writing else ""
        return (
            f"{self.seconds:5.2f} s at work; newest checkpoint: {self.checkpoint}; recorded: {self.recorded}{writing}"
        )


def start(command: list[str], folder: Path) -> subprocess.Popen[bytes] | None:
    """Start a run in a group of its own and wait until it is at work; None if there was nothing left to do."""
    began = time.time()
    log = folder.with_suffix(".log")
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, "--run_dir", str(folder)],
            env=tiny.environment(),
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=file,
        )
    identity = folder / "identity.json"
    while process.poll() is None:
        new = identity.exists() and identity.stat().st_mtime >= began
        if new or b"continuing" in log.read_bytes():
            return process
        time.sleep(0.005)
    assert process.returncode == 0 and "is finished" in log.read_text(), log.read_text()
    return None


def finish(command: list[str], folder: Path) -> float:
    """Run to the end; the seconds that it took at work."""
    process = start(command, folder)
    began = time.monotonic()
    if process is not None:
        assert process.wait() == 0, folder.with_suffix(".log").read_text()
    return time.monotonic() - began


def kill(process: subprocess.Popen[bytes], folder: Path, seconds: float) -> Moment | None:
    """Kill the whole group after so many seconds; None if it ended before."""
    time.sleep(seconds)
    if process.poll() is not None:
        return None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    newest = "none"
    for name in ("last.ckpt", "previous.ckpt"):
        file = folder / "checkpoints" / name
        if file.exists():
            progress = torch.load(file, weights_only=True)["progress"]
            newest = f"task {progress['task'] + 1} {progress['phase']}, step {progress['step']}"
            break
    metrics = folder / "metrics.jsonl"
    lines = tiny.metrics(folder) if metrics.exists() and metrics.stat().st_size else [{"kind": "nothing"}]
    last = lines[-1]
    recorded = f"row {last['row']}" if last["kind"] == "row" else f"{last['kind']} {last.get('step', '')}".strip()
    return Moment(seconds, newest, any(folder.rglob("*.part")), recorded)


def killed_again_and_again(command: list[str], folder: Path, kills: int, seed: int) -> list[Moment]:
    """Run without interruption, then with so many kills: over one run, or more where it ends before the last kill."""
    length = finish(command, folder / "whole")
    chance, moments, runs = random.Random(seed), [], 0
    while len(moments) < kills:
        cut = folder / f"cut-{runs}"
        while len(moments) < kills and (process := start(command, cut)) is not None:
            moment = kill(process, cut, chance.uniform(0, 2 * length / (kills + 2)))
            if moment is None:
                break
            moments.append(moment)
        finish(command, cut)
        same(folder / "whole", cut)
        runs += 1
    return moments


def same(whole: Path, cut: Path) -> None:
    assert tiny.differences(whole, cut) == []
    for name in ("task-1", "task-2"):
        a, b = tiny.network(whole, name), tiny.network(cut, name)
        assert all(torch.equal(a[k], b[k]) for k in a)
    assert not list(cut.rglob("*.part"))


def test_killed_once(config: Callable[..., Path], tmp_path: Path) -> None:
    """Only what is killed is a process of its own."""
    file = config(steps=(8, 12), save_every=2)
    process = start(tiny.command("fit", "--config", file), tmp_path / "cut")
    assert process is not None and kill(process, tmp_path / "cut", 0.3) is not None
    for folder in ("whole", "cut"):
        assert main(["fit", "--config", str(file), "--run_dir", str(tmp_path / folder)]) == 0
    same(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_killed_ten_times(
    config: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], devices: int
) -> None:
    file = config(steps=(60, 40), save_every=2, data__eval_batch_size=2)
    command = tiny.command("fit", "--config", file, "--trainer.devices", str(devices))
    moments = killed_again_and_again(command, tmp_path, kills=10, seed=SEED + devices)
    with capsys.disabled():
        print(f"\nseed {SEED}, processes: {devices}; killed, continued, bit-equal:")
        print("\n".join(f"  {i:2}. {moment}" for i, moment in enumerate(moments, 1)))
