"""Evaluation in which a strategy adapts: sets in their order, state carried on, the trained weights back at the end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any

import torch
from torch import nn

from mmcl import distributed
from mmcl.engine import Encoder, Engine
from mmcl.errors import ConfigError
from mmcl.evaluate import Cell
from mmcl.metrics.collapse import Collapse
from mmcl.metrics.probes import Probe, build
from mmcl.outputs import ANSWERS, Batch, Outputs, move
from mmcl.strategy import Strategy
from mmcl.stream import EvalSet, Task

logger = logging.getLogger("mmcl")

STEPS = 1 << 30
"""Steps of a loader that nobody reads to its end."""


@dataclass
class OwnData:
    """`mmcl.outputs.SourcePass`: what the tasks so far were trained on, with the answers that their classes make.

    Args:
        engine: module and strategies, at the task that was trained last.
        data: the stream's data.
        tasks: of the stream so far.
        kind: probe that the answers are of.
        encode: as the probe sees the network.
    """

    engine: Engine
    data: Any
    tasks: Sequence[Task]
    kind: str
    encode: Encoder

    def once(self, limit: int | None = None) -> Iterator[Batch]:
        """A pass over each task's own data."""
        for task, probe in self._probes():
            for batch in self.data.pass_loader(task, limit=limit):
                yield self._placed(batch, probe)

    def shuffled(self) -> Iterator[Batch]:
        """Batches as in training, the tasks in turn."""
        loaders = [
            (iter(self.data.train_loader(task, (), positions={}, segment=0, first_step=0, steps=STEPS)), probe)
            for task, probe in self._probes()
        ]
        for loader, probe in cycle(loaders):
            yield self._placed(next(loader), probe)

    def _placed(self, batch: Batch, probe: Probe) -> Batch:
        batch = self.engine.convert(move(batch, self.engine.place))
        batch.pop("side", None)
        batch.setdefault("valid", torch.ones(len(batch["labels"]), dtype=torch.bool, device=self.engine.place))
        return {**batch, ANSWERS: probe}

    def _probes(self) -> list[tuple[Task, Probe]]:
        """A probe over each task's classes."""
        if not self.tasks:
            raise ConfigError("before the first task there is no data of a task to look at; choose a later --ckpt_path")
        found = []
        for task in self.tasks:
            own = EvalSet(f"own data of {task.name}", task.train[0], self.kind, task.class_names, task.templates)
            probe = build(own, self.engine.module)
            with torch.no_grad():
                probe.start(self.encode)
            found.append((task, probe))
        return found


@contextmanager
def restored(network: nn.Module) -> Iterator[None]:
    """Parameters, buffers and what trains are in the end what they were, bit for bit, whatever happens inside."""
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    places = {name: tensor.data for name, tensor in tensors.items()}
    kept = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    trained = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.data = places[name]
                tensor.copy_(kept[name])
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(trained[name])
            parameter.grad = None


@contextmanager
def _adapting(engine: Engine, adapter: Strategy | None) -> Iterator[None]:
    engine.composition.adapter = adapter
    try:
        yield
    finally:
        engine.composition.adapter = None


def check_sets(evals: Sequence[EvalSet], module: Any) -> None:
    """Refuse a stream on which nothing can adapt.

    Raises:
        ConfigError: no evaluation set chooses among classes.
    """
    if not any(build(evalset, module).chooses for evalset in evals):
        raise ConfigError("nothing can adapt: no evaluation set of this stream chooses among classes that were seen")


def measure_in_order(
    engine: Engine,
    data: Any,
    evals: Sequence[EvalSet],
    adapter: Strategy | None,
    between: Callable[[], None] = lambda: None,
) -> list[Cell]:
    """The evaluation sets one after another, each batch answered once, while a strategy adapts.

    Args:
        engine: module and strategies.
        data: the stream's data.
        evals: what to measure, in this order.
        adapter: it adapts, and what it has learned is carried from set to set as it likes; None: the model as it is.
        between: called between sets; may raise to stop.

    Returns:
        One cell for each set, with ``entropy`` and ``top_answer_share`` among its metrics where the set chooses.
    """
    tasks = engine.tasks_so_far
    network = engine.module.network
    cells = []
    position = 0
    with (
        engine.composition.eval_weights(),
        restored(network),
        _adapting(engine, adapter),
        engine.evaluating("test") as encode,
    ):
        for evalset in evals:
            between()
            probe = build(evalset, engine.module)
            with torch.no_grad():
                probe.start(encode)
            if adapter is not None and probe.chooses:
                adapter.on_evalset_start(evalset, position, OwnData(engine, data, tasks, evalset.probe, encode))
                position += 1
            elif adapter is not None:
                logger.warning("evaluation set '%s' chooses among no classes: nothing adapts on it", evalset.name)
            cells.append(_measure(data, evalset, probe, encode, adapter is not None))
    return cells


def _measure(data: Any, evalset: EvalSet, probe: Probe, encode: Encoder, adapts: bool) -> Cell:
    began = time.perf_counter()
    collapse = Collapse()
    for batch in data.eval_loader(evalset.source):
        batch = encode.placed(batch)
        outputs = encode(batch | {ANSWERS: probe} if adapts and probe.chooses else batch) if probe.looks else Outputs()
        with torch.no_grad():
            if not probe.chooses:
                probe.update(batch, outputs)
                continue
            answers = outputs.logits if adapts else probe.answers(outputs)
            assert answers is not None
            collapse.update(answers, batch["valid"])
            if adapts:
                probe.take(batch, answers.detach())
            else:
                probe.update(batch, outputs)
    with torch.no_grad():
        result = probe.compute(distributed.total, distributed.gather)
        if probe.chooses:
            result = replace(result, metrics={**result.metrics, **collapse.compute(distributed.total)})
    return Cell(evalset.name, result, time.perf_counter() - began)
