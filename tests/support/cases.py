"""Every kind of module with a small stream of its own; run as a script it trains one of them.

python cases.py CASE SHARDS RUN [--devices N] [--kill STAGE COUNT DONE]
"""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch

from mmcl import Strategy, Stream
from mmcl import trainer as lightning
from mmcl.datamodules import StreamDataModule
from mmcl.modules.base import Module, OptimizerBuilder
from mmcl.runner import Runner, RunOptions

Case = tuple[Callable[[], Module], Callable[[Path], Stream]]
BATCH = 8
ROWS_SUM = (
    *("asr-wav2vec2", "asr-whisper", "asr-whisper-ctc", "causal_lm", "classes-growing", "domains"),
    *("idefics3", "llava", "qwen2_vl", "smolvlm"),
)
"""Modules whose loss is a mean over rows or targets, none of which looks at others: a cut batch has one gradient."""
ROWS_ALONE = ("captioner", "clip", *ROWS_SUM)
"""Modules whose outputs for a row depend neither on the others nor on chance; a contrastive loss gathers them."""


def found() -> dict[str, Case]:
    """name -> (module, stream), out of every file ``tiny_*.py`` beside this one."""
    cases: dict[str, Case] = {}
    for file in sorted(Path(__file__).parent.glob("tiny_*.py")):
        own: dict[str, Case] = importlib.import_module(file.stem).CASES
        assert not cases.keys() & own.keys(), f"{file.name}: a case of this name is there already"
        cases |= own
    return cases


def run(
    case: str,
    shards: Path,
    folder: Path,
    strategies: Sequence[Strategy] = (),
    devices: int = 1,
    optimizer: OptimizerBuilder | None = None,
    **trainer_arguments: Any,
) -> dict[str, Any]:
    """Train a case from its start, or from where the folder stands."""
    shards.mkdir(parents=True, exist_ok=True)
    stream = found()[case][1](shards)
    results: dict[str, Any] = runner(case, stream, folder, strategies, devices, optimizer, **trainer_arguments).fit()
    return results


def runner(
    case: str,
    stream: Stream,
    folder: Path,
    strategies: Sequence[Strategy] = (),
    devices: int = 1,
    optimizer: OptimizerBuilder | None = None,
    kind: type[Runner] = Runner,
    **trainer_arguments: Any,
) -> Any:
    """What walks a case's module through a stream: a runner of this kind."""
    torch.manual_seed(0)
    data = StreamDataModule(stream, batch_size=BATCH, eval_batch_size=5)
    quiet = {"accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 2}
    trainer = lightning.make(**quiet, devices=devices, **trainer_arguments)
    module = found()[case][0]()
    module.optimizer_builder = optimizer or module.optimizer_builder
    # Modules may lie in a folder that is another one in each process.
    options = RunOptions(run_dir=folder, save_every=2, identity={"case": case})
    return kind(data, module, strategies, trainer, options)


def main() -> None:
    """The script: with LwF and slow weights, killed at a chosen forward where that is asked for."""
    from moments import SignalAt

    from mmcl.strategies import LwF, MomentumInterpolation

    parser = argparse.ArgumentParser()
    parser.add_argument("case")
    parser.add_argument("shards", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--kill", nargs=3, metavar=("STAGE", "COUNT", "DONE"), default=("fit", "0", "/dev/null"))
    given = parser.parse_args()
    stage, count, done = given.kill
    kill = SignalAt(signal.SIGKILL, stage, int(count), done)
    run(given.case, given.shards, given.folder, [LwF(), MomentumInterpolation(0.9), kill], given.devices)


if __name__ == "__main__":
    main()
