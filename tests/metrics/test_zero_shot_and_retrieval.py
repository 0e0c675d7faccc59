"""Zero-shot classification and retrieval: parity, ties, and numbers that do not depend on how the data are cut."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmcl.errors import MmclError
from mmcl.metrics import (
    ClassificationCounts,
    retrieval_recall,
    retrieval_recall_from_similarity,
    zero_shot_classifier,
    zero_shot_logits,
)

PARITY = Path(__file__).parents[1] / "parity" / "metrics"
EXACT = {"rtol": 0, "atol": 1e-9}


def cases(name: str) -> list[dict[str, Any]]:
    return json.loads((PARITY / f"{name}.json").read_text())["cases"]


def test_zero_shot_parity() -> None:
    (case,) = cases("clip_zero_shot_classifier")
    given, expected = case["inputs"], case["expected"]
    texts = torch.tensor(given["text_features_class_template_dim"], dtype=torch.float64)
    images = torch.tensor(given["image_features"], dtype=torch.float64)
    classifier = zero_shot_classifier(texts)
    logits = zero_shot_logits(images, classifier)
    torch.testing.assert_close(classifier, torch.tensor(expected["class_weights"], dtype=torch.float64), **EXACT)
    torch.testing.assert_close(logits, torch.tensor(expected["logits"], dtype=torch.float64), **EXACT)
    assert logits.argmax(dim=1).tolist() == expected["prediction"]
    counts = ClassificationCounts.of(logits, torch.tensor(given["labels"]))
    assert counts.top1 == expected["top1"] and counts.mean_per_class_recall == expected["mean_per_class_recall"]
    assert counts.top5 == 1.0 and counts.correct1 == 3 and counts.total == 6


def test_texts_in_any_order() -> None:
    texts = torch.randn(5, 3, 7, dtype=torch.float64)
    order = torch.randperm(15)
    index = torch.arange(5).repeat_interleave(3)[order]
    shuffled = zero_shot_classifier(texts.reshape(15, 7)[order], class_index=index)
    torch.testing.assert_close(shuffled, zero_shot_classifier(texts))
    ragged = zero_shot_classifier(texts.reshape(15, 7)[[0, 1, 3]], class_index=[0, 0, 1])
    torch.testing.assert_close(ragged[1], texts[1, 0] / texts[1, 0].norm())


@given(st.data(), st.integers(2, 8), st.integers(1, 40))
def test_counts_add_up_however_samples_are_cut(data: st.DataObject, classes: int, samples: int) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    logits = torch.randint(0, 4, (samples, classes), generator=generator).float()  # many ties
    labels = torch.randint(0, classes, (samples,), generator=generator)
    whole = ClassificationCounts.of(logits, labels)
    cut = data.draw(st.integers(1, samples))
    parts = ClassificationCounts.empty(classes)
    for rows in torch.arange(samples).split(cut):
        padded = torch.cat([rows, rows[:1], rows[:1]])
        valid = torch.arange(len(padded)) < len(rows)
        parts = parts + ClassificationCounts.of(logits[padded], labels[padded], valid=valid)
    assert torch.equal(parts.table, whole.table)
    assert whole.correct1 == int((logits.argmax(1) == labels).sum()) and whole.total == samples
    assert whole.correct5 >= whole.correct1
    if classes <= 5:
        assert whole.correct5 == samples


def test_constant_and_broken_scores_win_nothing() -> None:
    labels = torch.arange(10)
    constant = ClassificationCounts.of(torch.zeros(10, 10), labels)
    assert constant.correct1 == 1 and constant.correct5 == 5
    broken = ClassificationCounts.of(torch.full((10, 10), torch.nan), labels)
    assert broken.correct1 == broken.correct5 == 0
    empty = ClassificationCounts.empty(3)
    assert empty.top1 is None and empty.top5 is None and empty.mean_per_class_recall is None


@pytest.mark.parametrize("chunk", [1, 5, 1024])
def test_retrieval_parity(chunk: int) -> None:
    for case in cases("retrieval_recall_multi_caption"):
        given, expected = case["inputs"], dict(case["expected"])
        similarity = torch.tensor(given["S"], dtype=torch.float64)
        ks = sorted({int(key.split("@")[1]) for key in expected if "@" in key})
        scores = retrieval_recall_from_similarity(similarity, given["owner"], ks=ks, chunk=chunk).scores()
        if "R_mean_of_six" in expected:
            expected["R_mean"] = expected.pop("R_mean_of_six")
        for name, value in expected.items():
            assert scores[name] == pytest.approx(value, rel=0, abs=1e-9), name


@given(st.integers(1, 8), st.integers(0, 1000), st.integers(1, 9))
def test_retrieval_against_a_plain_sort(images: int, seed: int, chunk: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    owner = torch.cat([torch.arange(images), torch.randint(0, images, (5,), generator=generator)])
    similarity = torch.randint(0, 3, (images, len(owner)), generator=generator).float()
    result = retrieval_recall_from_similarity(similarity, owner, ks=(1, 3, 100), chunk=chunk)
    for k in (1, 3):
        by_image = similarity.argsort(dim=1, descending=True, stable=True)[:, :k]
        by_text = similarity.T.argsort(dim=1, descending=True, stable=True)[:, :k]
        found = (owner[by_image] == torch.arange(images)[:, None]).any(dim=1)
        assert result.image_to_text[k] == int(found.sum())
        assert result.text_to_image[k] == int((by_text == owner[:, None]).any(dim=1).sum())
    assert result.scores()["mean_R@100"] == 1.0


def test_retrieval_of_features() -> None:
    images, texts = torch.eye(4) * 3, torch.eye(4)[[2, 0, 1, 3, 3]] * 0.5
    assert retrieval_recall(images, texts, [2, 0, 1, 3, 3], ks=(1,)).scores()["R_mean"] == 1.0
    constant = retrieval_recall(torch.ones(4, 2), torch.ones(4, 2), range(4), ks=(1,)).scores()
    assert constant["image_to_text_R@1"] == constant["text_to_image_R@1"] == 0.25
    broken = retrieval_recall(torch.zeros(4, 2), torch.ones(4, 2), range(4), ks=(1, 10)).scores()
    assert broken["R_mean"] == 0.0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: zero_shot_classifier(torch.randn(3, 4)), r"give \(classes, templates, D\)"),
        (lambda: zero_shot_classifier(torch.randn(3, 4), class_index=[0, 2, 2]), "class 1 has no text"),
        (lambda: zero_shot_classifier(torch.randn(3, 4), class_index=[0, 1]), "do not match"),
        (lambda: zero_shot_classifier(torch.randn(3, 4), class_index=[0, -1, 1]), "negative"),
        (lambda: ClassificationCounts.of(torch.randn(2, 3), torch.tensor([0, 3])), "do not fit 3 class names"),
        (lambda: ClassificationCounts.of(torch.randn(2, 3), torch.tensor([0])), "do not match"),
        (lambda: retrieval_recall(torch.randn(2, 3), torch.randn(2, 4), [0, 1]), "do not match"),
        (lambda: retrieval_recall(torch.randn(2, 3), torch.randn(2, 3), [0, 0]), "image 1 has no caption"),
        (lambda: retrieval_recall(torch.randn(2, 3), torch.randn(2, 3), [0, 2]), r"images 0\.\.1"),
        (lambda: retrieval_recall(torch.randn(2, 3), torch.randn(2, 3), [0]), "each of 2 captions"),
        (lambda: retrieval_recall(torch.randn(2, 3), torch.randn(2, 3), [0, 1], ks=()), "different numbers"),
        (lambda: retrieval_recall_from_similarity(torch.randn(2), [0, 1]), r"expected \(images, texts\)"),
    ],
)
def test_errors(call, words: str) -> None:
    with pytest.raises(MmclError, match=words):
        call()
