"""Exemplars and quotas."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmcl.functional.selection import equal_quotas, herding, k_means, k_means_exemplars, quotas

SIZES = st.lists(st.integers(0, 50), min_size=1, max_size=8)


@given(SIZES, st.integers(0, 200))
def test_quotas_use_the_memory_and_no_more_than_there_is(sizes: list[int], budget: int) -> None:
    for rule in (quotas, equal_quotas):
        found = rule(sizes, budget)
        assert sum(found) == min(budget, sum(sizes))
        assert all(0 <= part <= size for part, size in zip(found, sizes, strict=True))


@given(SIZES, st.integers(0, 200))
def test_quotas_are_proportional_to_less_than_one_sample(sizes: list[int], budget: int) -> None:
    total = sum(sizes)
    if total > budget:
        assert all(abs(p - s * budget / total) < 1 for p, s in zip(quotas(sizes, budget), sizes, strict=True))


def test_negative_sizes_are_refused() -> None:
    for rule in (quotas, equal_quotas):
        with pytest.raises(ValueError, match="must be 0 or more"):
            rule([1, -1], 2)


def test_herding_is_greedy_and_nested() -> None:
    torch.manual_seed(0)
    rows = torch.randn(40, 6)
    chosen = herding(rows, 10).tolist()
    assert len(set(chosen)) == 10 and herding(rows, 4).tolist() == chosen[:4]
    unit = torch.nn.functional.normalize(rows.double(), dim=1)
    mean, taken = unit.mean(0), []
    for step in range(10):
        free = [i for i in range(40) if i not in taken]
        taken.append(min(free, key=lambda i: float((mean - unit[[*taken, i]].mean(0)).norm())))
        assert taken == chosen[: step + 1]
    assert sorted(herding(rows, 99).tolist()) == list(range(40))


def test_k_means_finds_the_clusters_and_puts_large_ones_first() -> None:
    torch.manual_seed(0)
    sizes, centres = (30, 20, 10), torch.eye(3)
    rows = torch.cat([c + 0.01 * torch.randn(n, 3) for n, c in zip(sizes, centres, strict=True)])
    chosen = k_means_exemplars(rows, 3, torch.Generator().manual_seed(1))
    assert [int(row >= 30) + int(row >= 50) for row in chosen] == [0, 1, 2]
    again = k_means_exemplars(rows, 3, torch.Generator().manual_seed(1))
    assert torch.equal(chosen, again)


def test_centres_are_the_means_of_their_clusters() -> None:
    torch.manual_seed(0)
    directions = torch.eye(3)
    rows = torch.cat([3 * c + 0.01 * torch.randn(10, 3) for c in directions])
    unit = torch.nn.functional.normalize(rows.double(), dim=1)
    found = k_means(unit, 3, torch.Generator().manual_seed(1))
    for direction, members in zip(directions.double(), unit.split(10), strict=True):
        nearest = found[(found - direction).norm(dim=1).argmin()]
        torch.testing.assert_close(nearest, members.mean(0))
    torch.testing.assert_close(k_means(unit[:2], 3, torch.Generator()), unit[[0, 1, 1]])


def test_k_means_of_copies_still_chooses_distinct_rows() -> None:
    rows = torch.ones(6, 2)
    assert len(set(k_means_exemplars(rows, 4, torch.Generator().manual_seed(0)).tolist())) == 4
    assert k_means_exemplars(rows, 9, torch.Generator().manual_seed(0)).tolist() == list(range(6))
