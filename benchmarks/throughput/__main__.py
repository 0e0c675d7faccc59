"""The command line of the measurements."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mmcl.benchmarks.throughput import (
    averages,
    index,
    kind,
    merges,
    prompts,
    reader,
    scale,
    startup,
    step,
    strategies,
    zscl,
)
from mmcl.benchmarks.throughput.turns import Plan

MEASUREMENTS = {
    "step": step,
    "kind": kind,
    "zscl": zscl,
    "averages": averages,
    "strategies": strategies,
    "prompts": prompts,
    "merges": merges,
    "startup": startup,
    "reader": reader,
    "index": index,
    "scale": scale,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run one measurement; `step` where none is named."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments:
        arguments = ["step"]
    parser = argparse.ArgumentParser(prog="python -m mmcl.benchmarks.throughput", description=__doc__)
    commands = parser.add_subparsers(dest="measurement", required=True)
    for name, module in MEASUREMENTS.items():
        command = commands.add_parser(name, help=(module.__doc__ or "").strip(), description=module.__doc__)
        command.add_argument("--blocks", type=int, default=10, help="blocks of each kind (default: %(default)s)")
        command.add_argument("--steps", type=int, default=100, help="steps of a block (default: %(default)s)")
        command.add_argument("--turn", type=int, default=4, help="steps of a turn (default: %(default)s)")
        command.add_argument("--warm_up", type=int, default=10, help="steps that do not count (default: %(default)s)")
        command.add_argument("--threads", type=int, default=1, help="threads of torch (default: %(default)s)")
        module.add_arguments(command)
    given = parser.parse_args(arguments)
    for option in ("blocks", "steps", "turn", "warm_up", "threads"):
        if getattr(given, option) < 1:
            parser.error(f"--{option} must be 1 or more")
    if given.steps % given.turn:
        parser.error(f"--steps {given.steps} must be a multiple of --turn {given.turn}")
    plan = Plan(given.blocks, given.steps, given.turn, given.warm_up, given.threads)
    MEASUREMENTS[given.measurement].run(given, plan)


if __name__ == "__main__":
    main()
