"""Word and character error rate of what a module transcribes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmcl.errors import ConfigError, RunError
from mmcl.functional.transcripts import normalize_transcript
from mmcl.metrics.error_rate import Edits, character_edits, word_edits
from mmcl.metrics.probes import Encode, Probe, ProbeResult
from mmcl.outputs import Batch, Outputs
from mmcl.stream import EvalSet


class ErrorRateProbe(Probe):
    """Word error rate pooled over the set: all word edits / all words of the references. CER stands beside it.

    References are the samples' ``text``, hypotheses what the module generates; both are brought into one form first,
    by `mmcl.functional.transcripts.normalize_transcript`.

    Args:
        normalize: compare without case and punctuation; False compares the texts as they are.
        **options: passed to the module's `generate` (``max_new_tokens``, ``language``).

    Raises:
        ConfigError: `normalize` is neither True nor False.
    """

    metric = "wer"
    direction = "lower"
    looks = False

    def __init__(self, normalize: bool = True, **options: Any) -> None:
        if not isinstance(normalize, bool):
            raise ConfigError(f"error_rate: option normalize is {normalize!r}; it is true or false")
        self.normalize = normalize
        self.options = options
        form = "lower case, without punctuation" if normalize else "texts as they are"
        given = "".join(f", {key} {value}" for key, value in sorted(options.items()))
        self.protocol = f"WER pooled over the set, {form}, greedy{given}"
        self._encode: Encode
        self._words = self._characters = Edits()

    @classmethod
    def of(cls, evalset: EvalSet, module: Any) -> ErrorRateProbe:
        probe = cls(**evalset.options)
        module.check_generation(probe.options)
        return probe

    def start(self, encode: Encode) -> None:
        """Forget the last pass."""
        self._encode = encode
        self._words = self._characters = Edits()

    def update(self, batch: Batch, outputs: Outputs) -> None:
        """Transcribe a batch and count the edits of the rows that are no padding.

        Raises:
            RunError: samples without a transcript, or with several.
        """
        for reference, hypothesis, valid in zip(*self._texts(batch), _valid(batch), strict=True):
            if valid:
                self._words += word_edits(reference, hypothesis)
                self._characters += character_edits(reference, hypothesis)

    def predict(self, batch: Batch, outputs: Outputs) -> list[dict[str, Any]]:
        """For each row ``reference`` and ``hypothesis`` as they are compared, and the ``word_edits`` between them."""
        return [
            {"reference": r, "hypothesis": h, "word_edits": word_edits(r, h).total}
            for r, h in zip(*self._texts(batch), strict=True)
        ]

    def compute(self, sum_over_ranks: Callable[[Tensor], Tensor], gather: Callable[[Tensor], Tensor]) -> ProbeResult:
        """The rates over all ranks, with the counts behind them; ``count`` is the number of reference words.

        Raises:
            RunError: the references have no word, as of an empty set or of punctuation that is compared without.
        """
        counts = torch.tensor([_counts(self._words), _counts(self._characters)])
        words, characters = (Edits(*row) for row in sum_over_ranks(counts).tolist())
        if words.length == 0:
            raise RunError(f"error_rate: the references of {self.where} have no words to compare")
        metrics = {
            "wer": words.rate,
            "cer": characters.rate,
            "substitutions": words.substitutions,
            "deletions": words.deletions,
            "insertions": words.insertions,
            "reference_words": words.length,
            "reference_characters": characters.length,
        }
        return ProbeResult(words.rate, words.length, metrics)

    def _texts(self, batch: Batch) -> tuple[list[str], list[str]]:
        references = batch.get("text")
        if not isinstance(references, list) or not all(isinstance(text, str) for text in references):
            raise RunError(f"error_rate: the samples of {self.where} need one transcript each, as a text")
        hypotheses = self._encode.generate(batch, **self.options).texts
        if hypotheses is None:
            raise RunError("error_rate: the module generated no texts")
        if self.normalize:
            references = [normalize_transcript(text) for text in references]
            hypotheses = [normalize_transcript(text) for text in hypotheses]
        return references, hypotheses


def _valid(batch: Batch) -> list[bool]:
    valid = batch.get("valid")
    return [True] * len(batch["text"]) if valid is None else valid.tolist()


def _counts(edits: Edits) -> list[int]:
    return [edits.substitutions, edits.deletions, edits.insertions, edits.length]
