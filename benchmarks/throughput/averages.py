"""What averages of weights add to a training step."""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable

import torch

from mmcl import weights
from mmcl.benchmarks.throughput import pocket
from mmcl.benchmarks.throughput.figures import Figure, ratios, show, summary
from mmcl.benchmarks.throughput.turns import Plan, measure
from mmcl.functional.averaging import ema, interpolate, running_average
from mmcl.strategies.momentum_interpolation import MomentumInterpolation
from mmcl.strategies.weight_ensemble import WeightEnsemble

PLAIN = "plain fine-tuning"
CALLS = 200


def add_arguments(parser: ArgumentParser) -> None:
    """Options of this measurement."""
    parser.add_argument("--batch_size", type=int, default=20, help="pairs of a step (default: %(default)s)")


def run(arguments: Namespace, plan: Plan) -> None:
    """Measure and print: strategies that average after every step, and one call of each average by itself."""
    setting = pocket.Setting(arguments.batch_size)
    participants = {
        PLAIN: pocket.fit(setting),
        "WeightEnsemble(interval=1)": pocket.fit(setting, lambda: [WeightEnsemble(interval=1)]),
        "MomentumInterpolation(interval=1)": pocket.fit(setting, lambda: [MomentumInterpolation(interval=1)]),
    }
    seconds, _ = measure(participants, plan)
    per_step = {name: [1000 * s / plan.steps for s in blocks] for name, blocks in seconds.items()}
    step = summary(per_step[PLAIN])
    rows = [[PLAIN, step.show(2), ""]]
    for name in list(participants)[1:]:
        added = summary([v - b for v, b in zip(per_step[name], per_step[PLAIN], strict=True)])
        share = ratios(per_step[name], per_step[PLAIN])
        percent = Figure(*(100 * (x - 1) for x in (share.median, share.low, share.high)))
        rows.append([name, added.show(2, "+"), f"{percent.show(2, '+')} %"])
    for name, call in _calls(setting, plan.threads).items():
        cost = summary([1000 * s for s in _repeat(call)])
        rows.append([f"one call of {name}", cost.show(2), f"{100 * cost.median / step.median:.2f} %"])
    title = f"Averages of weights, batch {setting.batch_size}, {plan.blocks} blocks of {plan.steps} steps each in turn"
    show(title, ["training", "CPU ms per step", "share of a step"], rows, plan.threads)


def _calls(setting: pocket.Setting, threads: int) -> dict[str, Callable[[], object]]:
    torch.set_num_threads(threads)
    network = setting.module().network
    live, average = weights.read(network), weights.read(network, copy=True)
    return {
        "running_average": lambda: running_average(average, live, count=9),
        "ema": lambda: ema(average, live, decay=0.999),
        "interpolate": lambda: interpolate(average, live, alpha=0.5),
    }


def _repeat(call: Callable[[], object]) -> list[float]:
    found = []
    for _ in range(CALLS):
        began = time.process_time()
        call()
        found.append(time.process_time() - began)
    return found
