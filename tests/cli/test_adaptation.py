"""Strategies that adapt, named on the command line of `mmcl test` for a run that was trained without them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny

Mmcl = Callable[..., Any]


def test_zero_shot_adapts_on_the_command_line(mmcl: Mmcl, copy: Path) -> None:
    """CLIP chooses among class texts; a retrieval set in between adapts nothing and is measured all the same."""
    saved = (copy / "checkpoints" / "last.ckpt").read_bytes()
    more = ["--strategies+=TENT", "--strategies.lr=0.01", "--strategies+=CoTTA", "--strategies.threshold=1.1"]
    more += ["--strategies.views=2", "--strategies+=RMT", "--strategies.warmup=16"]
    answer = mmcl("test", "--config", copy / "config.yaml", "--data.eval_batch_size=5", *more)
    assert answer.code == 0, answer.err
    assert (copy / "checkpoints" / "last.ckpt").read_bytes() == saved
    content = json.loads((copy / "test-last.json").read_text())
    assert content["adapted_by"] == "tent" and list(content["scores"]) == ["default", "source", "cotta", "rmt"]
    for name in ("last [tent]", "last [source]", "last [cotta]", "last [rmt]"):
        assert name in answer.out
    matrix = tiny.results(copy)["matrix"]
    scores = content["scores"]
    assert [scores["source"][name]["value"] for name in matrix["columns"]] == matrix["values"][-1]
    for name in ("dots", "stripes", "held"):
        entropies = {row: cells[name]["metrics"]["entropy"] for row, cells in scores.items()}
        assert len(set(entropies.values())) == 4 and entropies["default"] < entropies["source"]
    assert all("entropy" not in cells["pairs"]["metrics"] for cells in scores.values())
