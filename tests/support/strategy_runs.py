"""Runs of the strategies' table: one row on one of its kinds of module, shared by the properties that look at it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cases
import settings
import torch
from torch import Tensor

from mmcl import Budget, Strategy, Stream, Task, checkpoint
from mmcl.outputs import Weights
from mmcl.runner import Runner
from mmcl.strategy import overrides

WHOLE, SHORT = 4, 2
"""Steps of a task: enough to be cut after a checkpoint, and enough for a second step that sees what the first did."""
Build = Callable[[], Sequence[Strategy]]


class Observed(Runner):
    """Keeps effective weights and the strategies' state at the moments that the properties speak of."""

    initial: Weights
    """After every `setup`."""
    evaluated: dict[str, Weights]
    """What each variant of the evaluation weights is when the first task begins, and under ``live`` the live ones."""
    ends: list[Weights]
    """After each task."""
    last: Weights
    """What the last row was measured with."""
    states: list[dict[str, Any]]
    """The strategies' parameters and state after every `setup` and at the end."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.evaluated, self.ends, self.states = {}, [], []

    def _begin(self) -> None:
        self.initial = self._weights()
        self.states.append(own(self))
        super()._begin()

    def _hook(self, name: str, task: Task) -> None:
        super()._hook(name, task)
        if name == "on_task_end":
            self.ends.append(self._weights())
        elif task is self.stream.tasks[0]:
            self.evaluated = {v: self._evaluated(v) for v in ("", *self.composition.variants())}
            self.evaluated["live"] = self._weights()

    def _fit(self) -> dict[str, Any]:
        results = super()._fit()
        self.last = self._evaluated("")
        self.states.append(own(self))
        return results

    def _weights(self) -> Weights:
        return self.reach.weights(copy=True, dtype=None)

    def _evaluated(self, variant: str) -> Weights:
        with torch.no_grad(), self.composition.eval_weights(variant):
            return self._weights()


def own(runner: Runner) -> dict[str, Any]:
    """What the strategies keep of themselves, as a checkpoint has it."""
    kept = {s.name: {"parameters": s.state_dict(), "state": s.export_state()} for s in runner.composition.strategies}
    return copy.deepcopy(kept)


@dataclass(frozen=True)
class Done:
    """A run that went to its end."""

    folder: Path
    results: dict[str, Any]
    initial: Weights
    evaluated: Mapping[str, Weights]
    ends: Sequence[Weights]
    last: Weights
    states: Sequence[dict[str, Any]]

    @property
    def matrix(self) -> Tensor:
        """The score matrix."""
        return torch.tensor(self.results["matrix"]["values"], dtype=torch.float64)


class Runs:
    """Runs in a folder, each made once.

    Args:
        folder: for shards and run folders.
        table: the rows.
    """

    def __init__(self, folder: Path, table: Mapping[str, settings.Setting] | None = None) -> None:
        self.folder = folder
        self.table = settings.found() if table is None else table
        self._done: dict[tuple[Any, ...], Done] = {}
        self._streams: dict[str, Stream] = {}

    def stream(self, case: str, steps: int, scored: bool = False) -> Stream:
        """A case's stream with tasks of so many steps; its shards are written once.

        What it last evaluates stands in as the ``reference`` of streams that have none. Short ones evaluate that alone,
        unless somebody looks at the scores.
        """
        if case not in self._streams:
            shards = self.folder / "shards" / case
            shards.mkdir(parents=True, exist_ok=True)
            self._streams[case] = cases.found()[case][1](shards)
        whole = self._streams[case]
        tasks = [replace(task, budget=Budget(steps=steps)) for task in whole.tasks]
        if steps == SHORT and not scored:
            tasks = [replace(task, evaluates=None) for task in tasks]
        reference = replace(whole.evals[-1].source, augment=False)
        evals = whole.evals[-1:] if steps == SHORT and not scored else whole.evals
        return Stream(whole.name, tasks, evals, {"reference": reference, **whole.sources})

    def run(self, name: str, case: str, steps: int, what: str = "", build: Build | None = None, **options: Any) -> Done:
        """A row of the table (the empty name: no strategy) on a kind of module.

        Args:
            name: of the row.
            case: of the module.
            steps: of each task.
            what: tells runs of one row with other `options` or strategies apart.
            build: makes other strategies than the row's.
            options: of `cases.runner`.
        """
        key = (name, case, steps, what)
        if key not in self._done:
            runner = self.runner(key, build, **options)
            results = runner.fit()
            self._done[key] = Done(
                runner.folder.path, results, runner.initial, runner.evaluated, runner.ends, runner.last, runner.states
            )
        return self._done[key]

    def runner(
        self, key: tuple[str, str, int, str], build: Build | None = None, of: str = "", **options: Any
    ) -> Observed:
        """What makes such a run, or goes on with it; `of` is the case whose stream it is, where it is another one."""
        name, case, steps, _ = key
        build = build or (self.table[name].build if name else tuple)
        folder = self.folder / "-".join(str(part) for part in key if part != "").replace("/", "+")
        strategies = build()
        scored = any(overrides(part, "on_scores") for part in leaves(strategies))
        stream = self.stream(of or case, steps, scored)
        made: Observed = cases.runner(case, stream, folder, strategies, kind=Observed, **options)
        return made


def different(one: Any, other: Any, where: str = "") -> list[str]:
    """Where two structures of tensors and plain values differ, by a single bit."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        equal = one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
        return [] if equal or _both_nan(one, other) else [where]
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        if one.keys() != other.keys():
            return [f"{where}: {sorted(map(str, one.keys() ^ other.keys()))} in one of them"]
        return [d for key in one for d in different(one[key], other[key], f"{where}/{key}")]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        return [d for i, (a, b) in enumerate(zip(one, other, strict=True)) for d in different(a, b, f"{where}/{i}")]
    return [] if type(one) is type(other) and one == other else [where]


