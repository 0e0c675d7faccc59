"""SIGTERM and SIGUSR1 save the state and leave with their own exit codes; the same command continues the run."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

from mmcl.cli import main

SUPPORT = str(Path(tiny.__file__).parent)
CODES = {signal.SIGTERM: 143, signal.SIGUSR1: 138}
MOMENTS = {
    "training": ("fit", 5),
    "training of the second task": ("fit", 11),
    "row 0": ("test", 2),
    "a later row": ("test", 30),
}


def at(moment: tuple[str, int], signum: int, done: Path, rank: int = 0) -> dict[str, Any]:
    arguments = {"signum": int(signum), "stage": moment[0], "count": moment[1], "done": str(done), "rank": rank}
    return {"class_path": "moments.SignalAt", "init_args": arguments}


@pytest.fixture(scope="module")
def whole(config_in: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run, in which the strategy that sends signals sends none."""
    folder = tmp_path_factory.mktemp("whole")
    done = folder / "done"
    done.touch()
    file = config_in(folder, at(MOMENTS["training"], signal.SIGTERM, done), data__eval_batch_size=4)
    assert main(["fit", "--config", str(file), "--run_dir", str(folder / "run")]) == 0
    return folder / "run"


@pytest.mark.parametrize(
    ("moment", "signum"),
    [
        pytest.param(moment, signum, marks=pytest.mark.slow if i % len(CODES) != j else ())
        for i, moment in enumerate(MOMENTS)
        for j, signum in enumerate(CODES)
    ],
)
def test_one_process(
    config: Callable[..., Path], tmp_path: Path, whole: Path, moment: str, signum: signal.Signals
) -> None:
    done = tmp_path / "done"
    file = config(at(MOMENTS[moment], signum, done), data__eval_batch_size=4)
    command = ["fit", "--config", str(file), "--run_dir", str(tmp_path / "cut")]
    assert main(command) == CODES[signum]
    assert done.exists()
    assert moment == "row 0" or tiny.results(tmp_path / "cut")["run"]["status"] == "running"
    assert main(command) == 0
    assert tiny.differences(whole, tmp_path / "cut") == []


def gone(process: int) -> bool:
    """Whether a process has ended, even if nobody has asked for its code."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def two(file: Path, folder: Path) -> subprocess.Popen[str]:
    command = tiny.command("fit", "--config", file, "--run_dir", folder, "--trainer.devices", "2")
    return subprocess.Popen(
        command, env=tiny.environment(PYTHONPATH=SUPPORT), start_new_session=True, text=True, stderr=subprocess.PIPE
    )


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["training", "a later row"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_of_two_stops_both(config: Callable[..., Path], tmp_path: Path, moment: str, rank: int) -> None:
    done = tmp_path / "done"
    file = config(at(MOMENTS[moment], signal.SIGTERM, done, rank), data__eval_batch_size=2)
    cut = two(file, tmp_path / "cut")
    _, err = cut.communicate(timeout=300)
    assert cut.returncode == 143, err
    assert "stopped by SIGTERM; the same command continues the run" in err
    deadline = time.monotonic() + 60
    others = [int((tmp_path / f"rank-{r}").read_text()) for r in (0, 1)]
    while not all(map(gone, others)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    for folder in ("cut", "whole"):  # `done` is there now: both run to the end
        assert two(file, tmp_path / folder).wait(300) == 0
    assert tiny.differences(tmp_path / "whole", tmp_path / "cut") == []


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["training", "a later row"])
@pytest.mark.parametrize("rank", [0, 1])
def test_one_of_two_killed_alone_ends_the_other(
    config: Callable[..., Path], tmp_path: Path, moment: str, rank: int
) -> None:
    done = tmp_path / "done"
    file = config(at(MOMENTS[moment], signal.SIGKILL, done, rank), data__eval_batch_size=2)
    cut = two(file, tmp_path / "cut")
    while not done.exists():
        assert cut.poll() is None or done.exists(), cut.communicate()[1]
        time.sleep(0.05)
    killed = time.monotonic()
    _, err = cut.communicate(timeout=60)
    assert cut.returncode == (1 if rank else -signal.SIGKILL)
    other = int((tmp_path / f"rank-{1 - rank}").read_text())
    while not gone(other):
        assert time.monotonic() - killed < 60
        time.sleep(0.05)
    print(f"rank {rank} killed in {moment}: the other ended after {time.monotonic() - killed:.1f} s")
    assert "another process of this run ended" in err and "Traceback" not in err, err
    for folder in ("cut", "whole"):
        assert two(file, tmp_path / folder).wait(300) == 0
    assert tiny.differences(tmp_path / "whole", tmp_path / "cut") == []
