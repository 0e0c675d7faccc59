"""The progress bar of a stream: which task, which step, the loss and the rate."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import TQDMProgressBar


class StreamBar(TQDMProgressBar):
    """Lightning's bar with the task's name, its loss and samples per second."""

    def __init__(self, refresh_rate: int = 5) -> None:
        super().__init__(refresh_rate=refresh_rate)
        self._began = 0.0
        self._samples = 0

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        super().on_train_epoch_start(trainer)
        engine: Any = trainer.lightning_module
        self.train_progress_bar.set_description(engine.title)
        self._began, self._samples = time.perf_counter(), 0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._samples += len(batch["valid"]) * trainer.world_size
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def get_metrics(self, trainer: pl.Trainer, pl_module: Any) -> dict[str, int | str | float | dict[str, float]]:
        elapsed = max(time.perf_counter() - self._began, 1e-9)
        loss = pl_module.last_loss
        shown: dict[str, int | str | float | dict[str, float]] = {} if loss is None else {"loss": f"{loss:.3f}"}
        shown["samples/s"] = f"{self._samples / elapsed:.0f}"
        return shown
