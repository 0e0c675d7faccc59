"""Tests a finished run of a case with every strategy that adapts; run as a script it prints the cells.

python adapt.py CASE SHARDS RUN ROWS [--devices N]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import cases
import torch

from mmcl import Strategy, distributed
from mmcl import trainer as lightning
from mmcl.datamodules import StreamDataModule
from mmcl.runner import Runner, RunOptions
from mmcl.strategies import RMT, TENT, BatchNormStatistics, CoTTA


def adapters(batch_norm: bool = True) -> list[Strategy]:
    """Plain descent, as Adam enlarges rounding."""
    descent: dict[str, Any] = {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9}
    found: list[Strategy] = [
        TENT(**descent),
        CoTTA(**descent, views=2, threshold=1.1, restore=0.1, symmetric=True),
        RMT(**descent, warmup=16, projection=8),
    ]
    return [BatchNormStatistics(), *found] if batch_norm else found


def runner(
    case: str,
    shards: Path,
    folder: Path,
    strategies: Sequence[Strategy],
    rows: int = 8,
    stream: Any = None,
    **trainer: Any,
) -> Runner:
    """Of a run of the case that lies in `folder`; `rows` is the size of a batch of each process."""
    module, made = cases.found()[case]
    torch.manual_seed(0)
    data = StreamDataModule(made(shards) if stream is None else stream, batch_size=8, eval_batch_size=rows)
    quiet = {"accelerator": "cpu", "enable_progress_bar": False, **trainer}
    return Runner(data, module(), strategies, lightning.make(**quiet), RunOptions(folder, identity={"case": case}))


def main() -> None:
    """The script."""
    parser = argparse.ArgumentParser()
    parser.add_argument("case")
    parser.add_argument("shards", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("rows", type=int)
    parser.add_argument("--devices", type=int, default=1)
    given = parser.parse_args()
    batch_norm = given.case == "classes"
    made = runner(given.case, given.shards, given.folder, adapters(batch_norm), given.rows, devices=given.devices)
    cells = made.test("last")
    if made.is_main:
        print(json.dumps({name: {c.evalset: c.result.metrics for c in row} for name, row in cells.items()}))
    distributed.leave()


if __name__ == "__main__":
    main()
