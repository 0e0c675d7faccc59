"""fit, validate, test and predict: LightningCLI, with the runner behind it."""

from __future__ import annotations

import json
import logging
import shlex
import sys
import warnings
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from mmcl import distributed, plugins, presets
from mmcl import trainer as lightning
from mmcl.dry_run import dry_run
from mmcl.errors import ConfigError, MmclError, RunError, out_of_memory
from mmcl.evaluate import Cell
from mmcl.export import Export, export
from mmcl.flags import resolved, written_out
from mmcl.interrupt import Interrupted
from mmcl.modules.base import Module
from mmcl.predict import predict
from mmcl.report.build import build_report
from mmcl.report.results import Results
from mmcl.report.text import final_table
from mmcl.runner import Runner, RunOptions
from mmcl.strategy import Strategy
from mmcl.wording import check_finite, check_keys, reword

logger = logging.getLogger("mmcl")

NOT_IDENTITY = (
    "config",
    "run_dir",
    "dry_run",
    "save_every",
    "keep_tasks",
    "data.workers",
    "data.pin_memory",
    "data.eval_batch_size",
    "data.cache_dir",
    "data.cache_gb",
    *(
        f"trainer.{key}"
        for key in [
            "accelerator",
            "strategy",
            "devices",
            "num_nodes",
            "logger",
            "callbacks",
            "log_every_n_steps",
            "enable_progress_bar",
            "profiler",
            "enable_model_summary",
            "enable_checkpointing",
            "default_root_dir",
            "barebones",
            "detect_anomaly",
            "num_sanity_val_steps",
            "use_distributed_sampler",
            "model_registry",
            "enable_autolog_hparams",
        ]
    ),
)
"""Keys that do not change the result: a run may be continued with others."""


class ParserError(ConfigError):
    """What the parser found, in its own words."""


