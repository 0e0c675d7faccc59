"""Shares of a batch that follow how fast each domain is learned."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Literal, get_args

from mmcl.errors import ConfigError, RunError, near
from mmcl.functional.mixing import velocity_weights
from mmcl.strategy import StepContext, Strategy
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
        least: part of the domains' share that each keeps, so that a batch holds a sample of it; the rest is shared by
            the weights. The paper has 0.

    Raises:
        ConfigError: an argument is out of range, or the stream lacks a set or a source, or its probe gives no loss.

    Differences from the published code: none could be compared. l0 is the loss before training, on the sets in full;
    where a task is cut the sets' subsets are measured, so leave their `subset` out.
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
        self.add_state("weights_of", {name: 1 / len(targets) for name in targets})
        self.add_state("initial", {})

    def setup(self, stream: Stream) -> None:
        probes = {evalset.name: evalset.probe for evalset in stream.evals}
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
            if name not in self.named and any(task.evaluates != name for task in stream.tasks):
                raise ConfigError(f"Velocitune: '{name}' needs a source: not every task trains on it")
        for name in self.named.values():
            self._data(name, stream)

    def sources(self, task: Task) -> Sequence[Source]:
        spread = 1 - self.least * len(self.targets)
        parts = {name: self.least + spread * weight for name, weight in self.weights_of.items()}
        whole = 1.0 if task.evaluates in self.targets else self.share
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
