"""Probes: what an evaluation set measures, accumulated in counts so that ranks and batches cannot change the number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from mmcl.outputs import Batch, Outputs

Encode = Callable[[Batch], Outputs]
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
        protocol: one line for the report.
    """

    metric: str = ""
    direction: Literal["higher", "lower"] = "higher"
    protocol: str = ""

    def start(self, encode: Encode) -> None:
        """Before the pass, with the evaluation weights in place: reset, build the text classifier."""
        raise NotImplementedError

    def update(self, batch: Batch, outputs: Outputs) -> None:
        """One batch; rows where ``batch["valid"]`` is False are padding."""
        raise NotImplementedError

    def compute(self, sum_over_ranks: Reduce, gather: Callable[[Tensor], Tensor]) -> ProbeResult:
        """The result over all ranks.

        Args:
            sum_over_ranks: sum of a tensor over ranks.
            gather: rows of all ranks concatenated (the first dimension may differ between ranks).
        """
        raise NotImplementedError


def describe_templates(templates: Sequence[str]) -> str:
    """How many templates are averaged, for a protocol line."""
    return "1 template" if len(templates) == 1 else f"{len(templates)} templates averaged"
