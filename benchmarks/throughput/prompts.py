"""A step of the prompt methods against training the head alone and against training all weights."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from functools import partial

from mmcl.benchmarks.throughput import kinds, networks, pocket
from mmcl.benchmarks.throughput.figures import ratios, show, summary
from mmcl.benchmarks.throughput.turns import Plan, measure
from mmcl.modules.base import Module
from mmcl.modules.image_classifier import PARTS, ImageClassifierModule, Part
from mmcl.strategies.coda_prompt import CODAPrompt
from mmcl.strategies.dual_prompt import DualPrompt
from mmcl.strategies.l2p import L2P
from mmcl.strategy import Strategy

HEAD, ALL = "the head alone", "all weights"
METHODS: dict[str, Callable[[], Sequence[Strategy]]] = {
    "L2P": lambda: [L2P()],
    "DualPrompt": lambda: [DualPrompt()],
    "CODAPrompt": lambda: [CODAPrompt()],
}


def add_arguments(parser: ArgumentParser) -> None:
    """Options of this measurement."""
    parser.add_argument("--model", default="vit_tiny_patch16_224", help="of timm (default: %(default)s)")
    parser.add_argument("--batch_size", type=int, default=8, help="pictures of a step (default: %(default)s)")


def run(arguments: Namespace, plan: Plan) -> None:
    """Measure and print: one vision transformer with random weights on batches from memory."""
    networks.place()  # before the processes part
    every: dict[str, tuple[Part, ...]] = {HEAD: ("head",), **dict.fromkeys((ALL, *METHODS), PARTS)}
    participants = {}
    for name, parts in every.items():
        setting = kinds.Setting(
            partial(_module, arguments.model, parts), kinds.pictures, arguments.batch_size, classes=kinds.CLASSES
        )
        participants[name] = pocket.fit(setting, METHODS.get(name, tuple))
    seconds, _ = measure(participants, plan)
    rows = [
        [
            name,
            summary([1000 * s / plan.steps for s in blocks]).show(),
            *("1" if name == other else ratios(blocks, seconds[other]).show(2) for other in (HEAD, ALL)),
        ]
        for name, blocks in seconds.items()
    ]
    title = f"{arguments.model}, batch {arguments.batch_size}, {plan.blocks} blocks of {plan.steps} steps each in turn"
    show(title, ["training", "CPU ms per step", HEAD, ALL], rows, plan.threads)


def _module(model: str, trainable: Sequence[Part]) -> Module:
    return ImageClassifierModule(model, random_init=True, trainable=trainable, lr=1e-4)