def _both_nan(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape or not one.is_floating_point():
        return False
    return torch.equal(one.isnan(), other.isnan()) and torch.equal(one.nan_to_num(), other.nan_to_num())


def changed(before: Weights, after: Weights) -> list[str]:
    """Names of the weights of which a value changed; rows that the network gained since are no change."""
    found = []
    for name in before.keys() & after.keys():
        rows = after[name][tuple(slice(0, size) for size in before[name].shape)]
        if not torch.equal(before[name], rows):
            found.append(name)
    return sorted(found)


def apart(found: Any, wanted: Any, start: Any) -> list[str]:
    """Names of weights, or places in the strategies' state, that two computations of one training give differently.

    Sums in another order round otherwise. So what is compared is how far apart they are against how far training went
    from its start, tensor by tensor; one whose gradient is zero but for rounding (the bias of attention keys) has a
    part in how far the others went.
    """
    ours, theirs, begun = flat(found), flat(wanted), flat(start)
    names = [str(name) for name in ours.keys() ^ theirs.keys()]
    distances: dict[str, tuple[float, float, float]] = {}
    for name in ours.keys() & theirs.keys():
        one, other, first = ours[name], theirs[name], begun.get(name)
        if not isinstance(other, Tensor) or not other.is_floating_point() or one.shape != other.shape:
            names += different(one, other, name)
        elif other.numel():
            known = isinstance(first, Tensor) and first.shape == other.shape
            distances[name] = (_largest(one - other), _largest(other - first if known else other), _largest(other))
    farthest = max((moved for _, moved, _ in distances.values()), default=0.0)
    for name, (distance, moved, size) in distances.items():
        if not distance <= 1e-3 * moved + 1e-5 * farthest + 1e-7 * size:
            names.append(name)
    return sorted(names)


def flat(value: Any, where: str = "") -> dict[str, Any]:
    """The leaves of a structure by their places; a number with a fraction is a tensor."""
    if isinstance(value, Mapping):
        return {place: leaf for key, inner in value.items() for place, leaf in flat(inner, f"{where}/{key}").items()}
    if isinstance(value, (list, tuple)):
        return {place: leaf for i, inner in enumerate(value) for place, leaf in flat(inner, f"{where}/{i}").items()}
    return {where: torch.tensor(value, dtype=torch.float64) if isinstance(value, float) else value}


def _largest(tensor: Tensor) -> float:
    return float(tensor.abs().max())


def content(folder: Path, name: str = "last") -> dict[str, Any]:
    """A checkpoint of a run."""
    return checkpoint.load(folder / "checkpoints" / f"{name}.ckpt")


def parts(setting: settings.Setting) -> list[Strategy]:
    """What a row's strategies are made of."""
    return leaves(setting.build())


def leaves(strategies: Sequence[Strategy]) -> list[Strategy]:
    """Presets replaced by their parts."""
    found: list[Strategy] = []
    for strategy in strategies:
        inner = strategy.parts()
        found += [strategy] if list(inner) == [strategy] else leaves(inner)
    return found


def joined(*builds: Build) -> list[Strategy]:
    """The strategies of several rows, one of each class: what two of them cannot do without stands there once."""
    found: dict[type, Strategy] = {}
    for strategy in (strategy for build in builds for strategy in build()):
        found.setdefault(type(strategy), strategy)
    return list(found.values())


def covering(table: Mapping[str, settings.Setting]) -> list[str]:
    """A few rows that together override every hook and make every claim that some row does."""
    brings = {name: {w for part in parts(setting) for w in _brings(part)} for name, setting in table.items()}
    missing = {word for words in brings.values() for word in words}
    chosen: list[str] = []
    while missing:
        best = max(sorted(brings), key=lambda name: len(brings[name] & missing))
        chosen.append(best)
        missing -= brings[best]
    return chosen


def _brings(strategy: Strategy) -> set[str]:
    hooks = {hook for hook, value in vars(Strategy).items() if callable(value) and overrides(strategy, hook)}
    return {hook for hook in hooks if not hook.startswith("_")} | set(strategy.claims) | {str(strategy.gradients)}
