"""The few places where mmcl reaches into Lightning's Trainer, all of them here."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher

from mmcl.errors import ConfigError
from mmcl.progress import StreamBar

T = TypeVar("T")

DEFAULTS: dict[str, Any] = {
    "accelerator": "auto",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "use_distributed_sampler": False,
    "log_every_n_steps": 10,
}
"""What a stream needs of a Trainer, and quiet defaults."""


def make(**arguments: Any) -> pl.Trainer:
    """A Trainer with the defaults of a stream."""
    return pl.Trainer(**{**DEFAULTS, **arguments})


def facts(trainer: pl.Trainer) -> frozenset[str]:
    """Properties of a Trainer that a strategy may not support."""
    return frozenset({"accumulation"} if trainer.accumulate_grad_batches > 1 else ())


def prepare(trainer: pl.Trainer, has_buffers: bool) -> None:
    """Settings that a stream depends on.

    Raises:
        ConfigError: weights cut over devices, a launcher that copies the process, a trainer with limits of its own, or
            no batch to a step.
    """
    if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
        raise ConfigError(
            f"trainer.strategy: {type(trainer.strategy).__name__} cannot run a stream, whose checkpoints and "
            "snapshots take every device to hold all weights; use ddp"
        )
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        raise ConfigError("trainer.strategy: spawn and fork cannot run a stream; use ddp")
    if any(isinstance(c, (EarlyStopping, Timer)) for c in trainer.callbacks):  # type: ignore[attr-defined]
        raise ConfigError("trainer: max_time and EarlyStopping would end a task early; leave them out")
    if trainer.max_epochs not in (None, -1) or trainer.max_steps != -1:
        raise ConfigError("trainer: max_epochs and max_steps belong to the tasks' budgets; leave them out")
    if trainer.min_epochs or trainer.min_steps:
        raise ConfigError("trainer: with min_epochs or min_steps a run would not heed signals; leave them out")
    part = trainer.limit_train_batches
    if isinstance(part, int) or part != 1.0:
        raise ConfigError(
            "trainer: with limit_train_batches or overfit_batches a task would see a few batches over and over; leave "
            "them out, and give the tasks smaller budgets"
        )
    if trainer.accumulate_grad_batches < 1:
        raise ConfigError(f"trainer: accumulate_grad_batches is {trainer.accumulate_grad_batches}; give 1 or more")
    trainer._accelerator_connector.use_distributed_sampler = False
    trainer.fit_loop.max_epochs = -1
    if isinstance(trainer.strategy, DDPStrategy):
        # Broadcasting buffers at every forward costs more than it gives where there are none that change.
        trainer.strategy._ddp_kwargs.setdefault("broadcast_buffers", has_buffers)
    connector: Any = trainer._signal_connector
    connector.register_signal_handlers = lambda: None  # the runner owns the signals from start to end
    connector.teardown = lambda: None
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    if trainer.progress_bar_callback is not None and not isinstance(trainer.progress_bar_callback, StreamBar):
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        callbacks[:] = [*(c for c in callbacks if c is not trainer.progress_bar_callback), StreamBar()]


def launch(trainer: pl.Trainer, function: Callable[[], T]) -> T:
    """Run `function` on every process of the Trainer, with collectives available from its first line."""

    def inside() -> T:
        trainer.strategy.setup_environment()
        return function()

    if trainer.strategy.launcher is None:
        return inside()
    result: T = trainer.strategy.launcher.launch(inside, trainer=trainer)
    return result


def train(trainer: pl.Trainer, engine: pl.LightningModule, loader: Any, steps: int) -> None:
    """Train exactly `steps` optimizer steps more on a loader of exactly that length."""
    if len(loader) != steps * trainer.accumulate_grad_batches:
        raise AssertionError(f"loader of {len(loader)} batches for {steps} steps x {trainer.accumulate_grad_batches}")
    before = trainer.global_step
    trainer.should_stop = False
    trainer.fit_loop.epoch_loop.max_steps = before + steps
    with warnings.catch_warnings():
        # Not the user's choice: workers are his setting, and a loader is as short as a segment is.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
        warnings.filterwarnings("ignore", message=".*checkpoint directory.*")
        warnings.filterwarnings("ignore", message=".*in eval mode at the start.*")  # on purpose
        trainer.fit(engine, train_dataloaders=loader)
    if not trainer.should_stop and trainer.global_step != before + steps:
        raise AssertionError(f"trained {trainer.global_step - before} steps of {steps}")


def set_global_step(trainer: pl.Trainer, step: int) -> None:
    """Let loggers and progress run on after a resume."""
    progress = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step
    progress.total.completed = progress.total.ready = step
    trainer.fit_loop.epoch_loop._batches_that_stepped = step


@contextmanager
def precision(trainer: pl.Trainer) -> Iterator[None]:
    """The Trainer's compute precision, for forwards outside its loops."""
    with trainer.precision_plugin.forward_context():
        yield


def device(trainer: pl.Trainer) -> torch.device:
    """This process's device."""
    return trainer.strategy.root_device
