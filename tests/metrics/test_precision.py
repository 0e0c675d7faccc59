"""Mean average precision against the worked example of P9D and against its definition, query by query."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmcl.errors import MmclError
from mmcl.metrics import ScoreMatrix, forgetting, mean_average_precision

FILE = Path(__file__).parents[1] / "parity" / "metrics" / "p9d_retrieval_and_map.json"
RANKS = (1, 5, 10)


def by_definition(row: list[float], own: int, label: int, labels: list[int], k: int, divisor: str) -> float:
    """Average precision of one query as the notes beside the example have it."""
    ranked = [i for i in np.argsort(-np.array(row), kind="stable") if i != own]
    right = [labels[i] == label for i in ranked]
    relevant = sum(right)
    depth = min(k, relevant) if divisor == "found" else k
    precisions = [sum(right[: i + 1]) / (i + 1) for i in range(min(depth, len(right))) if right[i]]
    count = len(precisions) if divisor == "found" else min(k, relevant)
    return sum(precisions) / count if count else 0.0


@pytest.mark.parametrize(("divisor", "name"), [("found", "ctp"), ("relevant", "standard")])
def test_worked_example(divisor: str, name: str) -> None:
    case = json.loads(FILE.read_text())["cases"][0]
    given_, expected = case["inputs"], case["expected"][name]
    codes = {label: i for i, label in enumerate(sorted(set(given_["gallery_label"])))}
    queries, items = ([codes[label] for label in given_[f"{who}_label"]] for who in ("query", "gallery"))
    similarity = torch.tensor(given_["similarity_query_by_gallery"], dtype=torch.float64)
    found = mean_average_precision(similarity, queries, items, ks=RANKS, divisor=divisor)  # type: ignore[arg-type]
    for k in RANKS:
        assert 100 * found[k] == pytest.approx(expected[f"mAP@{k}"], rel=0, abs=1e-9)


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 9), st.booleans())
def test_definition(seed: int, queries: int, items: int, itself: bool) -> None:
    random = np.random.default_rng(seed)
    scores = random.integers(0, 4, (queries, items)).astype(float)  # many ties
    asked, there = random.integers(0, 3, queries).tolist(), random.integers(0, 3, items).tolist()
    own = random.integers(-1, items, queries).tolist() if itself else [-1] * queries
    for divisor in ("relevant", "found"):
        found = mean_average_precision(
            torch.from_numpy(scores), asked, there, ks=(1, 2, 20), divisor=divisor, own=own if itself else None
        )
        for k, value in found.items():
            each = [by_definition(scores[q].tolist(), own[q], asked[q], there, k, divisor) for q in range(queries)]
            assert value == pytest.approx(np.mean(each), abs=1e-12)


def test_the_backward_transfer_that_ctp_prints_is_forgetting_since_each_pool_was_complete() -> None:
    """The sum of the drops from each pool's own row ("so far") to the last one ("final"), over n - 1."""
    case = json.loads(FILE.read_text())["cases"][1]
    before, after = case["inputs"]["so_far"], case["inputs"]["final"]
    pools = ["one", "two", "all"]
    matrix = ScoreMatrix([None, [before[0], None, None], [None, before[1], None], after], pools, pools)
    assert float(forgetting(matrix, variant="initial")) == pytest.approx(case["expected"]["ctp_bwt_after_n"]["3"])


@pytest.mark.parametrize(
    "call",
    [
        lambda s: mean_average_precision(s, [0, 1], [0, 1]),
        lambda s: mean_average_precision(s[0], [0, 1], [0, 1, 2]),
        lambda s: mean_average_precision(s[:0], [], [0, 1, 2]),
        lambda s: mean_average_precision(s, [0, 1], [0, 1, 2], ks=(0,)),
        lambda s: mean_average_precision(s, [0, 1], [0, 1, 2], divisor="all"),
    ],
)
def test_errors(call) -> None:
    with pytest.raises(MmclError, match="mean_average_precision"):
        call(torch.zeros(2, 3))
