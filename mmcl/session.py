"""One model, its strategies and its data: the same structure in a new run, a resumed one and a test."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from mmcl import checkpoint, distributed, seeds, weights
from mmcl import trainer as lightning
from mmcl.checkpoint import Progress
from mmcl.compose import Composition, check, expand, speaking
from mmcl.engine import Engine
from mmcl.errors import ConfigError, RunError
from mmcl.evaluate import Cell, evaluate
from mmcl.foresight import check_shares, foresee
from mmcl.interrupt import Flag, Interrupted
from mmcl.metrics.probes import build
from mmcl.needs import check_samples
from mmcl.outputs import Batch, Forward, move
from mmcl.reach import RunReach
from mmcl.record import Record, describe, now, versions
from mmcl.run_folder import RunFolder, digest
from mmcl.strategy import Batches, Stage, Strategy
from mmcl.stream import Task
from mmcl.test_time import check_sets, measure_in_order

logger = logging.getLogger("mmcl")

SOURCE = "source"
"""Variant of a test in which strategies adapt: the model as it was trained."""


@dataclass(frozen=True)
class RunOptions:
    """How a run is kept.

    Args:
        run_dir: the run folder.
        seed: of everything random.
        save_every: optimizer steps between checkpoints within a task; 0 saves only between tasks.
        keep_tasks: keep ``checkpoints/task-K.ckpt`` of every task.
        carry_optimizer: start each task with the last one's optimizer moments, by name and where shapes agree.
        init_from: run folder or checkpoint whose weights to start from.
        command: what the user typed, for the report.
        config: text of config.yaml, written before row 0.
        identity: what makes two runs the same; an interrupted run continues only under an equal one.
    """

    run_dir: Path
    seed: int = 0
    save_every: int = 500
    keep_tasks: bool = True
    carry_optimizer: bool = False
    init_from: str | None = None
    command: str = ""
    config: str | None = None
    identity: Mapping[str, Any] | None = None


class Session:
    """One module, its strategies and its data on one Trainer.

    Args:
        data: the stream's data (`mmcl.datamodules.StreamDataModule`).
        module: the module to train.
        strategies: any number of strategies; none is plain fine-tuning.
        trainer: a Lightning Trainer without limits of its own.
        options: the run folder and how it is kept.

    Raises:
        ConfigError: what cannot work, before anything is written.
    """

    def __init__(
        self, data: Any, module: Any, strategies: Sequence[Strategy], trainer: pl.Trainer, options: RunOptions
    ) -> None:
        self.data, self.module, self.trainer, self.options = data, module, trainer, options
        self.stream = data.stream
        self.given = list(strategies)
        self.composition = Composition(expand(strategies))
        self.engine = Engine(module, self.composition, options.seed)
        self.folder = RunFolder(options.run_dir)
        self.flag = Flag()
        self.progress = Progress()
        self._token = object()
        self.reach = RunReach(module, data, self.folder.snapshots, self.composition.snapshots(), options.seed)
        self.record: Record
        self.optimizer_state: dict[str, Any] | None = None
        self.scaler_state: dict[str, Any] | None = None
        self.reach.evaluating = self._evaluating
        self.reach.parameters = self.engine.parameters
        self.reach.wrapped = self.engine.wrapped
        self.engine.find_teacher = self.reach.teacher
        self.engine.convert = self.reach.convert = trainer.precision_plugin.convert_input
        self.engine.wants_stop = lambda: self.flag.signum != 0
        for strategy in self.composition.strategies:
            strategy.attach_reach(self.reach)

    # -- start-up -----------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Everything that can be refused before anything is written.

        Raises:
            ConfigError: one line that says what is wrong, where, and what to do.
        """
        if self.options.save_every < 0:
            every = self.options.save_every
            raise ConfigError(f"save_every is {every}; give 1 or more, or 0 to save between tasks alone")
        check(self.composition.strategies, self.module, lightning.facts(self.trainer))
        torch.manual_seed(self.options.seed)  # first values of a head that the stream brings
        self.module.check(self.stream)
        for evalset in self.stream.evals:
            build(evalset, self.module)
        buffers = any(b.is_floating_point() for b in self.module.network.buffers())
        lightning.prepare(self.trainer, buffers)
        self.data.bind(
            self.module.transform,
            seed=self.options.seed,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
            accumulate=self.trainer.accumulate_grad_batches,
            sample_tokens=self.module.sample_tokens,
            collate=self.module.collate,
            packing=self.module.packing,
        )
        self.data.check()
        idle = any(strategy.idle for strategy in self.composition.strategies)
        check_samples(self.stream, self.module, self.data, trains=not idle)
        for task in self.stream.tasks:
            check_shares(task, task.mix, self.data)

    def foresee(self) -> None:
        """What a fit will ask of its data in every task; comes after every `setup`.

        Raises:
            ConfigError: one line that says what is wrong, where, and what to do.
        """
        size = self.data.batch_size
        batches = Batches(size, size // self.trainer.accumulate_grad_batches, self.trainer.world_size)
        foresee(self.stream, self.module.objective, self.composition.strategies, self.data, batches)

    @property
    def is_main(self) -> bool:
        """Whether this process writes."""
        return bool(self.trainer.is_global_zero)

    def build(self) -> None:
        """Structure: the same in a new run, in a resumed one, in a test and in an export.

        Raises:
            ConfigError: the module or a strategy has been through this for another one.
        """
        self._check_untaken()
        self.engine.to(lightning.device(self.trainer))
        seeds.reseed(self.options.seed, "setup")
        for strategy in self.composition.of("setup"):
            with speaking(strategy):
                strategy.setup(self.stream)
        self._place()

    def _check_untaken(self) -> None:
        """Refuse objects that another run has trained, grown or filled: nothing tells their state from a new one's."""
        for given in (self.module, *self.composition.strategies):
            if given.__dict__.get("_taken_by", self._token) is not self._token:
                name = given.title if isinstance(given, Strategy) else type(given).__name__
                raise ConfigError(
                    f"{name} took part in another run, which has changed it; make a new one for each run, also to "
                    "continue one (`init_from` begins with the weights that a run ended with)"
                )

    def take(self) -> None:
        """From here on module and strategies are of this run alone; what was refused before may be tried again."""
        for given in (self.module, *self.composition.strategies):
            given.__dict__["_taken_by"] = self._token

    def set_up(self) -> None:
        """Structure, and the record of the run."""
        self.build()
        plans = [self._plan_entry(t) for t in self.stream.tasks]
        self.record = Record(self.folder, self.stream, self._header(), plans, self.is_main)

    def _place(self) -> None:
        """On the device, in the type of a half-precision Trainer."""
        self.engine.to(lightning.device(self.trainer))
        self.trainer.precision_plugin.convert_module(self.engine)

    def _header(self) -> dict[str, Any]:
        identity = self.options.identity or {}
        run = {
            "name": self.folder.path.name,
            "status": "running",
            "seed": self.options.seed,
            "command": self.options.command or " ".join(sys.argv),
            "config_hash": digest({k: v for k, v in identity.items() if "seed" not in k}),
            "created": now(),
            "finished": None,
            "versions": versions(),
            "world_size": self.trainer.world_size,
            "precision": str(self.trainer.precision),
            "device": str(lightning.device(self.trainer)),
        }
        return {"run": run, "strategies": [describe(s) for s in self.given]}

    def _plan_entry(self, task: Task) -> dict[str, Any]:
        plan = self.data.plan(task, task.mix)
        return {
            "name": task.name,
            "evaluates": task.evaluates,
            "budget": str(task.budget),
            "steps": plan.steps,
            "samples": plan.steps * self.data.batch_size,
            "own_samples": None if task.is_stream else sum(self.data.count(s) for s in task.train),
        }

    def _enter(self, task: Task) -> None:
        """Structure and meaning of a task; replayed for the tasks so far when a run is resumed."""
        self.engine.task = self.reach.task = task
        self.engine.task_index = self.stream.position(task)
        self.engine.tasks_so_far = list(self.stream.tasks[: self.engine.task_index + 1])
        seeds.reseed(self.options.seed, "grow", self.engine.task_index)
        self.module.grow(task)
        for strategy in self.composition.of("grow"):
            strategy.grow(task)
        self._place()
        self.module.objective.start(self.module, task)

    def _hook(self, name: str, task: Task) -> None:
        """`on_task_start` and `on_task_end`: on the device, in the training precision, with gradients on."""
        for strategy in self.composition.of(name):
            seeds.reseed(self.options.seed, name, self.engine.task_index, strategy.name)
            with lightning.precision(self.trainer), self.engine.evaluation_mode():
                getattr(strategy, name)(task, self._data_pass(task))
            self._stop_if_asked()

    def _data_pass(self, task: Task) -> Any:
        device = lightning.device(self.trainer)

        def run(augment: bool = False, batch_size: int | None = None, limit: int | None = None) -> Iterator[Batch]:
            for batch in self.data.pass_loader(task, augment=augment, batch_size=batch_size, limit=limit):
                yield self.engine.convert(move(batch, device))

        return run

    @contextmanager
    def _evaluating(self) -> Iterator[Forward]:
        """The network as an evaluation sees it, for strategies that measure it between tasks."""
        with self.composition.eval_weights(), self.engine.evaluating("validate") as encode:
            yield encode

    def _measure(self, stage: Stage, variant: str = "") -> list[Cell]:
        with lightning.precision(self.trainer):
            return evaluate(
                self.engine,
                self.data,
                self.stream.evals,
                lightning.device(self.trainer),
                stage,
                variant,
                self._stop_if_asked,
            )

    def _stop_if_asked(self) -> None:
        signum = distributed.agree(self.flag.signum)
        if signum:
            raise Interrupted(signum)

    def load(self, content: Mapping[str, Any], path: Path | str) -> None:
        """Rebuild the structure of the tasks so far, then fill it."""
        self.take()
        self.progress = checkpoint.progress_of(content)
        with_state = self._with_state(content, path)
        for task in self.stream.tasks[: self.progress.task + 1]:
            self._enter(task)
        checkpoint.load_state(self.module.network, content["network"], "weight", path)
        device = lightning.device(self.trainer)
        for strategy in with_state:
            saved = content["strategies"][strategy.name]
            checkpoint.load_state(strategy, saved["parameters"], f"parameter of {strategy.name}", path)
            strategy.import_state(move(saved["state"], device))
        self.optimizer_state, self.scaler_state = content["optimizer"], content["scaler"]
        self.engine.last_loss = content["last_loss"]
        self.engine.figures = dict(content["figures"])
        self.engine.step, self.engine.task_step = self.progress.step, self.progress.task_step

    def _with_state(self, content: Mapping[str, Any], path: Path | str) -> list[Strategy]:
        """The strategies that find a state of theirs in a checkpoint.

        Raises:
            ConfigError: it is of other strategies.
        """
        for name in content["strategies"].keys() - self.engine.strategies.keys():
            raise ConfigError(f"{path} was trained with strategy '{name}', which this configuration lacks")
        found = []
        for strategy in self.composition.strategies:
            if strategy.name in content["strategies"]:
                found.append(strategy)
            elif not strategy.adapts_at_test or strategy.state_dict() or strategy.export_state():
                known = ", ".join(content["strategies"]) or "none"  # what keeps nothing may come for the test alone
                raise ConfigError(f"{path} has no state of strategy '{strategy.name}' (it has: {known})")
        return found

    def load_network(self, where: str) -> None:
        """Start weights out of a run folder, a checkpoint or a safetensors file.

        Raises:
            ConfigError: nothing is there, or it is of another architecture.
        """
        path = Path(where)
        path = path / "checkpoints" / "last.ckpt" if path.is_dir() else path
        if not path.exists():
            raise ConfigError(f"--init_from {where}: {path} does not exist")
        try:
            safe = path.suffix == ".safetensors"
            found = checkpoint.load_weights(path) if safe else checkpoint.load(path)["network"]
        except RunError as error:
            raise ConfigError(f"--init_from {where}: {error}") from error
        if any(weights.canonical(name) != name for name in found):
            hint = "fold them in: `mmcl export RUN --to FOLDER --format safetensors`, then FOLDER/model.safetensors"
            raise ConfigError(f"--init_from {where}: {path} holds adapters beside the weights; {hint}")
        checkpoint.load_state(self.module.network, found, "weight", path)

    # -- test --------------------------------------------------------------------------------------------------------

    def test(self, ckpt_path: str, stage: Stage = "test", variants: bool = True) -> dict[str, list[Cell]]:
        """Measure a checkpoint of this run: ``last``, ``task-K`` or a path.

        Strategies that adapt at test do so one by one, each from the trained weights: the first one's scores are the
        default, the others' stand under their names, and ``source`` is the model unadapted.

        Returns:
            Variant of the evaluation weights (``""`` is the default one) -> cells.
        """
        self.check()
        with self.flag.watching():
            return lightning.launch(self.trainer, lambda: self._test(ckpt_path, stage, variants))

    def _test(self, ckpt_path: str, stage: Stage, variants: bool) -> dict[str, list[Cell]]:
        path, content = self.read(ckpt_path)
        self.set_up()
        self.load(content, path)
        adapters = self.composition.adapters() if stage == "test" and variants else []
        names = [*([] if adapters else [""]), *(self.composition.variants() if variants else [])]
        return {**self._adapted(adapters), **{name: self._measure(stage, name) for name in names}}

    def _adapted(self, adapters: Sequence[Strategy]) -> dict[str, list[Cell]]:
        if not adapters:
            return {}
        check_sets(self.stream.evals, self.module)
        rows = {SOURCE: None, **{strategy.name: strategy for strategy in adapters}}
        found = {}
        for name, adapter in rows.items():
            with lightning.precision(self.trainer):
                cells = measure_in_order(self.engine, self.data, self.stream.evals, adapter, self._stop_if_asked)
            found[name] = cells
        first = adapters[0].name
        return {"": found.pop(first), **found}

    def read(self, ckpt_path: str) -> tuple[Path, dict[str, Any]]:
        """A checkpoint that was asked for.

        Raises:
            ConfigError: there is none, or it is damaged; the message lists the others.
        """
        path = self.resolve(ckpt_path)
        try:
            return path, checkpoint.load(path)
        except RunError as error:
            raise ConfigError(f"{error}; choose another --ckpt_path: {self._kept(but=path)}") from error

    def _kept(self, but: Path | None = None) -> str:
        """The checkpoints that there are, for a message."""
        found = self.folder.checkpoints.glob("*.ckpt") if self.folder.path.exists() else ()
        return ", ".join(sorted(p.stem for p in found if p != but)) or "none"

    def resolve(self, ckpt_path: str) -> Path:
        """The file behind ``last``, ``task-K`` or a path.

        Raises:
            ConfigError: there is no such checkpoint; the message lists those that exist.
        """
        path = self.folder.checkpoints / f"{ckpt_path}.ckpt" if not Path(ckpt_path).suffix else Path(ckpt_path)
        if not path.exists():
            raise ConfigError(f"no checkpoint {path}; there are: {self._kept()}")
        return path
