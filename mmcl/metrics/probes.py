"""Probes: what an evaluation set measures, accumulated in counts so that ranks and batches cannot change the number."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from torch import Tensor

from mmcl.errors import ConfigError, near
from mmcl.outputs import Batch, Outputs
from mmcl.stream import EvalSet

KINDS = {
    "zero_shot": "mmcl.metrics.zero_shot_probe.ZeroShotProbe",
    "retrieval": "mmcl.metrics.retrieval_probe.RetrievalProbe",
    "classification": "mmcl.metrics.classification_probe.ClassificationProbe",
    "perplexity": "mmcl.metrics.perplexity_probe.PerplexityProbe",
    "error_rate": "mmcl.metrics.error_rate_probe.ErrorRateProbe",
    "exact_match": "mmcl.metrics.exact_match_probe.ExactMatchProbe",
    "choice": "mmcl.metrics.choice_probe.ChoiceProbe",
    "objective": "mmcl.metrics.objective_probe.ObjectiveProbe",
}
"""Short names of probes; a dotted class path works as well."""


class Encode(Protocol):
    """The network as a probe sees it: with evaluation weights and strategies' wraps, without gradients."""

    def __call__(self, batch: Batch) -> Outputs:
        """Outputs for a batch."""

    def generate(self, batch: Batch, **options: Any) -> Outputs:
        """What the module generates for a batch: `Outputs.texts`."""


Reduce = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ProbeResult:
    """One cell of the score matrix.

    Attributes:
        value: the cell; a fraction for accuracies and recalls.
        count: samples (or queries, tokens) behind it.
        metrics: everything measured, by name.
        correct: the number of hits where the value is a share of counts; None elsewhere.
    """

    value: float
    count: int
    metrics: dict[str, float] = field(default_factory=dict)
    correct: int | None = None


class Probe:
    """Base class: `start`, `update` for every batch of the set, `compute`.

    Attributes:
        metric: name of the number that goes into the matrix.
        direction: whether higher or lower is better.
        looks: whether `update` looks at the outputs; a probe that only generates does without the forward.
        protocol: one line for the report.
        where: the evaluation set, for messages.
    """

    metric: str = ""
    direction: Literal["higher", "lower"] = "higher"
    looks: bool = True
    protocol: str = ""
    where: str = "the evaluation set"

    @classmethod
    def of(cls, evalset: EvalSet, module: Any) -> Probe:
        """The probe for an evaluation set and the module that it will measure.

        Raises:
            ConfigError: an option or a property of the set that it cannot work with, which a run would find late.
        """
        return cls(**evalset.options)

    def start(self, encode: Encode) -> None:
        """Before the pass, with the evaluation weights in place: reset, build the text classifier."""
        raise NotImplementedError

    def update(self, batch: Batch, outputs: Outputs) -> None:
        """One batch; rows where ``batch["valid"]`` is False are padding."""
        raise NotImplementedError

    @property
    def chooses(self) -> bool:
        """Whether it chooses among candidates; on a set where it does not, nothing adapts."""
        return False

    def answers(self, outputs: Outputs) -> Tensor:
        """(B, K) logits of the candidates; gradients flow back to the outputs."""
        raise NotImplementedError

    def places(self, labels: Tensor) -> Tensor:
        """(B,) the place of each label's class among the candidates, -1 where it is none of them."""
        raise NotImplementedError

    def take(self, batch: Batch, answers: Tensor) -> None:
        """Like `update`, with (B, K) answers that something else than the outputs may have given."""
        raise NotImplementedError

    def compute(self, sum_over_ranks: Reduce, gather: Callable[[Tensor], Tensor]) -> ProbeResult:
        """The result over all ranks.

        Args:
            sum_over_ranks: sum of a tensor over ranks.
            gather: rows of all ranks concatenated (the first dimension may differ between ranks).
        """
        raise NotImplementedError


def build(evalset: EvalSet, module: Any) -> Probe:
    """The probe of an evaluation set.

    Args:
        evalset: its `probe` is a kind that the module offers.
        module: what will be measured.

    Raises:
        ConfigError: the module lacks the kind, the kind is unknown, or the set lacks what the probe needs.
    """
    where = f"evaluation set '{evalset.name}'"
    if evalset.probe not in module.probes:
        raise ConfigError(
            f"{where}: {type(module).__name__} has no probe '{evalset.probe}'; {near(evalset.probe, module.probes)}"
        )
    home, _, name = KINDS.get(evalset.probe, evalset.probe).rpartition(".")
    try:
        kind: type[Probe] = getattr(importlib.import_module(home), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{where}: unknown probe '{evalset.probe}'; {near(evalset.probe, KINDS)}") from error
    try:
        probe = kind.of(evalset, module)
    except TypeError as error:
        raise ConfigError(f"{where}: options {dict(evalset.options)} do not fit its probe: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    probe.where = where
    return probe


def describe_templates(templates: Sequence[str]) -> str:
    """How many templates are averaged, for a protocol line."""
    return "1 template" if len(templates) == 1 else f"{len(templates)} templates averaged"
