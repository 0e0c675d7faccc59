"""Two processes see the samples that one sees: the same counts, the same scores, weights that differ by rounding."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny

from mmcl.cli import main

TWO = ["--trainer.devices", "2"]
# Adam turns the rounding of a gradient near zero into a whole step, so that only plain descent can be compared.
DESCENT = {"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.5}}


def same_up_to_rounding(one: Path, two: Path) -> None:
    a, b = tiny.results(one), tiny.results(two)
    assert (a["run"]["world_size"], b["run"]["world_size"]) == (1, 2)
    assert a["matrix"] == b["matrix"]
    assert [t["samples"] for t in a["stream"]["tasks"]] == [t["samples"] for t in b["stream"]["tasks"]]
    assert [c["count"] for c in a["cells"]] == [c["count"] for c in b["cells"]]
    for name in ("task-1", "task-2"):
        weights, others = tiny.network(one, name), tiny.network(two, name)
        assert max(float((weights[k] - others[k]).abs().max()) for k in weights) < 1e-5


def test_training(config: Callable[..., Path], tmp_path: Path) -> None:
    file = config(model__init_args__optimizer=DESCENT, model__init_args__lr=0.2)
    command = ["fit", "--config", str(file), "--run_dir"]
    assert main([*command, str(tmp_path / "one")]) == 0
    ran = tiny.mmcl(*command, tmp_path / "two", *TWO)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("before training") == 2  # one table with its two parts, from one process
    same_up_to_rounding(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_scoring(config: Callable[..., Path], tmp_path: Path) -> None:
    """`test` on two processes gives the row that `fit` wrote on one."""
    run = tmp_path / "one"
    assert main(["fit", "--config", str(config()), "--run_dir", str(run)]) == 0
    ran = tiny.mmcl("test", "--config", run / "config.yaml", *TWO)
    assert ran.returncode == 0, ran.stderr
    scores = json.loads((run / "test-last.json").read_text())["scores"]["default"]
    assert [cell["value"] for cell in scores.values()] == tiny.results(run)["matrix"]["values"][-1]
    assert [cell["count"] for cell in scores.values()] == tiny.results(run)["matrix"]["counts"]
