"""Shares of a batch that follow how fast each domain is learned."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Literal, get_args

from mmcl.errors import ConfigError, RunError, near
from mmcl.functional.mixing import velocity_weights
from mmcl.strategy import Batches, StepContext, Strategy
from mmcl.stream import JoinedSource, Source, Stream, Task

Scores = Literal["perplexity", "loss"]
PROBES: Mapping[str, str] = {"perplexity": "perplexity", "loss": "objective"}
"""Which of mmcl's own probes gives such scores; a probe of somebody else's, a class path, may give either."""


class Velocitune(Strategy):
    """Give more of each batch to the domains that are learned slowly (Velocitune, ACL 2025).

    V_i = clip((l_i - l*_i) / (l0_i - l*_i), 0, 1) is the way that domain i still has to go, and w_i <- w_i exp(V_i) /
    sum_j w_j exp(V_j) after every evaluation: where a task is cut (`Task.segment`) and at its end. A domain is an
    evaluation set, which measures its loss, and a source, which gives its data. The set that a task `evaluates` is the
    domain of its own data.

    Args:
        targets: evaluation set -> l*, the loss in nats that is hoped for. The paper extrapolates it from runs on
            subsets of the data.
        sources: evaluation set -> name of one of the stream's sources, or of one of its tasks.
        share: part of each batch that the domains have where the task's own data are none of them.
        scores: ``perplexity``, whose logarithm is the loss, or ``loss`` where the sets are measured by it (by the probe
            ``objective``).
        least: part of the domains' share that each keeps; the rest is shared by the weights. The paper has 0. What is
            less than a sample of a batch is raised to one sample, and the other domains give it.

    Raises:
        ConfigError: an argument is out of range, the stream lacks a set or a source, its probe gives no loss, or a
            batch has not a sample for each domain.

    Differences from the published code: none could be compared. l0 is the loss before training, on the sets in full;
    where a task is cut the sets' subsets are measured, so leave their `subset` out. No domain is ever without a sample
    in a batch.
    """

    weights_of: dict[str, float]
    initial: dict[str, float]

    def __init__(
        self,
        targets: Mapping[str, float],
        sources: Mapping[str, str],
        share: float = 0.5,
        scores: Scores = "perplexity",
        least: float = 0.05,
    ) -> None:
        super().__init__()
        if not 0 < share <= 1:
            raise ConfigError(f"Velocitune: share is {share}; it must be above 0 and at most 1")
        if scores not in get_args(Scores):
            raise ConfigError(f"Velocitune: scores '{scores}' is unknown; {near(scores, get_args(Scores))}")
        if len(targets) < 2 or any(not math.isfinite(value) for value in targets.values()):
            raise ConfigError(f"Velocitune: targets {dict(targets)} must name two domains or more, each with a loss")
        if not 0 <= least <= 1 / len(targets):
            raise ConfigError(f"Velocitune: least is {least}; {len(targets)} domains have at most {1 / len(targets):g}")
        for name in sources:
            if name not in targets:
                raise ConfigError(f"Velocitune: the source of '{name}' has no target; {near(name, targets)}")
        self.targets, self.named = dict(targets), dict(sources)
        self.share, self.scores, self.least = share, scores, least
        self._rows: int | None = None  # of a batch
        self.add_state("weights_of", {name: 1 / len(targets) for name in targets})
        self.add_state("initial", {})

    def setup(self, stream: Stream) -> None:
        probes = {evalset.name: evalset.probe for evalset in stream.evals}
        metrics = {evalset.name: evalset.options.get("metric", "perplexity") for evalset in stream.evals}
        for name in self.targets:
            if name not in probes:
                known = near(name, probes)
                raise ConfigError(f"Velocitune: stream '{stream.name}' has no evaluation set '{name}'; {known}")
            wanted = PROBES[self.scores]
            if "." not in probes[name] and probes[name] != wanted:
                raise ConfigError(
                    f"Velocitune: evaluation set '{name}' is measured by '{probes[name]}', and scores '{self.scores}' "
                    f"are those of '{wanted}'"
                )
            if probes[name] == "perplexity" and metrics[name] != "perplexity":
                raise ConfigError(
                    f"Velocitune: evaluation set '{name}' scores '{metrics[name]}'; take its option metric away, or "
                    "give `scores: loss` and the probe 'objective'"
                )
            if name not in self.named and any(task.evaluates != name for task in stream.tasks):
                raise ConfigError(f"Velocitune: '{name}' needs a source: not every task trains on it")
        for name in self.named.values():
            self._data(name, stream)

    def sources(self, task: Task) -> Sequence[Source]:
        return self._sources(task, self.weights_of)

    def foresee(self, task: Task, batches: Batches) -> Sequence[Source]:
        self._rows = batches.size
        others = {name: weight for name, weight in self.weights_of.items() if name != task.evaluates}
        total = sum(others.values())  # they have the most where the task's own domain has no weight
        return self._sources(task, {name: others.get(name, 0.0) / total for name in self.weights_of})

    def _sources(self, task: Task, weights: Mapping[str, float]) -> Sequence[Source]:
        whole = 1.0 if task.evaluates in self.targets else self.share
        sample = 1 / (whole * self._rows) if self._rows else 0.0
        if sample * len(weights) > 1 + 1e-9:
            raise ConfigError(
                f"Velocitune: {whole:g} of a batch of {self._rows} has not a sample for each of {len(weights)} domains "
                f"in task '{task.name}'; raise `share` or data.batch_size"
            )
        spread = 1 - self.least * len(weights)
        parts = raised({name: self.least + spread * weight for name, weight in weights.items()}, sample)
        return [
            replace(self._data(self.named[name], self.stream), name=f"{self.name}/{name}", share=whole * part)
            for name, part in parts.items()
            if name != task.evaluates
        ]

    def on_scores(self, scores: Mapping[str, float], context: StepContext | None) -> None:
        losses = {name: self._loss(name, scores[name]) for name in self.targets}
        if not self.initial:
            self.initial = losses
            return
        names = list(self.targets)
        columns = ([of[name] for name in names] for of in (self.weights_of, losses, self.initial, self.targets))
        self.weights_of = dict(zip(names, velocity_weights(*columns).tolist(), strict=True))

    def _loss(self, name: str, score: float) -> float:
        if self.scores == "loss":
            return score
        if score <= 0:
            raise RunError(f"Velocitune: '{name}' has the score {score}, which is no perplexity; see `scores`")
        return math.log(score)

    def _data(self, name: str, stream: Stream) -> Source:
        """The data of a domain, to be mixed into a batch."""
        if name in stream.sources:
            return replace(stream.sources[name], role="mixed", batch_size=None)
        task = next((task for task in stream.tasks if task.name == name), None)
        if task is None:
            known = near(name, [*stream.sources, *(task.name for task in stream.tasks)])
            raise ConfigError(f"Velocitune: stream '{stream.name}' has no source and no task '{name}'; {known}")
        first, *others = (replace(source, task=task.name, ordered=False) for source in task.train)
        return JoinedSource(**{f.name: getattr(first, f.name) for f in fields(Source)}, parts=tuple(others))


def raised(parts: Mapping[str, float], least: float) -> dict[str, float]:
    """Parts of a whole with none below `least`: the others give what is missing, each by what it has above that."""
    missing = sum(max(least - part, 0.0) for part in parts.values())
    above = {name: max(part - least, 0.0) for name, part in parts.items()}
    if not missing:
        return dict(parts)
    rest = 1 - min(missing / (sum(above.values()) or 1.0), 1.0)
    return {name: least + rest * part for name, part in above.items()}
