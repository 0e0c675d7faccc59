"""Code on the pages runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from toy import network, runner

from mmcl.strategies import WeightEnsemble

DOCS = Path(__file__).resolve().parents[2] / "docs"


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), flags=re.S)


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
