"""Probes of answers: exact match, strict and lenient, and the likeliest choice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from mmcl.errors import ConfigError, RunError
from mmcl.metrics.choice_probe import ChoiceProbe, _likeliest, _right
from mmcl.metrics.exact_match_probe import ExactMatchProbe, normalise
from mmcl.metrics.probes import ProbeResult
from mmcl.outputs import Batch, Outputs


def same(tensor: Tensor) -> Tensor:
    return tensor


def score(probe: Any) -> ProbeResult:
    found: ProbeResult = probe.compute(same, same)
    return found


class Speaker:
    """Says what a batch tells it to."""

    def __call__(self, batch: Batch) -> Outputs:
        raise AssertionError("exact match needs no forward")

    def generate(self, batch: Batch, **options: Any) -> Outputs:
        assert options == {"max_new_tokens": 16}
        return Outputs(texts=batch["said"])


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The cat.", "cat"),
        ("  An  Adelaide ROSELLA!", "adelaide rosella"),
        ("theatre", "theatre"),
        ("l’été", "lété"),
        ("a", "a"),
        ("?", "?"),
        ("", ""),
        ("７", "7"),
    ],
)
def test_normalise(text: str, wanted: str) -> None:
    assert normalise(text) == wanted


def said(*pairs: tuple[str, list[str]], valid: Sequence[bool] | None = None) -> Batch:
    batch: Batch = {"said": [text for text, _ in pairs], "answers": [right for _, right in pairs]}
    batch["__key__"] = [str(i) for i in range(len(pairs))]
    return batch if valid is None else {**batch, "valid": torch.tensor(valid)}


def test_strict_and_lenient_matches() -> None:
    probe = ExactMatchProbe()
    probe.start(Speaker())
    probe.update(said(("Cat", ["cat"]), ("the cat.", ["a dog", "cat"]), ("cat", ["cat"])), Outputs())
    probe.update(said(("dog", ["cat"]), ("cat", ["cat"]), valid=[True, False]), Outputs())
    result = score(probe)
    assert (result.value, result.count, result.correct) == (0.75, 4, 3)
    assert result.metrics == {"exact_match": 0.75, "strict_match": 0.25}
    strict = ExactMatchProbe(strict=True)
    strict.start(Speaker())
    strict.update(said(("Cat", ["cat"]), ("cat ", ["cat"])), Outputs())
    assert (strict.metric, score(strict).value, score(strict).correct) == ("strict_match", 0.5, 1)
    assert probe.predict(said(("A cat", ["cat"])), Outputs()) == [
        {"generated": "A cat", "answers": ["cat"], "correct": True, "strict": False}
    ]


def test_questions_that_cannot_be_scored() -> None:
    probe = ExactMatchProbe()
    probe.start(Speaker())
    with pytest.raises(RunError, match="no samples"):
        score(probe)
    with pytest.raises(RunError, match="sample '0' of the evaluation set has no answer"):
        probe.update(said(("cat", [])), Outputs())
    with pytest.raises(RunError, match="samples have no answers"):
        probe.update({"said": ["cat"]}, Outputs())
    with pytest.raises(ConfigError, match="must be positive"):
        ExactMatchProbe(max_new_tokens=0)
    with pytest.raises(ConfigError, match="score 'max'"):
        ChoiceProbe(answer, score="max")  # type: ignore[arg-type]


LETTERS = "abcdefghij"


def answer(batch: Batch, texts: Sequence[str]) -> Batch:
    return {**batch, "texts": list(texts)}


class Reader:
    """Letters are tokens, with the log-probabilities that a batch brings; rows end at their text's end."""

    def __call__(self, batch: Batch) -> Outputs:
        longest = max(map(len, batch["texts"]))
        targets = torch.full((len(batch["texts"]), longest), -100)
        for row, text in zip(targets, batch["texts"], strict=True):
            row[: len(text)] = torch.tensor([LETTERS.index(letter) for letter in text])
        logits = batch["letters"][:, None, :].expand(-1, longest, -1).log_softmax(dim=-1)
        return Outputs(logits=logits, targets=targets, valid=targets >= 0)

    def generate(self, batch: Batch, **options: Any) -> Outputs:
        raise AssertionError("a choice generates nothing")


def asked(choices: Sequence[Sequence[str]], right: Sequence[str], likely: Sequence[str]) -> Batch:
    letters = torch.stack([torch.tensor([3.0 if letter in word else 0.0 for letter in LETTERS]) for word in likely])
    keys = [str(i) for i in range(len(right))]
    return {"letters": letters, "choices": choices, "answers": [[text] for text in right], "__key__": keys}


def choose(batch: Batch, **options: Any) -> ChoiceProbe:
    probe = ChoiceProbe(answer, **options)
    probe.start(Reader())
    probe.update(batch, Outputs())
    return probe


def test_the_likeliest_choice() -> None:
    batch = asked([["bb", "cc", "dd"], ["bb", "cc"]], ["cc", "BB"], ["c", "c"])
    result = score(choose(batch))
    assert (result.value, result.count, result.correct) == (0.5, 2, 1)
    batch["valid"] = torch.tensor([True, False])
    assert score(choose(batch)).value == 1.0
    first, second = choose(batch).predict(batch, Outputs())
    assert first["answer"] == "cc" and first["correct"] and list(first["scores"]) == ["bb", "cc", "dd"]
    assert second["answer"] == "cc" and not second["correct"] and list(second["scores"]) == ["bb", "cc"]


def test_scores_that_are_no_numbers_are_never_right() -> None:
    batch = {**asked([[], [], []], [""] * 3, ["b", "b", "c"]), "labels": torch.tensor([0, 0, 1])}
    batch["letters"][0] = torch.nan  # every score of the row
    result = score(choose(batch, choices=["b", "c"]))
    assert (result.correct, result.count) == (2, 3)
    rows = choose(batch, choices=["b", "c"]).predict(batch, Outputs())
    assert [(row["answer"], row["correct"]) for row in rows] == [(None, False), ("b", True), ("c", True)]


def test_a_score_that_is_no_number_does_not_hide_the_others() -> None:
    assert _likeliest(torch.tensor([[torch.nan, -2.0, -1.0], [-3.0, torch.nan, -torch.inf]])) == [2, 0]


def test_a_choice_as_it_is_written_is_right_before_those_that_differ_in_form() -> None:
    """Without punctuation 5 and -5 are one answer."""
    choices = [["5", "-5", "50 %"], ["Paris.", "Rome"], ["-7", "- 7"]]
    batch = {"answers": [["-5 "], ["paris"], ["7"]], "__key__": ["x", "y", "z"]}
    assert _right(batch, choices) == [{1}, {0}, {0, 1}]


def test_mean_and_sum_differ_in_what_they_make_of_length() -> None:
    batch = asked([["c" * 10, "d"]], ["c" * 10], ["c"])
    assert score(choose(batch)).value == 1.0
    assert score(choose(batch, score="sum")).value == 0.0


def test_choices_of_the_set_and_labels() -> None:
    batch = {**asked([[], []], ["", ""], ["b", "c"]), "labels": torch.tensor([1, 1])}
    assert score(choose(batch, choices=["b", "c"])).value == 0.5
    with pytest.raises(RunError, match="no `choices`"):
        choose(batch)
    with pytest.raises(RunError, match="sample '1' is none of its 2 choices"):
        choose({**batch, "labels": torch.tensor([0, 7])}, choices=["b", "c"])
    with pytest.raises(RunError, match="sample '0' is none of its 2 choices"):
        choose(asked([["b", "c"]], ["e"], ["b"]))