class Parser(LightningArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raise instead of printing the usage."""
        raise _own(ex) or ParserError(" ".join(message.split())) from ex


def _own(error: BaseException | None) -> MmclError | None:
    """The error of ours behind a chain of others: jsonargparse wraps what constructors raise."""
    while error is not None:
        if isinstance(error, MmclError):
            return error
        error = error.__cause__ or error.__context__
    return None


class MmclCLI(LightningCLI):
    """`mmcl fit|validate|test|predict`: every constructor argument is a YAML key and a flag."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The Trainer's methods; what belongs to the stream is not asked for."""
        own = {"model", "datamodule", "verbose", "weights_only", "return_predictions"}
        loaders = {"train_dataloaders", "val_dataloaders", "dataloaders"}
        return {
            "fit": own | loaders | {"ckpt_path"},
            "validate": own | loaders,
            "test": own | loaders,
            "predict": own | loaders,
        }

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The arguments of a run, beside model, data and trainer."""
        parser.add_argument("--strategies", type=list[Strategy], default=[], help="Any number; none is fine-tuning.")
        parser.add_argument("--run_dir", type=str, default="runs/run", help="The run folder.")
        parser.add_argument("--save_every", type=int, default=500, help="Steps between checkpoints within a task.")
        parser.add_argument("--keep_tasks", type=bool, default=True, help="Keep the checkpoint of every task.")
        parser.add_argument("--carry_optimizer", type=bool, default=False, help="Keep moments from task to task.")
        parser.add_argument("--init_from", type=str | None, default=None, help="Run or checkpoint to start from.")
        parser.add_argument("--dry_run", action="store_true", help="Say what would be done; write nothing.")

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """Lightning's, which describes the Trainer's method; here mmcl's own words stand."""
        description = " ".join((getattr(type(self), subcommand).__doc__ or "").split())
        parser = super()._prepare_subcommand_parser(klass, subcommand, **{**kwargs, "description": description})
        for group in parser._action_groups:
            for action in group._group_actions:
                if action.dest == "ckpt_path":
                    group.title = f"Options of mmcl {subcommand}"
                    action.help = "last, task-K or a path; without it: last."
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and word what is wrong for the user."""
        command, *rest = args
        options = [action.dest for action in self._parser(command)._actions]
        configs = [json.loads(value) for name, value in pairwise(rest) if name == "--config"]
        flags = [item.partition("=")[0] for item in rest if item.startswith("--")]
        for config in configs:
            check_keys(config, {name.partition(".")[0] for name in options}, flags)
        args = [command, *resolved(rest, configs)]
        try:
            super().parse_arguments(parser, args)
        except ParserError as error:
            raise ConfigError(reword(str(error), configs, options, flags)) from error
        seed = self.config[command].seed_everything
        if not 0 <= seed < 2**32:
            raise ConfigError(f"seed_everything is {seed}; it must be a whole number from 0 to {2**32 - 1}")

    def instantiate_classes(self) -> None:
        """Build everything; what a constructor refuses is refused in one line."""
        try:
            super().instantiate_classes()
        except MmclError:
            raise
        except ValueError as error:
            raise _own(error) or ConfigError(reword(" ".join(str(error).split()), (), ())) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer; what Lightning refuses is refused in one line."""
        try:
            return super().instantiate_trainer(**kwargs)
        except MmclError:
            raise
        except (MisconfigurationException, ValueError, TypeError) as error:
            raise ConfigError(f"trainer: {' '.join(str(error).split())}") from error

    def _parse_ckpt_path(self) -> None:
        """Checkpoints never override the command line."""

    def before_instantiate_classes(self) -> None:
        """Keep the configuration as it was typed: it is the run's identity. A stream without a seed takes the run's."""
        config: Namespace = self.config[self.subcommand]
        dumped = self._parser(self.subcommand).dump(config, skip_link_targets=False, skip_unset=False)
        self.typed: dict[str, Any] = yaml.safe_load(dumped)
        check_finite(self.typed)
        stream = config.data.stream
        while stream is not None:  # a stream may be made of another one
            arguments = stream.get("init_args") or {}
            if "seed" in arguments and arguments["seed"] is None:
                arguments["seed"] = config.seed_everything
            stream = arguments.get("stream")

    def runner(self) -> Runner:
        """The runner of this command's configuration."""
        given = self.config_init[self.subcommand]
        options = RunOptions(
            run_dir=Path(given["run_dir"]),
            seed=int(given["seed_everything"]),
            save_every=given["save_every"],
            keep_tasks=given["keep_tasks"],
            carry_optimizer=given["carry_optimizer"],
            init_from=given["init_from"],
            command="mmcl " + shlex.join(sys.argv[1:]) if sys.argv[1:] else "",
            config=f"# mmcl {self.subcommand} --config {given['run_dir']}/config.yaml\n"
            + yaml.safe_dump({k: v for k, v in self.typed.items() if k not in ("config", "dry_run")}, sort_keys=False),
            identity=identity(self.typed),
        )
        return Runner(self.datamodule, self.model, given["strategies"], self.trainer, options)

    def fit(self, **_: Any) -> None:
        """Train a model on a stream; the same command continues an interrupted run.

        `--seeds 0,1,2` makes one run for each seed, in <run_dir>/seed-N.
        """
        runner = self.runner()
        if self.config_init["fit"]["dry_run"]:
            print(dry_run(runner))
            return
        results = runner.fit()
        if runner.is_main and not runner.stream.evals:
            print(f"{runner.folder.path}: trained; the stream has no evaluation sets, so there are no scores to show")
        elif runner.is_main:
            print(final_table(Results.from_json(results)))
            print(build_report([runner.folder.path], runner.folder.path))

    def test(self, ckpt_path: str | None = "last", **_: Any) -> None:
        """Score a checkpoint on the full evaluation sets."""
        self._score("test", ckpt_path)

    def validate(self, ckpt_path: str | None = "last", **_: Any) -> None:
        """Score a checkpoint on the fixed subsets."""
        self._score("validate", ckpt_path)

    def _score(self, stage: Any, ckpt_path: str | None) -> None:
        runner = self.runner()
        cells = runner.test(ckpt_path or "last", stage, variants=stage == "test")
        if not runner.is_main:
            return
        path = runner.resolve(ckpt_path or "last")
        out = runner.folder.path / f"{stage}-{path.stem}.json"
        adapted = next((s.name for s in runner.composition.adapters()), "") if "source" in cells else ""
        scores = {name or "default": {c.evalset: _cell(c) for c in row} for name, row in cells.items()}
        text = json.dumps(
            {
                "format": "mmcl.scores/1",
                "checkpoint": str(path),
                "stage": stage,
                **({"adapted_by": adapted} if adapted else {}),
                "scores": scores,
            },
            indent=1,
        )
        out.write_text(text + "\n", encoding="utf-8")
        for name, row in cells.items():
            shown = name or adapted
            print(f"{path.stem}{f' [{shown}]' if shown else ''}")
            for cell in row:
                print(f"  {cell.evalset:<28} {cell.result.value:.6f}  n={cell.result.count}")
        print(out)

    def predict(self, ckpt_path: str | None = "last", **_: Any) -> None:
        """Write a checkpoint's predictions on the evaluation sets, one JSON line for each sample."""
        for path in predict(self.runner(), ckpt_path or "last"):
            print(path)


class ExportCLI(MmclCLI):
    """`mmcl export`: the command line of `predict`, another end."""

    wanted: Export

    def predict(self, ckpt_path: str | None = "last", **_: Any) -> None:
        """Write the model of a checkpoint for its peer library."""
        print(export(self.runner(), ckpt_path or "last", self.wanted))


def run_export(run: Path, ckpt_path: str, wanted: Export) -> int:
    """Export a run's model; returns the exit code."""
    config = run / "config.yaml"
    if not config.is_file():
        raise ConfigError(f"{run} is no run folder: it has no config.yaml")
    cli = type("ExportCLI", (ExportCLI,), {"wanted": wanted})
    arguments = ["--config", str(config), "--run_dir", str(run), "--ckpt_path", ckpt_path, "--trainer.logger", "false"]
    for key, value in (("devices", "1"), ("num_nodes", "1"), ("strategy", "auto")):  # however many processes trained it
        arguments += [f"--trainer.{key}", value]
    return run_command("predict", arguments, cli)


def _cell(cell: Cell) -> dict[str, Any]:
    return {"value": cell.result.value, "count": cell.result.count, "metrics": cell.result.metrics}


def identity(typed: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a configuration that decides the result."""
    kept: dict[str, Any] = {}
    for key, value in typed.items():
        if key in NOT_IDENTITY:
            continue
        if isinstance(value, Mapping):
            value = {k: v for k, v in value.items() if f"{key}.{k}" not in NOT_IDENTITY}
        kept[key] = value
    return kept


def run_command(command: str, arguments: list[str], cli: type[MmclCLI] = MmclCLI) -> int:
    """Parse and run one of the Trainer's commands; returns the exit code."""
    quiet()
    folder, arguments = presets.default_run_dir(arguments)
    arguments = written_out(arguments)
    if _helped(arguments):
        return 0
    if not any(item.partition("=")[0].endswith(".help") for item in arguments):  # nothing may follow it
        arguments += ["--run_dir", str(folder)]
    wanted = {command: cli.subcommands()[command]}  # the parsers of the others take time to build
    try:
        type(cli.__name__, (cli,), {"subcommands": staticmethod(lambda: wanted)})(
            Module,
            plugins.load("datamodules", "StreamDataModule"),
            subclass_mode_model=True,
            save_config_callback=None,
            trainer_defaults=lightning.DEFAULTS,
            seed_everything_default=0,
            parser_class=Parser,
            parser_kwargs={"prog": "mmcl"},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=[command, *arguments],
        )
    except (RuntimeError, MemoryError) as error:
        words = out_of_memory(error)
        if isinstance(error, RuntimeError) and distributed.lost_peer(error):
            words = "another process of this run ended; run the same command again"
        if not words:
            raise
        last = folder / "checkpoints" / "last.ckpt"
        good = f"; last good checkpoint: {last}" if last.exists() else ""
        raise RunError(f"{words}{good}") from error
    except Interrupted as stop:
        logger.warning("%s; the same command continues the run", stop)
        distributed.leave()
        return stop.exit_code
    distributed.leave()
    return 0


def _helped(arguments: list[str]) -> bool:
    """Print what `--data.stream.help` asks for of a function; the parser itself explains classes alone."""
    option, _, path = arguments[-1].partition("=") if arguments else ("", "", "")
    if option != "--data.stream.help":
        return False
    benchmark = plugins.load("benchmarks", path)
    if isinstance(benchmark, type):
        return False
    parser = ArgumentParser(prog="mmcl", description=f"Help for {option}={path}")
    parser.add_function_arguments(benchmark, "data.stream")
    parser.print_help()
    return True


def quiet() -> None:
    """Leave out what says nothing to a user of streams."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LightningCLI's args parameter.*")
    warnings.filterwarnings("ignore", message=".*instantiate_classes.. was deprecated.*")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    logging.getLogger("root").addFilter(lambda record: "No pretrained weights" not in record.getMessage())
