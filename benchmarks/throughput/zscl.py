"""ZSCL against plain fine-tuning, with the teacher's features computed at every step or once."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence

from mmcl.benchmarks.throughput import pocket
from mmcl.benchmarks.throughput.figures import ratios, show, summary
from mmcl.benchmarks.throughput.turns import Plan, measure
from mmcl.strategies.zscl import ZSCL
from mmcl.strategy import Strategy

PLAIN = "plain fine-tuning"
VARIANTS: dict[str, Callable[[], Sequence[Strategy]]] = {
    PLAIN: tuple,
    "ZSCL, texts and images cached": lambda: [ZSCL(texts="all", cache_images=True)],
    "ZSCL, texts cached": lambda: [ZSCL(texts="all")],
    "ZSCL, nothing cached": lambda: [ZSCL(texts="batch")],
}


def add_arguments(parser: ArgumentParser) -> None:
    """Options of this measurement."""
    pocket.add_setting(parser, batch_size=64)


def run(arguments: Namespace, plan: Plan) -> None:
    """Measure and print."""
    setting = pocket.setting_of(arguments)
    seconds, _ = measure({name: pocket.fit(setting, build) for name, build in VARIANTS.items()}, plan)
    rows = [
        [
            name,
            summary([1000 * s / plan.steps for s in blocks]).show(),
            "1" if name == PLAIN else ratios(blocks, seconds[PLAIN]).show(3),
        ]
        for name, blocks in seconds.items()
    ]
    title = (
        f"ZSCL, {setting.objective} objective, batch {setting.batch_size} and as many reference images, "
        f"{plan.blocks} blocks of {plan.steps} steps each in turn"
    )
    show(title, ["training", "CPU ms per step", "ratio"], rows, plan.threads)
