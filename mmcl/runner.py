"""Walks one model through a stream: evaluate, train, evaluate, save; and continues where an interrupted run stopped."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmcl import checkpoint, distributed
from mmcl import trainer as lightning
from mmcl.errors import MmclError, RunError
from mmcl.evaluate import Cell
from mmcl.metrics.probes import build
from mmcl.record import peak_memory
from mmcl.run_folder import MetricsLog, write_text
from mmcl.session import RunOptions
from mmcl.stream import Task
from mmcl.training import Training

__all__ = ["RunOptions", "Runner"]

logger = logging.getLogger("mmcl")


class Runner(Training):
    """A session that walks through the whole stream."""

    _begun = False

    # -- fit ---------------------------------------------------------------------------------------------------------

    def fit(self) -> dict[str, Any]:
        """Walk through the stream, from the start or from where an interrupted run stopped.

        Returns:
            The contents of results.json.

        Raises:
            ConfigError: refused at start-up.
            RunError: a fault while running; the folder can be continued.
            Interrupted: a signal; the state is saved.
        """
        self.check()
        self.folder.check_identity(self.options.identity or {})
        if self.options.init_from is not None and not any(self.folder.checkpoints.glob("*.ckpt")):
            self.load_network(self.options.init_from)
        with self.folder.locked() if self.is_main else nullcontext(), self.flag.watching():
            self.folder.check_identity(self.options.identity or {})  # again: another run may have ended there just now
            finished = self.folder.read_results()
            if finished is not None and finished["run"]["status"] == "finished":
                logger.warning(
                    "%s is finished; nothing to do (choose another --run_dir to run again)", self.folder.path
                )
                return finished
            try:
                return lightning.launch(self.trainer, self._fit)
            except MmclError as error:
                if not self._begun and not isinstance(error, RunError):
                    raise
                raise self._fault(error) from error

    def _fault(self, error: MmclError) -> MmclError:
        """What a fault while running says: what remains of the run."""
        last = self.folder.checkpoints / "last.ckpt"
        good = f"last good checkpoint: {last}" if last.exists() else "no checkpoint was written yet"
        return RunError(f"{error}; {good}")

    def _fit(self) -> dict[str, Any]:
        found = checkpoint.load_newest(self.folder.checkpoints)
        distributed.barrier()  # none writes there before all have looked
        self.set_up()
        self.foresee()
        if found is None:
            self._begin()
        else:
            self._resume(*found)
        self._begun = True
        for index in range(max(self.progress.task, 0), len(self.stream.tasks)):
            if index == self.progress.task and self.progress.phase == "evaluated":
                continue
            self._run_task(index)
        self.record.write(finished=True)
        return self.record.data

    def _begin(self) -> None:
        self.take()
        if self.is_main:
            self.folder.write_identity(self.options.identity or {})
            if self.options.config is not None:
                write_text(self.folder.path / "config.yaml", self.options.config)
        self.metrics = MetricsLog(self.folder.metrics, 0, self.is_main)
        self.reach.take("initial")
        self._begun = True
        self._scores(self._row(0))
        self._save("initial")

    def _resume(self, path: Path, content: Mapping[str, Any]) -> None:
        progress = checkpoint.progress_of(content)
        self.load(content, path)
        if self.is_main:
            checkpoint.promote(path)
        if progress.phase == "started":
            self._check_readers()
        self.metrics = MetricsLog(self.folder.metrics, progress.metrics_offset, self.is_main)
        rows = progress.task + 2 if progress.phase == "evaluated" else max(progress.task, 0) + 1
        self.record.resume(rows, progress.task, progress.segment)
        if len(self.record.rows) < rows:
            raise RunError(f"{self.folder.results} lacks rows that {path} covers; choose another --run_dir")
        name = "the start" if progress.task < 0 else f"task '{self.stream.tasks[progress.task].name}'"
        logger.info("continuing %s from %s, step %d", self.folder.path, name, progress.step)

    # -- one task ----------------------------------------------------------------------------------------------------

    def _run_task(self, index: int) -> None:
        task = self.stream.tasks[index]
        fresh = index != self.progress.task
        if fresh:
            self.progress = replace(
                self.progress,
                task=index,
                phase="started",
                task_step=0,
                segment=0,
                segment_step=0,
                task_steps=0,
                train_seconds=0.0,
                positions={},
                readers=[],
            )
            self._enter(task)
            self._hook("on_task_start", task)
            self.reach.take("start")
            if not self.options.carry_optimizer:
                self.optimizer_state = None
        self.engine.task_step = self.progress.task_step
        if self.progress.phase == "started":
            self._train(task, carried=fresh)
            self.progress = replace(self.progress, phase="trained", train_seconds=self._train_seconds())
            if self.composition.of("on_task_end"):
                self._save("trained")
        if self.progress.phase == "trained":
            self._hook("on_task_end", task)
            self.progress = replace(self.progress, phase="ended")
            self.reach.take(f"task-{index + 1}")
            self._save("ended", keep=f"task-{index + 1}.ckpt")
        self._finish(index, task)

    def _finish(self, index: int, task: Task) -> None:
        began, seconds = time.perf_counter(), self.progress.train_seconds
        cells = self._row(index + 1)
        plan = self.record.data["stream"]["tasks"][index]
        steps = self.engine.task_step
        self.record.data["tasks"].append(
            {
                "name": task.name,
                "train_seconds": round(seconds, 3),
                "eval_seconds": round(time.perf_counter() - began, 3),
                "samples_per_second": round(steps * self.data.batch_size / seconds, 1) if steps and seconds else None,
                "peak_memory_bytes": peak_memory(lightning.device(self.trainer)),
                "steps": steps,
                "final_loss": self.engine.last_loss if steps else None,
                "shares": {s.name: parts for s in self.composition.strategies if (parts := dict(s.shares()))},
            }
        )
        self.record.write()
        self._scores(cells)
        self.progress = replace(self.progress, phase="evaluated")
        self._save("evaluated")
        own = next((c.result.value for c in cells if c.evalset == plan["evaluates"]), None)
        shown = "" if own is None else f", {task.evaluates} {own:.4f}"
        logger.info(
            "task %d/%d %s: %d steps in %.1f s%s", index + 1, len(self.stream.tasks), task.name, steps, seconds, shown
        )

    def _row(self, row: int) -> list[Cell]:
        cells = self._measure("test")
        self.record.rows = self.record.rows[:row]
        self.record.add_row(cells, {e.name: build(e, self.module) for e in self.stream.evals})
        self.record.write()
        task = self.stream.tasks[row - 1].name if row else None
        self.metrics.write("row", row=row, task=task, scores={c.evalset: c.result.value for c in cells})
        return cells
