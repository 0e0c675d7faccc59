"""Which of several answers a model that writes finds the likeliest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcl.errors import ConfigError, RunError
from mmcl.metrics.exact_match_probe import answers_of, normalise
from mmcl.metrics.probes import Encode, Probe, ProbeResult
from mmcl.outputs import Batch, Outputs
from mmcl.stream import EvalSet

Answer = Callable[[Batch, Sequence[str]], Batch]


class ChoiceProbe(Probe):
    """Share of questions whose right answer is the likeliest of the answers to choose from.

    Nothing is generated, so that the number does not suffer when a model forgets how to write its answers. The module
    offers ``answer(batch, texts)``: the same questions with other answers, one for each row.

    Args:
        answer: of the module.
        choices: for all questions; the sample's label, where it has one, says which is right. None takes each sample's
            own (``choices`` of its conversation); right is what equals one of its answers, after `normalise` where none
            does as it is written.
        score: an answer's likelihood: the mean log-probability of its tokens, or their ``sum``, which favours short
            answers.
    """

    metric = "top1"
    looks = False

    def __init__(
        self, answer: Answer, choices: Sequence[str] | None = None, score: Literal["mean", "sum"] = "mean"
    ) -> None:
        if score not in ("mean", "sum"):
            raise ConfigError(f"choice: option score '{score}' is neither 'mean' nor 'sum'")
        if choices is not None and (isinstance(choices, str) or not choices):
            raise ConfigError(f"choice: option choices is {choices!r}; it must be a list of answers")
        self.answer = answer
        self.choices = choices
        self.score = score
        among = f"{len(choices)} answers" if choices else "each question's answers"
        self.protocol = f"likeliest of {among} by the {score} log-probability of their tokens"
        self.counts = torch.zeros(2, dtype=torch.int64)
        self._encode: Encode | None = None

    @classmethod
    def of(cls, evalset: EvalSet, module: Any) -> ChoiceProbe:
        return cls(module.answer, **{"choices": evalset.class_names, **evalset.options})

    def start(self, encode: Encode) -> None:
        """Reset, and keep what computes."""
        self._encode = encode
        self.counts = torch.zeros(2, dtype=torch.int64)

    def update(self, batch: Batch, outputs: Outputs) -> None:
        """Score every choice of every row, and count.

        Raises:
            RunError: no choices, or a right answer that is none of them.
        """
        scores, choices = self._scores(batch)
        best = _likeliest(scores)
        valid = batch["valid"].tolist() if "valid" in batch else [True] * len(best)
        hits = [place in right for place, right, keep in zip(best, _right(batch, choices), valid, strict=True) if keep]
        self.counts = self.counts.to(scores.device) + torch.tensor([sum(hits), len(hits)], device=scores.device)

    def predict(self, batch: Batch, outputs: Outputs) -> list[dict[str, Any]]:
        """For each row the likeliest answer (None where no score is a number), whether it is right, and all scores."""
        scores, choices = self._scores(batch)
        return [
            {
                "answer": None if place is None else own[place],
                "correct": place in right,
                "scores": dict(zip(own, row[: len(own)].tolist(), strict=True)),
            }
            for place, row, own, right in zip(_likeliest(scores), scores, choices, _right(batch, choices), strict=True)
        ]

    def compute(self, sum_over_ranks: Callable[[Tensor], Tensor], gather: Callable[[Tensor], Tensor]) -> ProbeResult:
        """top1 over all ranks.

        Raises:
            RunError: no sample.
        """
        hits, count = (int(value) for value in sum_over_ranks(self.counts).cpu())
        if count == 0:
            raise RunError(f"choice: {self.where} has no samples")
        return ProbeResult(hits / count, count, {"top1": hits / count}, correct=hits)

    def _scores(self, batch: Batch) -> tuple[Tensor, Sequence[Sequence[str]]]:
        """(B, C) scores, -inf where a row has fewer choices, and the choices of each row."""
        assert self._encode is not None
        rows = len(batch["__key__"])
        choices = [self.choices] * rows if self.choices is not None else batch.get("choices", [()] * rows)
        if not all(choices):
            raise RunError("choice: a sample has no `choices`; give the evaluation set `class_names`")
        columns = []
        for i in range(max(map(len, choices))):
            asked = self.answer(batch, [own[min(i, len(own) - 1)] for own in choices])
            found = self._likelihood(self._encode(asked))
            there = torch.tensor([i < len(own) for own in choices], device=found.device)
            columns.append(found.masked_fill(~there, -torch.inf))
        return torch.stack(columns, dim=1), choices

    def _likelihood(self, outputs: Outputs) -> Tensor:
        """(B,) in float64, row by row: a vocabulary's logits of a batch in float32 would be large."""
        assert outputs.logits is not None and outputs.targets is not None and outputs.valid is not None
        found = []
        for logits, targets, valid in zip(outputs.logits, outputs.targets, outputs.valid, strict=True):
            total = -F.cross_entropy(logits[valid].float(), targets[valid], reduction="none").double().sum()
            found.append(total / valid.sum() if self.score == "mean" else total)
        return torch.stack(found)


def _likeliest(scores: Tensor) -> list[int | None]:
    """For each row of (B, C) the place of the highest score, the first of equal ones; None where none is a number.

    A score that is not a number never comes before one that is: `argmax` would put it first.
    """
    found = scores.masked_fill(scores.isnan(), -torch.inf).max(dim=1)
    return [
        place if value > -torch.inf else None
        for place, value in zip(found.indices.tolist(), found.values.tolist(), strict=True)
    ]


def _right(batch: Batch, choices: Sequence[Sequence[str]]) -> list[set[int]]:
    """For each row the places of the right answers among its choices."""
    keys = batch["__key__"]
    if "labels" in batch:
        found = [
            {label} if 0 <= label < len(own) else set()
            for label, own in zip(batch["labels"].tolist(), choices, strict=True)
        ]
    else:
        found = [
            _same(own, answers, str.strip) or _same(own, answers, normalise)
            for own, answers in zip(choices, answers_of(batch, "choice"), strict=True)
        ]
    for places, own, key in zip(found, choices, keys, strict=True):
        if not places:
            raise RunError(f"choice: the right answer of sample '{key}' is none of its {len(own)} choices")
    return found


def _same(choices: Sequence[str], answers: Sequence[str], form: Callable[[str], str]) -> set[int]:
    """The places of the choices that equal one of the answers in some form."""
    right = set(map(form, answers))
    return {i for i, choice in enumerate(choices) if form(choice) in right}
