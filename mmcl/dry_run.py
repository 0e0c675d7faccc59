"""What a run would do: tasks, counts, disk, and the time of a few real steps."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mmcl.errors import ConfigError, MmclError
from mmcl.evaluate import Cell
from mmcl.runner import Runner, RunOptions
from mmcl.stream import Budget, Task

STEPS = 3


class _Timed(Runner):
    """Starts up as the whole run would, then trains a few steps of one task and measures nothing."""

    timed: Task

    def _run_task(self, index: int) -> None:
        task = self.stream.tasks[index]
        if task is self.timed:
            super()._run_task(index)
        elif index < self.stream.position(self.timed):
            self._enter(task)

    def _train(self, task: Task, carried: bool) -> None:
        super()._train(replace(task, budget=Budget(steps=STEPS), segment=task.segment and STEPS), carried)

    def _row(self, row: int) -> list[Cell]:
        return []

    def _scores(self, cells: Sequence[Cell]) -> None: ...

    def _fault(self, error: MmclError) -> MmclError:
        return ConfigError(f"{error}; dry run: nothing was written")


def dry_run(runner: Runner) -> str:
    """Check everything, time a few steps of the first task in a temporary folder, and say what the run would take.

    Args:
        runner: a runner that has not run.

    Returns:
        Lines for the terminal. Nothing is written to the run folder.
    """
    if runner.trainer.world_size > 1:
        raise ConfigError("--dry_run runs in one process; add --trainer.devices 1")
    runner.check()
    stream, data = runner.stream, runner.data
    lines = [f"stream {stream.name}: {len(stream.tasks)} tasks, {len(stream.evals)} evaluation sets"]
    total = 0
    for i, task in enumerate(stream.tasks, 1):
        plan = data.plan(task, task.mix)
        own = "a stream of" if task.is_stream else sum(data.count(s) for s in task.train)
        total += plan.steps
        lines.append(f"  task {i} {task.name}: {own} samples, {task.budget}, {plan.steps} steps of {data.batch_size}")
    for evalset in stream.evals:
        lines.append(f"  evaluation {evalset.name} ({evalset.group}): {data.count(evalset.source)} samples")
    parameters = sum(p.numel() for p in runner.module.network.parameters())
    network = sum(p.numel() * p.element_size() for p in runner.module.network.parameters())
    snapshots = len(runner.composition.snapshots())
    disk = network * (2 * 3 + len(stream.tasks) * runner.options.keep_tasks + snapshots)
    lines.append(f"network: {parameters / 1e6:.2f} M parameters; checkpoints and snapshots: about {disk / 1e6:.0f} MB")
    seconds = _seconds_per_step(runner)
    if seconds is not None:
        lines.append(f"time: {seconds:.3f} s a step here, about {total * seconds / 60:.1f} minutes of training in all")
    lines.append("dry run: nothing was written")
    return "\n".join(lines)


def _seconds_per_step(runner: Runner) -> float | None:
    first = next((t for t in runner.stream.tasks if runner.data.plan(t, t.mix).steps > 0), None)
    if first is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        options = RunOptions(run_dir=Path(folder) / "dry", seed=runner.options.seed, save_every=0, keep_tasks=False)
        timed = _Timed(runner.data, runner.module, runner.given, runner.trainer, options)
        timed.timed = first
        results = timed.fit()
    rate = results["tasks"][0]["samples_per_second"]
    return None if rate is None else runner.data.batch_size / float(rate)
