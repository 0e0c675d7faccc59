"""One row of the score matrix: every evaluation set, each sample encoded once for all the probes that look at it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from mmcl import distributed, seeds
from mmcl.engine import Engine
from mmcl.metrics.probes import ProbeResult, build
from mmcl.outputs import Outputs, move
from mmcl.strategy import Stage
from mmcl.stream import EvalSet


@dataclass(frozen=True)
class Cell:
    """A result and the time that it took."""

    evalset: str
    result: ProbeResult
    seconds: float


def evaluate(
    engine: Engine,
    data: Any,
    evals: Iterable[EvalSet],
    device: torch.device,
    stage: Stage = "test",
    variant: str = "",
    between: Callable[[], None] = lambda: None,
) -> list[Cell]:
    """Measure evaluation sets with the strategies' evaluation weights in place.

    Args:
        engine: module and strategies, on `device`.
        data: gives `eval_loader(source, limit=...)`.
        evals: what to measure; sets over one source share one pass.
        device: where the batches go.
        stage: ``validate`` uses each set's fixed subset, ``test`` all samples.
        variant: name of other evaluation weights.
        between: called between passes; may raise to stop (an interrupted run).

    Returns:
        One cell for each set, in their order.
    """
    evals = list(evals)
    cells: dict[str, Cell] = {}
    with engine.composition.eval_weights(variant), engine.evaluating(stage) as encode:
        for limit, group in _passes(evals, stage):
            between()
            began = time.perf_counter()
            probes = [build(e, engine.module) for e in group]
            with torch.no_grad():
                seeds.reseed(engine.seed, "evaluate", group[0].name)
                for probe in probes:
                    probe.start(encode)
                looks = any(probe.looks for probe in probes)
                encode.source = group[0].source
                for batch in data.eval_loader(group[0].source, limit=limit):
                    batch = move(batch, device)
                    outputs = encode(batch) if looks else Outputs()
                    for probe in probes:
                        probe.update(batch, outputs)
                encode.source = None
                results = [p.compute(distributed.total, distributed.gather) for p in probes]
            seconds = (time.perf_counter() - began) / len(group)
            for evalset, result in zip(group, results, strict=True):
                cells[evalset.name] = Cell(evalset.name, result, seconds)
    return [cells[e.name] for e in evals]


def _passes(evals: list[EvalSet], stage: Stage) -> list[tuple[int | None, list[EvalSet]]]:
    """Evaluation sets that read the same samples, together."""
    passes: list[tuple[int | None, list[EvalSet]]] = []
    for evalset in evals:
        limit = evalset.subset if stage == "validate" else None
        for other, group in passes:
            if other == limit and group[0].source == evalset.source:
                group.append(evalset)
                break
        else:
            passes.append((limit, [evalset]))
    return passes
