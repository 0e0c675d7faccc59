"""Runs of prompt methods: not begun, set up, or asked for one answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cases
import tiny
import torch
from torch import Tensor

from mmcl import Strategy
from mmcl import trainer as lightning
from mmcl.datamodules import StreamDataModule
from mmcl.engine import Context
from mmcl.outputs import Batch, Outputs
from mmcl.runner import Runner, RunOptions
from mmcl.strategies import SPrompts

VIT, CLIP = "classes-growing", "clip"


class Maker:
    """Makes runs in folders of their own.

    Args:
        shards: where the cases' data are kept.
        folder: for the runs.
    """

    def __init__(self, shards: Path, folder: Path) -> None:
        self.shards, self.folder = shards, folder
        self.count = 0

    def __call__(
        self, strategies: Sequence[Strategy], case: str = VIT, folder: Path | None = None, **changes: Any
    ) -> Runner:
        """A run of a case that is not begun, or one that goes on in its folder; `changes` of the run's options."""
        module, stream = cases.found()[case]
        (self.shards / case).mkdir(exist_ok=True)
        torch.manual_seed(0)
        data = StreamDataModule(stream(self.shards / case), batch_size=8, eval_batch_size=5)
        trainer = {"precision": changes.pop("precision")} if "precision" in changes else {}
        quiet = {"accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1}
        self.count += 1
        place = folder or self.folder / f"run-{self.count}"
        options = RunOptions(place, save_every=2, identity={"case": case}, **changes)
        return Runner(data, module(), strategies, lightning.make(**quiet, **trainer), options)

    def entered(self, strategies: Sequence[Strategy], position: int = 1, case: str = VIT) -> Runner:
        """Set up and at the start of a task, without training."""
        return self.enter(self(strategies, case), position)

    def enter(self, runner: Runner, position: int = 1) -> Runner:
        """The same for a run that is made."""
        runner.check()
        runner.build()
        for task in runner.stream.tasks[: position + 1]:
            runner._enter(task)
            runner._hook("on_task_start", task)
        return runner


def batch_of(runner: Runner, rows: int = 6) -> Batch:
    """Noise as pictures of the second task."""
    generator = torch.Generator().manual_seed(7)
    size = tiny.SIZE if hasattr(runner.module.network, "visual") else 32
    image = torch.randn(rows, 3, size, size, generator=generator)
    return {"image": image, "domain": torch.full((rows,), 1), "labels": torch.zeros(rows, dtype=torch.long)}


def answer(runner: Runner, batch: Batch, stage: Any = "test") -> Outputs:
    """What the network gives with the strategies' wraps."""
    with runner.engine.evaluation_mode(), torch.no_grad():
        return Context(runner.engine, stage, batch).forward(batch)


def shake(runner: Runner) -> None:
    """Values of their own for all that a strategy trains, so that every slot answers differently."""
    generator = torch.Generator().manual_seed(11)
    for strategy in runner.composition.strategies:
        for parameter in strategy.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        if isinstance(strategy, SPrompts):
            names = [task.name for task in runner.stream.tasks]
            strategy.centres = {name: torch.randn(2, strategy.features, generator=generator) for name in names}


def strategies_in(runner: Runner, checkpoint: str) -> dict[str, Tensor]:
    """The strategies' parameters in a checkpoint."""
    saved = torch.load(runner.folder.checkpoints / f"{checkpoint}.ckpt", weights_only=True)["strategies"]
    return {f"{s}.{n}": v for s, content in saved.items() for n, v in content["parameters"].items()}


def moved(runner: Runner) -> set[str]:
    """What the second task has changed."""
    first, second = strategies_in(runner, "task-1"), strategies_in(runner, "task-2")
    return {name for name, value in second.items() if not torch.equal(value, first[name])}
