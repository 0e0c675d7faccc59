"""Code on the pages runs as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import settings
import tiny
import torch
from toy import network, runner

from mmcl.cli import main
from mmcl.datamodules import write_shard
from mmcl.strategies import WeightEnsemble

DOCS = Path(__file__).resolve().parents[2] / "docs"


def blocks(page: str, language: str = "python") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), flags=re.S)


def test_the_worked_strategy(tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    exec(blocks("write-a-strategy.md")[0], names)
    pull = names["PullToStart"]
    runner(tmp_path / "plain").fit()
    runner(tmp_path / "zero", [pull(weight=0.0)]).fit()
    runner(tmp_path / "pulled", [pull(weight=10.0), WeightEnsemble(interval=3)]).fit()
    plain, zero, pulled = (network(tmp_path / n) for n in ("plain", "zero", "pulled"))
    assert all(torch.equal(plain[k], zero[k]) for k in plain)
    assert not all(torch.equal(plain[k], pulled[k]) for k in plain)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """The page's strategy with its row, as a file of a package of somebody's own."""
    strategy, row = blocks("write-a-strategy.md")
    file = tmp_path / "settings_of_the_page.py"
    file.write_text(f"{strategy}\n\n{row}")
    return file


def test_the_worked_row(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.setenv("MMCL_SETTINGS", str(table))
    row = settings.found()["PullToStart"]
    assert [type(s).__name__ for s in row.build()] == ["PullToStart"] and row.off is not None


@pytest.mark.slow
def test_the_worked_strategy_passes_the_tester(table: Path) -> None:
    tester = DOCS.parent / "tests" / "strategies" / "test_tester.py"
    command = [sys.executable, "-m", "pytest", "-q", tester, "-k", "PullToStart", "-m", "", "-p", "no:cacheprovider"]
    environment = tiny.environment(MMCL_SETTINGS=str(table))
    done = subprocess.run(command, cwd=DOCS.parent, env=environment, text=True, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout


def test_the_worked_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's module through the command line: it learns, and a second run does nothing."""
    (code,), (config,) = blocks("bring-your-own-model.md"), blocks("bring-your-own-model.md", "yaml")
    (tmp_path / "signals.py").write_text(code)
    (tmp_path / "signals.yaml").write_text(config)
    for name, pace in (("slow", 0.2), ("fast", 0.8)):
        write_shard(tmp_path / f"{name}.tar", recordings(pace))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["fit", "--config", "signals.yaml", "--trainer.enable_progress_bar", "false"]) == 0
    results = tiny.results(tmp_path / "runs" / "signals")
    assert results["matrix"]["counts"] == [24, 24]
    assert results["matrix"]["values"][2][1] > results["matrix"]["values"][0][1]
    assert main(["export", "runs/signals", "--to", "exported"]) == 0
    assert (tmp_path / "exported" / "model.safetensors").is_file()


def recordings(pace: float) -> Iterator[dict[str, Any]]:
    random = np.random.default_rng(int(10 * pace))
    for i in range(24):
        times = np.arange(20 + i, dtype=np.float32)
        signal = (i % 3) * np.sin(pace * times) + 0.1 * random.standard_normal(len(times))
        yield {"__key__": f"r{i:02d}", "npy": signal.astype(np.float32), "cls": i % 3}
