import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
import torch
from torch import Tensor

from mmcl.errors import RunError
from mmcl.functional.transcripts import normalize_transcript
from mmcl.metrics.error_rate import Edits, character_edits, corpus_edits, word_edits
from mmcl.metrics.error_rate_probe import ErrorRateProbe
from mmcl.outputs import Batch, Outputs

PARITY = json.loads((Path(__file__).parents[1] / "parity" / "metrics" / "wer_cer_corpus.json").read_text())
TOLERANCE = PARITY["tolerance_abs"]


def test_parity_of_five_utterances() -> None:
    case = PARITY["cases"][0]
    references, hypotheses, wanted = case["inputs"]["references"], case["inputs"]["hypotheses"], case["expected"]
    words = [word_edits(*pair) for pair in zip(references, hypotheses, strict=True)]
    characters = [character_edits(*pair) for pair in zip(references, hypotheses, strict=True)]
    assert [e.total for e in words] == wanted["word_edits"]
    assert [e.length for e in words] == wanted["word_counts"]
    assert [e.total for e in characters] == wanted["char_edits"]
    assert [e.length for e in characters] == wanted["char_counts"]
    pooled = corpus_edits(references, hypotheses)
    assert pooled[0].rate == pytest.approx(wanted["WER"], abs=TOLERANCE)
    assert pooled[1].rate == pytest.approx(wanted["CER"], abs=TOLERANCE)
    assert np.mean([e.rate for e in words]) == pytest.approx(case["trap"]["mean_of_utterance_WER"], abs=TOLERANCE)


def test_parity_of_empty_strings() -> None:
    case = PARITY["cases"][1]
    inputs, wanted = case["inputs"], case["expected"]
    assert word_edits(*inputs["empty_hypothesis"]).rate == wanted["empty_hypothesis_WER"]
    one = inputs["one_empty_reference_in_corpus"]
    assert corpus_edits(one["references"], one["hypotheses"])[0].rate == wanted["one_empty_reference_in_corpus_WER"]
    assert word_edits(*inputs["only_empty_reference"]).rate == wanted["only_empty_reference_WER_jiwer"]
    assert word_edits(*inputs["both_empty"]).rate == wanted["both_empty_WER_jiwer"]


def test_equal_to_jiwer_on_a_thousand_pairs() -> None:
    random = np.random.default_rng(3)
    lexicon = ["a", "b", "ab", "ba", "cab", "é"]
    pairs = []
    for _ in range(1000):
        reference = list(random.choice(lexicon, random.integers(1, 12)))
        hypothesis = [w for w in reference if random.random() > 0.2]
        for _ in range(random.integers(0, 4)):
            hypothesis.insert(random.integers(0, len(hypothesis) + 1), str(random.choice(lexicon)))
        pairs.append((" ".join(reference), " ".join(hypothesis)))
    for reference, hypothesis in pairs:
        words, characters = jiwer.process_words(reference, hypothesis), jiwer.process_characters(reference, hypothesis)
        for own, theirs in (
            (word_edits(reference, hypothesis), words),
            (character_edits(reference, hypothesis), characters),
        ):
            assert own.total == theirs.substitutions + theirs.deletions + theirs.insertions
            assert own.length == theirs.hits + theirs.substitutions + theirs.deletions
            assert own.insertions - own.deletions == theirs.insertions - theirs.deletions
    references, hypotheses = map(list, zip(*pairs, strict=True))
    pooled = corpus_edits(references, hypotheses)
    assert pooled[0].rate == jiwer.wer(references, hypotheses)
    assert pooled[1].rate == jiwer.cer(references, hypotheses)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("Don\u2019t log-in, now!", "don't log in now"),
        ("  'Quoted'  \u201cwords\u201d \u2026", "quoted words"),
        ("L\u2019heure, d'\u00c9TE\u0301", "l'heure d'\u00e9t\u00e9"),
        ("Press 1 or 22.", "press 1 or 22"),
        ("\u0130stanbul", "i\u0307stanbul"),
        ("?!", ""),
    ],
)
def test_transcripts_are_brought_into_one_form(text: str, form: str) -> None:
    assert normalize_transcript(text) == form
    assert normalize_transcript(form) == form


class Parrot:
    """Says for each batch what it was told to."""

    def __init__(self, says: dict[str, str]) -> None:
        self.says = says
        self.options: dict[str, Any] = {}

    def __call__(self, batch: Batch) -> Outputs:
        raise AssertionError("the probe needs no forward")

    def generate(self, batch: Batch, **options: Any) -> Outputs:
        self.options = options
        return Outputs(texts=[self.says[text] for text in batch["text"]])


def alone(tensor: Tensor) -> Tensor:
    return tensor


def measured(
    batches: list[Batch], says: dict[str, str], reduce: Callable[[Tensor], Tensor] = alone, **options: Any
) -> Any:
    probe = ErrorRateProbe(**options)
    probe.start(Parrot(says))
    for batch in batches:
        probe.update(batch, Outputs())
    return probe.compute(reduce, alone)


SAYS = {"The cat sat.": "the cat", "Hello": "hello, hello", "No way!": "no way"}


def test_the_probe_pools_words_and_leaves_padding_out() -> None:
    whole = [{"text": list(SAYS)}]
    parts = [
        {"text": ["The cat sat."], "valid": torch.tensor([True])},
        {"text": ["Hello", "No way!", "Hello"], "valid": torch.tensor([True, True, False])},
    ]
    for batches in (whole, parts):
        result = measured(batches, SAYS)
        assert (result.value, result.count) == (2 / 6, 6)
        assert result.metrics["cer"] == (4 + 6) / (11 + 5 + 6)
        assert [result.metrics[k] for k in ("substitutions", "deletions", "insertions")] == [0, 1, 1]
    assert measured(whole, SAYS, normalize=False).value == 6 / 6
    assert measured(whole, SAYS, reduce=lambda t: 2 * t).count == 12
    assert ErrorRateProbe.direction == "lower"
    assert not ErrorRateProbe.looks


def test_options_reach_generation_and_predictions_are_texts() -> None:
    probe, parrot = ErrorRateProbe(max_new_tokens=5), Parrot(SAYS)
    probe.start(parrot)
    rows = probe.predict({"text": ["Hello"]}, Outputs())
    assert rows == [{"reference": "hello", "hypothesis": "hello hello", "word_edits": 1}]
    assert parrot.options == {"max_new_tokens": 5}


def test_samples_without_a_transcript_are_refused() -> None:
    with pytest.raises(RunError, match="need one transcript each"):
        measured([{"audio": torch.zeros(2, 5)}], SAYS)


@pytest.mark.parametrize("batches", [[], [{"text": ["...", "?!"]}]])
def test_references_without_a_word_are_no_perfect_score(batches: list[Batch]) -> None:
    with pytest.raises(RunError, match="the references of the evaluation set have no words"):
        measured(batches, {"...": "", "?!": "hello"})
    if batches:
        assert measured(batches, {"...": "", "?!": "hello"}, normalize=False).value == 1.0
        assert measured([{"text": ["...", "Yes."]}], {"...": "oh", "Yes.": "yes"}).value == 1.0


def test_no_reference_word_counts_insertions() -> None:
    assert Edits(insertions=3).rate == 3.0
