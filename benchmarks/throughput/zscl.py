"""ZSCL against plain fine-tuning, with the teacher's features computed at every step or once."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from typing import Any

from mmcl.benchmarks.throughput import pocket
from mmcl.benchmarks.throughput.figures import ratios, show, summary
from mmcl.benchmarks.throughput.turns import Plan, measure
from mmcl.strategies.zscl import ZSCL
from mmcl.strategy import Strategy

PLAIN = "plain fine-tuning"


def _zscl(**changes: Any) -> Callable[[], Sequence[Strategy]]:
    """The preset's ZSCL with other caches."""
    return lambda: [ZSCL(**{**pocket.preset("zscl")["strategies"][0]["init_args"], **changes})]


VARIANTS: dict[str, Callable[[], Sequence[Strategy]]] = {
    PLAIN: tuple,
    "ZSCL, texts and images cached": _zscl(texts="all", cache_images=True),
    "ZSCL, texts cached": _zscl(texts="all", cache_images=False),
    "ZSCL, nothing cached": _zscl(texts="batch", cache_images=False),
}


def add_arguments(parser: ArgumentParser) -> None:
    """Options of this measurement."""
    size: int = pocket.preset("zscl")["data"]["batch_size"]
    parser.add_argument("--batch_size", type=int, default=size, help="pictures of a step (default: %(default)s)")
    choices = ("contrastive", "classes")
    parser.add_argument("--objective", choices=choices, default="classes", help="loss (default: %(default)s)")


def run(arguments: Namespace, plan: Plan) -> None:
    """Measure and print: the presets ``pocket/finetune`` and ``pocket/zscl`` on batches from memory."""
    setting = pocket.Setting(arguments.batch_size, arguments.objective, as_preset=True)
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
