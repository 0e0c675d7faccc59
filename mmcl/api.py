"""From Python: one call that runs a stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from mmcl import plugins
from mmcl import trainer as lightning
from mmcl.identity import identity
from mmcl.runner import Runner, RunOptions
from mmcl.strategy import Strategy
from mmcl.stream import Stream


def run(
    stream: Any,
    module: Any,
    strategies: Sequence[Strategy] | Strategy = (),
    trainer: pl.Trainer | None = None,
    *,
    run_dir: str | Path,
    seed: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """Train a module on a stream, as `mmcl fit` does; call it again with the same `run_dir` to continue.

    Module and strategies are changed by a run, so each call takes new ones.

    Args:
        stream: a `mmcl.Stream`, or a `mmcl.datamodules.StreamDataModule` where the batch size or workers matter.
        module: for instance `mmcl.modules.CLIPModule`.
        strategies: one strategy or several.
        trainer: a Lightning Trainer; None makes one for the machine at hand.
        run_dir: the run folder.
        seed: of everything random.
        **options: further fields of `mmcl.runner.RunOptions`.

    Returns:
        The contents of results.json.

    Raises:
        ConfigError: refused at start-up, nothing was written.
        RunError: a fault while running; the folder can be continued.
    """
    data = plugins.load("datamodules", "StreamDataModule")(stream) if isinstance(stream, Stream) else stream
    given = [strategies] if isinstance(strategies, Strategy) else list(strategies)
    trainer = trainer or lightning.make()
    kept = RunOptions(run_dir=Path(run_dir), seed=seed, **options)
    same = identity(
        data, module, given, trainer, seed=seed, carry_optimizer=kept.carry_optimizer, init_from=kept.init_from
    )
    return Runner(data, module, given, trainer, replace(kept, identity=same)).fit()
