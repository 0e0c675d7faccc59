"""Training one task: segments, the optimizer across fits, checkpoints at a stated cadence."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import torch
from torch.optim import Optimizer

from mmcl import checkpoint, distributed
from mmcl import trainer as lightning
from mmcl.engine import Engine
from mmcl.errors import ConfigError, RunError
from mmcl.evaluate import Cell
from mmcl.foresight import cut_for_schedules, sources_at
from mmcl.interrupt import Interrupted
from mmcl.outputs import Batch
from mmcl.run_folder import MetricsLog
from mmcl.session import RunOptions, Session
from mmcl.strategy import Strategy
from mmcl.stream import Source, Task

logger = logging.getLogger("mmcl")


class Training(Session):
    """A session that can train a task, from its start or from the middle of a segment."""

    metrics: MetricsLog

    def __init__(
        self, data: Any, module: Any, strategies: Sequence[Strategy], trainer: pl.Trainer, options: RunOptions
    ) -> None:
        super().__init__(data, module, strategies, trainer, options)
        self.engine.on_optimizer = self._restore_optimizer
        self.engine.after_step = self._after_step

    # -- training ----------------------------------------------------------------------------------------------------

    def _train(self, task: Task, carried: bool) -> None:
        self._restore_exact = not carried
        self._began, self._seconds_before = time.perf_counter(), self.progress.train_seconds
        if carried:
            self.progress = replace(self.progress, task_steps=self.data.plan(task, self._sources(task)).steps)
        total = self.engine.task_steps = self.progress.task_steps
        if total == 0 or not self.engine.trains():
            reason = "its budget is 0" if total == 0 else "nothing has requires_grad"
            logger.info("task '%s' is not trained: %s", task.name, reason)
            self._note(f"task '{task.name}' was not trained: {reason}")
            return
        size = task.segment or total
        while (start := self.progress.segment * size) < total:
            steps = min(size, total - start)
            sources = self._segment_sources(task)
            self._train_segment(task, sources, steps)
            if start + steps == total:
                return
            self._save("started")
            self._cut(task, sources, steps)

    def _train_seconds(self) -> float:
        return self._seconds_before + time.perf_counter() - self._began

    def _sources(self, task: Task) -> list[Source]:
        sources = [*task.mix, *(s for strategy in self.composition.of("sources") for s in strategy.sources(task))]
        cut_for_schedules(task, sources)  # again: a strategy may ask for more than it foresaw
        return sources

    def _segment_sources(self, task: Task) -> list[Source]:
        """What strategies ask for; in the middle of a segment with the shares that it began with."""
        total = self.progress.task_steps
        sources = sources_at(self._sources(task), self.progress.segment * (task.segment or total), total)
        if self.progress.segment_step:
            return [replace(s, share=self.progress.shares.get(s.name, s.share)) for s in sources]
        readers = self._readers(task, sources) or self.progress.readers
        self.progress = replace(self.progress, shares={s.name: s.share for s in sources}, readers=readers)
        return sources

    def _readers(self, task: Task, sources: Sequence[Source]) -> list[int]:
        """Processes, and workers of each, that streams are read by; empty where there are none."""
        if not any(s.is_stream for source in (*task.train, *sources) for s in source.all):
            return []
        return [self.trainer.world_size, max(1, self.data.workers)]

    def _check_readers(self) -> None:
        """Refuse to go on with a stream that other processes and workers have read so far.

        Raises:
            ConfigError: names both.
        """
        before = self.progress.readers
        now = [self.trainer.world_size, max(1, self.data.workers)] if before else []
        if before != now:
            task = self.stream.tasks[self.progress.task]
            raise ConfigError(
                f"task '{task.name}': its streams were read by {before[0]} processes with {before[1]} workers each, "
                f"and now by {now[0]} with {now[1]}; what a stream gives depends on both: go on as it began "
                "(trainer.devices, data.workers), or begin anew"
            )

    def _train_segment(self, task: Task, sources: Sequence[Source], steps: int) -> None:
        loader = self.data.train_loader(
            task,
            sources,
            positions=self.progress.positions,
            segment=self.progress.segment,
            first_step=self.progress.segment_step,
            steps=steps,
        )
        left = steps - self.progress.segment_step
        if left == 0:
            return
        self.engine.segment_step = self.progress.segment_step
        self.engine.title = f"task {self.engine.task_index + 1}/{len(self.stream.tasks)} {task.name}"
        lightning.set_global_step(self.trainer, self.engine.step)
        try:
            lightning.train(self.trainer, self.engine, loader, left)
        finally:
            self.engine.zero_grad()  # evaluations need the memory
            self.engine.to(lightning.device(self.trainer))  # Lightning leaves it on the CPU
        self._keep_optimizer()
        self.engine.settle()
        self.engine.sync_buffers()
        if self.trainer.should_stop:
            signum = distributed.agree(self.flag.signum)
            self._save("started")
            if not signum:
                raise RunError("a callback stopped the Trainer before the task's budget; leave it out")
            raise Interrupted(signum)
        self.progress = replace(
            self.progress, step=self.engine.step, task_step=self.engine.task_step, segment_step=self.engine.segment_step
        )

    def _cut(self, task: Task, sources: Sequence[Source], steps: int) -> None:
        """Between two segments: evaluate on the fixed subsets, let strategies look, ask for sources again."""
        positions = self.data.advance(self.progress.positions, self.data.plan(task, sources), steps)
        measured = time.perf_counter()
        cells = self._measure("validate")
        self._began += time.perf_counter() - measured  # no time of training
        scores = {c.evalset: c.result.value for c in cells}
        entry = {"task": task.name, "segment": self.progress.segment, "step": self.engine.step}
        self.record.data["segments"].append({**entry, "task_step": self.engine.task_step, "scores": scores})
        self.record.write()
        self.metrics.write("segment", **entry, task_step=self.engine.task_step, scores=scores)
        self._scores(cells)
        self.progress = replace(self.progress, segment=self.progress.segment + 1, segment_step=0, positions=positions)
        self._restore_exact = True

    def _after_step(self, engine: Engine, batch: Batch) -> None:
        stepped = engine.task_step > self.progress.task_step or engine.segment_step > self.progress.segment_step
        if not stepped:
            return
        self.progress = replace(
            self.progress, step=engine.step, task_step=engine.task_step, segment_step=engine.segment_step
        )
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if engine.task_step % max(every, 1) == 0 or engine.task_step == engine.task_steps:
            assert engine.task is not None
            figures = {k: float(v) for k, v in sorted(engine.figures.items())}
            self.metrics.write(
                "step", task=engine.task.name, step=engine.step, task_step=engine.task_step, lr=engine.lr, **figures
            )
            engine.figures.clear()
        save = self.options.save_every
        if save and engine.task_step % save == 0 and engine.task_step < engine.task_steps:
            self._keep_optimizer()
            engine.settle()
            self._save("started")

    # -- the optimizer across fits -----------------------------------------------------------------------------------

    _restore_exact = False

    def _keep_optimizer(self) -> None:
        optimizers = self.trainer.optimizers
        if optimizers:
            inner = getattr(optimizers[0], "_optimizer", optimizers[0])
            self.optimizer_state = checkpoint.optimizer_state(inner, self.engine.names())
            self.scaler_state = self.trainer.precision_plugin.state_dict()

    def _restore_optimizer(self, optimizer: Optimizer) -> None:
        if self.optimizer_state is not None:
            checkpoint.restore_optimizer(optimizer, self.optimizer_state, self.engine.names(), self._restore_exact)
        if self.scaler_state:
            self.trainer.precision_plugin.load_state_dict(self.scaler_state)

    def _scores(self, cells: Sequence[Cell]) -> None:
        scores = {c.evalset: c.result.value for c in cells}
        for strategy in self.composition.of("on_scores"):
            strategy.on_scores(scores, None)

    def _note(self, text: str) -> None:
        if text not in self.record.data["notes"]:
            self.record.data["notes"].append(text)

    # -- saving ------------------------------------------------------------------------------------------------------

    def _save(self, phase: checkpoint.RunPhase, keep: str | None = None) -> None:
        if phase == "started":
            self.progress = replace(self.progress, train_seconds=self._train_seconds())
        self.progress = replace(self.progress, phase=phase, metrics_offset=self.metrics.offset())
        within = phase in ("started", "trained") or self.options.carry_optimizer
        if self.is_main:
            self._check_finite()
            content = {
                "progress": checkpoint.progress_dict(self.progress),
                "seed": self.options.seed,
                "network": self.module.network.state_dict(),
                "strategies": {s.name: _kept(s) for s in self.composition.strategies},
                "optimizer": self.optimizer_state if within else None,
                "scaler": self.scaler_state,
                "last_loss": self.engine.last_loss,
                "figures": {name: float(value) for name, value in self.engine.figures.items()},
            }
            last = self.folder.checkpoints / "last.ckpt"
            if keep is not None and self.options.keep_tasks:
                # First, since the phase that `last` brings is not saved again.
                checkpoint.save(self.folder.checkpoints / keep, content)
                checkpoint.link(self.folder.checkpoints / keep, last, keep_previous=True)
            else:
                checkpoint.save(last, content, keep_previous=True)
        distributed.barrier()

    def _check_finite(self) -> None:
        for name, parameter in self.module.network.named_parameters():
            if not torch.isfinite(parameter).all():
                raise RunError(f"weight '{name}' is not finite after step {self.engine.step}; not saved")


def _kept(strategy: Strategy) -> dict[str, Any]:
    """What a checkpoint holds of a strategy."""
    state = strategy.export_state()
    for name, value in state.items():
        checkpoint.check_plain(value, f"state '{name}' of strategy '{strategy.name}'")
    return {"parameters": strategy.state_dict(), "state": state}
