"""What each strategy adds to a training step, and the size of what it keeps."""

from __future__ import annotations

import logging
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mmcl import plugins, weights
from mmcl import trainer as lightning
from mmcl.benchmarks.throughput import kinds, networks, pocket
from mmcl.benchmarks.throughput.figures import Figure, facts, ratios, summary
from mmcl.benchmarks.throughput.turns import Participant, Plan, measure
from mmcl.datamodules import StreamDataModule
from mmcl.errors import MmclError
from mmcl.runner import Runner, RunOptions
from mmcl.strategy import DataPass, StepContext, Strategy
from mmcl.stream import Budget, Stream, Task

PLAIN = "plain fine-tuning"
ARGUMENTS: Mapping[str, Mapping[str, Any]] = {
    name: {"size": 64} for name in ("AGEM", "DERPlusPlus", "ExperienceReplay", "GEM")
}
"""What strategies need that have arguments without defaults; all others are measured at their defaults."""
BEFORE = 2
"""Steps of a task before the measured one: what a strategy does often begins with the second task."""
SETTINGS: Mapping[str, pocket.Trainable] = {"clip": pocket.Setting(20), **kinds.KINDS}
"""Modules, in the order in which they are tried; a strategy is measured on the first that it serves."""


@dataclass(frozen=True)
class Sizes:
    """Bytes that a strategy keeps.

    Attributes:
        state: most of its state and parameters, at the end of the training steps or of the task.
        snapshots: of the weights in the run folder.
        network: of the weights.
    """

    state: int
    snapshots: int
    network: int


class SecondTask(pocket.Measured):
    """Batches of the second task lie in memory, and the gate ticks before them."""

    def train_loader(self, task: Task, *arguments: Any, **options: Any) -> Any:
        """The stream's own loader, and `pocket.Preloaded` in the second task."""
        if task is self.stream.tasks[0]:
            return StreamDataModule.train_loader(self, task, *arguments, **options)
        return super().train_loader(task, *arguments, **options)


class Scales(Strategy):
    """Weighs what the others keep; plain training carries it too."""

    def __init__(self) -> None:
        super().__init__()
        self.others: Sequence[Strategy] = ()
        self.most = 0

    def on_step_end(self, context: StepContext) -> None:
        """At the last step, what the task's end takes away is there still."""
        if context.task_step + 1 == context.task_steps:
            self._weigh()

    def on_task_end(self, task: Task, data: DataPass) -> None:
        """After the others: what they keep between tasks."""
        self._weigh()

    def _weigh(self) -> None:
        kept = [[s.export_state(), dict(s.named_parameters())] for s in self.others]
        self.most = max(self.most, _bytes(tensors(kept)))


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor in a structure."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from tensors(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from tensors(inner)


def _bytes(found: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in found)


def twice(data: StreamDataModule) -> StreamDataModule:
    """The data with a short task before the measured one."""
    (task,) = data.stream.tasks
    first = replace(task, name="before", budget=Budget(steps=BEFORE))
    return StreamDataModule(Stream(data.stream.name, [first, task], sources=data.stream.sources), data.batch_size)


def trained(setting: pocket.Trainable, name: str, data: StreamDataModule) -> tuple[Sizes, int]:
    """Train with a strategy (the empty name: none); what it kept, and the steps of the second task."""
    chosen = [plugins.load("strategies", name)(**ARGUMENTS.get(name, {}))] if name else []
    scales = Scales()
    with tempfile.TemporaryDirectory() as folder:
        options = RunOptions(run_dir=Path(folder) / "run", save_every=0, command="throughput")
        trainer = lightning.make(accelerator="cpu", enable_progress_bar=False)
        runner = Runner(data, setting.module(), [*chosen, scales], trainer, options)
        scales.others = [s for s in runner.composition.strategies if s is not scales]
        results = runner.fit()
        snapshots = sum(file.stat().st_size for file in runner.folder.snapshots.glob("*.safetensors"))
    network = _bytes(weights.read(runner.module.network).values())
    return Sizes(scales.most, snapshots, network), results["tasks"][1]["steps"]


def fit(setting: pocket.Trainable, name: str) -> Participant:
    """A participant that trains two tasks through the runner and returns the sizes."""
    return lambda gate: trained(setting, name, SecondTask(twice(setting.data(gate.plan.total)), gate))[0]


def serving(name: str) -> tuple[str, str]:
    """(name of the first setting that a strategy trains, empty) or (empty, why there is none)."""
    reason = ""
    for title, setting in SETTINGS.items():
        try:
            _, steps = trained(setting, name, twice(setting.data(1)))
        except TypeError as error:
            return "", f"{error}; give it in ARGUMENTS of {__name__}"
        except MmclError as error:
            reason = reason or str(error)
            continue
        return (title, "") if steps else ("", "it trains nothing")
    return "", reason


def add_arguments(parser: ArgumentParser) -> None:
    """Options of this measurement."""
    parser.add_argument("--only", nargs="+", metavar="NAME", help="strategies to measure (default: every one)")
    parser.add_argument("--at_once", type=int, default=4, help="strategies that take turns (default: %(default)s)")


def run(arguments: Namespace, plan: Plan) -> None:
    """Measure and print a Markdown table; every group of strategies takes turns with plain training of its own."""
    torch.set_num_threads(plan.threads)
    for name in ("mmcl", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    networks.place()  # before the processes part
    places: dict[str, list[str]] = {}
    left_out = {}
    for name in arguments.only or plugins.listing("strategies"):
        title, reason = serving(name)
        places.setdefault(title, []).append(name)
        if reason:
            left_out[name] = reason
    places.pop("", None)
    print("| strategy | module | CPU ms per step | ratio | state / weights | snapshots / weights |")
    print("|---|---|---|---|---|---|")
    for title, names in places.items():
        for first in range(0, len(names), arguments.at_once):
            for line in group(title, names[first : first + arguments.at_once], plan):
                print(line, flush=True)
    print(f"\nMedian [95 % interval of the median]; {facts(plan.threads)}")
    for name, reason in left_out.items():
        print(f"Not measured: {name}: {reason}")


def group(title: str, names: Sequence[str], plan: Plan) -> Iterator[str]:
    """Lines of the table for strategies that take turns with plain training."""
    make: Callable[[str], Participant] = partial(fit, SETTINGS[title])
    seconds, found = measure({PLAIN: make(""), **{name: make(name) for name in names}}, plan)
    for name, blocks in seconds.items():
        step = summary([1000 * s / plan.steps for s in blocks]).show()
        ratio = Figure(1.0, 1.0, 1.0) if name == PLAIN else ratios(blocks, seconds[PLAIN])
        sizes: Sizes = found[name]
        kept = f"{sizes.state / sizes.network:.2f} | {sizes.snapshots / sizes.network:.2f}"
        yield f"| {name} | {title} | {step} | {'1' if name == PLAIN else ratio.show(3)} | {kept} |"
