"""Predictions of a checkpoint, one JSON line for each sample of each evaluation set."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from mmcl import trainer as lightning
from mmcl.errors import ConfigError
from mmcl.metrics.probes import build
from mmcl.outputs import Outputs, move
from mmcl.runner import Runner


def predict(runner: Runner, ckpt_path: str) -> list[Path]:
    """Write ``predictions-<evaluation set>.jsonl`` into the run folder for every set whose probe gives predictions.

    A slash in the set's name is written ``%2F``; a number that is not finite is null.

    Args:
        runner: of the run.
        ckpt_path: ``last``, ``task-K`` or a path.

    Returns:
        The files.

    Raises:
        ConfigError: no evaluation set gives predictions, or more than one process was asked for.
    """
    if runner.trainer.world_size > 1:
        raise ConfigError("predict runs in one process; set --trainer.devices 1")
    runner.check()
    written: list[Path] = lightning.launch(runner.trainer, lambda: _predict(runner, ckpt_path))
    if not written:
        raise ConfigError("no evaluation set of this stream gives predictions for single samples")
    return written


def _predict(runner: Runner, ckpt_path: str) -> list[Path]:
    path, content = runner.read(ckpt_path)
    runner.set_up()
    runner.load(content, path)
    device = lightning.device(runner.trainer)
    written = []
    with (
        lightning.precision(runner.trainer),
        runner.composition.eval_weights(),
        runner.engine.evaluating("predict") as encode,
        torch.no_grad(),
    ):
        for evalset in runner.stream.evals:
            probe = build(evalset, runner.module)
            if not hasattr(probe, "predict"):
                continue
            probe.start(encode)
            out = runner.folder.path / f"predictions-{evalset.name.replace('/', '%2F')}.jsonl"
            # Keys of shards need not be UTF-8; what is escaped so is JSON as well.
            with out.open("w", encoding="utf-8", errors="backslashreplace") as file:
                for batch in runner.data.eval_loader(evalset.source):
                    batch = move(batch, device)
                    rows = probe.predict(batch, encode(batch) if probe.looks else Outputs())
                    for key, valid, row in zip(batch["__key__"], batch["valid"].tolist(), rows, strict=True):
                        if valid:
                            line = json.dumps(_finite({"key": key, **row}), ensure_ascii=False, allow_nan=False)
                            file.write(f"{line}\n")
            written.append(out)
    return written


def _finite(value: Any) -> Any:
    """The same with None for numbers that JSON does not know."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
