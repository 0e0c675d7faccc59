"""Share of questions that are answered as written, by what the module generates."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mmcl.errors import ConfigError, RunError
from mmcl.metrics.probes import Encode, Probe, ProbeResult
from mmcl.outputs import Batch, Outputs
from mmcl.stream import EvalSet

_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalise(text: str) -> str:
    """An answer without what is form alone: lower case, no punctuation, no English articles, single spaces.

    The rule of SQuAD's evaluation (Rajpurkar et al., 2016), with all of Unicode's punctuation. A text that would
    vanish, as ``?`` or ``the``, keeps its letters.

    >>> normalise("The  Eiffel-Tower!")
    'eiffeltower'
    >>> normalise("A cat, on the mat.")
    'cat on mat'
    """
    lower = unicodedata.normalize("NFKC", text).lower()
    bare = "".join(letter for letter in lower if not unicodedata.category(letter).startswith("P"))
    return " ".join(_ARTICLES.sub(" ", bare).split()) or " ".join(lower.split())


class ExactMatchProbe(Probe):
    """Share of rows whose generated answer equals one of the right ones after `normalise`.

    A model that still knows the answer may have forgotten how to write it. So `strict_match`, letter for letter, stands
    beside the lenient number: where the two part, the form has drifted.

    Args:
        max_new_tokens: where an answer is cut off.
        strict: put the strict number into the score matrix.
    """

    looks = False

    def __init__(self, max_new_tokens: int = 16, strict: bool = False) -> None:
        if max_new_tokens < 1:
            raise ConfigError(f"exact_match: option max_new_tokens is {max_new_tokens}; it must be positive")
        self.max_new_tokens = max_new_tokens
        self.strict = strict
        self.metric = "strict_match" if strict else "exact_match"
        how = "letter for letter" if strict else "without case, punctuation and articles"
        self.protocol = f"generated answers equal to a right one, {how}; up to {max_new_tokens} tokens"
        self.counts = torch.zeros(3, dtype=torch.int64)
        self._encode: Encode | None = None

    @classmethod
    def of(cls, evalset: EvalSet, module: Any) -> ExactMatchProbe:
        probe = cls(**evalset.options)
        module.check_generation({"max_new_tokens": probe.max_new_tokens})
        return probe

    def start(self, encode: Encode) -> None:
        """Reset, and keep what generates."""
        self._encode = encode
        self.counts = torch.zeros(3, dtype=torch.int64)

    def update(self, batch: Batch, outputs: Outputs) -> None:
        """Generate and count.

        Raises:
            RunError: samples without answers.
        """
        found = self._judged(batch)
        valid = batch["valid"].tolist() if "valid" in batch else [True] * len(found)
        hits = [(lenient, strict, True) for (_, lenient, strict), keep in zip(found, valid, strict=True) if keep]
        here = torch.tensor(hits, dtype=torch.int64).reshape(-1, 3).sum(dim=0)
        device = batch["valid"].device if "valid" in batch else here.device
        self.counts = self.counts.to(device) + here.to(device)

    def predict(self, batch: Batch, outputs: Outputs) -> list[dict[str, Any]]:
        """For each row what was generated, the right answers, and whether they agree."""
        return [
            {"generated": text, "answers": list(answers), "correct": lenient, "strict": strict}
            for (text, lenient, strict), answers in zip(self._judged(batch), batch["answers"], strict=True)
        ]

    def compute(self, sum_over_ranks: Callable[[Tensor], Tensor], gather: Callable[[Tensor], Tensor]) -> ProbeResult:
        """exact_match and strict_match over all ranks.

        Raises:
            RunError: no sample.
        """
        lenient, strict, count = (int(value) for value in sum_over_ranks(self.counts).cpu())
        if count == 0:
            raise RunError(f"exact_match: {self.where} has no samples")
        metrics = {"exact_match": lenient / count, "strict_match": strict / count}
        return ProbeResult(metrics[self.metric], count, metrics, correct=strict if self.strict else lenient)

    def _judged(self, batch: Batch) -> list[tuple[str, bool, bool]]:
        """(generated, lenient hit, strict hit) of each row."""
        assert self._encode is not None
        answers = answers_of(batch, "exact_match")
        texts = self._encode.generate(batch, max_new_tokens=self.max_new_tokens).texts
        if texts is None:
            raise RunError("exact_match: the module generated no texts")
        return [
            (text, normalise(text) in map(normalise, right), text.strip() in (one.strip() for one in right))
            for text, right in zip(texts, answers, strict=True)
        ]


def answers_of(batch: Batch, who: str) -> Sequence[Sequence[str]]:
    """The right answers of each row.

    Raises:
        RunError: a row has none; names the sample.
    """
    found: Sequence[Sequence[str]] = batch.get("answers", [])
    keys = batch.get("__key__", ["?"] * len(found))
    for answers, key in zip(found, keys, strict=True):
        if not answers:
            raise RunError(f"{who}: sample '{key}' of the evaluation set has no answer")
    if not found:
        raise RunError(f"{who}: the evaluation set's samples have no answers")
    return found
