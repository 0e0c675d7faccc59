"""Projections of gradients: optimal to rounding, and those of the published code where they are meant to be."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmcl.errors import MmclError
from mmcl.functional import agem_projection, gem_projection
from mmcl.functional.gradients import flatten, non_negative_minimum


def draw(seed: int, tasks: int, size: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(s, generator=generator, dtype=dtype) for s in ((size,), (tasks, size)))  # type: ignore[return-value]


def brute(matrix: Tensor, linear: Tensor) -> float:
    """The least value of the dual problem, over all sets of free variables."""
    best = 0.0
    for chosen in itertools.product([False, True], repeat=len(linear)):
        free = torch.tensor(chosen)
        if free.any():
            part = torch.linalg.lstsq(matrix[free][:, free], -linear[free, None], driver="gelsd").solution[:, 0]
            if (part >= 0).all():
                best = min(best, float(part @ matrix[free][:, free] @ part / 2 + linear[free] @ part))
    return best


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(2, 9))
@settings(max_examples=60, deadline=None)
def test_gem_is_the_nearest_gradient_that_harms_nothing(seed: int, tasks: int, size: int) -> None:
    """The conditions of optimality: x = g + M^T v, v >= 0, M x >= 0, v . M x = 0."""
    gradient, memories = draw(seed, tasks, size)
    found = gem_projection(gradient, memories)
    products = memories @ found
    assert products.min() >= -1e-9
    factors = non_negative_minimum(memories @ memories.T, memories @ gradient)
    assert factors.min() >= 0
    torch.testing.assert_close(found, gradient + factors @ memories, rtol=1e-9, atol=1e-9)
    assert abs(float(factors @ products)) <= 1e-8 * max(1.0, float(factors.max()))
    matrix, linear = memories @ memories.T, memories @ gradient
    value = float(factors @ matrix @ factors / 2 + linear @ factors)
    assert value == pytest.approx(brute(matrix, linear), rel=1e-7, abs=1e-9)


def test_gem_with_memories_that_say_the_same_and_one_that_says_nothing() -> None:
    gradient, memories = draw(3, 2, 6)
    memories = torch.cat([-gradient[None] + 0.1 * memories[:1], memories, torch.zeros(1, 6, dtype=torch.float64)])
    once, twice = gem_projection(gradient, memories), gem_projection(gradient, torch.cat([memories, memories * 3]))
    torch.testing.assert_close(once, twice, rtol=1e-8, atol=1e-8)
    assert (memories @ twice).min() >= -1e-8


@pytest.mark.parametrize("size", [1e-37, 1e-23, 1.0, 1e23])
def test_memories_of_any_length_are_projected_on(size: float) -> None:
    """Of the length of a memory nothing depends, also where its square is no number of float32."""
    gradient, memory = torch.tensor([1.0, 1.0]), torch.tensor([[-1.0, 0.5], [0.0, 0.25]])
    for found, wanted in (
        (agem_projection(gradient, memory[0] * size), agem_projection(gradient, memory[0])),
        (gem_projection(gradient, memory * size), gem_projection(gradient, memory)),
        (gem_projection(gradient, memory * torch.tensor([[size], [1.0]])), gem_projection(gradient, memory)),
    ):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("where", ["gradient", "memory"])
def test_what_is_not_finite_is_left_alone(value: float, where: str) -> None:
    """A gradient scaler skips such a step; the solver of the dual problem would end the run."""
    gradient, memories = torch.tensor([1.0, 1.0]), torch.tensor([[-1.0, 0.5], [0.0, -1.0], [1.0, -2.0]])
    (gradient if where == "gradient" else memories[1])[0] = value
    torch.testing.assert_close(gem_projection(gradient, memories), gradient, equal_nan=True)
    torch.testing.assert_close(agem_projection(gradient, memories[1]), gradient, equal_nan=True)


def test_a_gradient_that_harms_nothing_stays() -> None:
    gradient = torch.tensor([1.0, 2.0])
    assert gem_projection(gradient, torch.eye(2), margin=0.5) is gradient
    assert agem_projection(gradient, torch.tensor([1.0, 0.0])) is gradient
    assert gem_projection(gradient, torch.zeros(0, 2)) is gradient


def test_margin_is_the_least_factor_of_each_memory() -> None:
    """As in the published code, where the dual variables are bounded by it."""
    gradient, memories = torch.tensor([-1.0, 2.0]), torch.eye(2)
    assert gem_projection(gradient, memories).tolist() == [0.0, 2.0]
    assert gem_projection(gradient, memories, margin=0.5).tolist() == [0.0, 2.5]
    assert gem_projection(gradient, memories, margin=3.0).tolist() == [2.0, 5.0]
    shrunk = gem_projection(gradient, memories, eps=1.0)
    assert shrunk.tolist() == [-0.5, 2.0]


def test_one_memory_without_a_margin_is_agem() -> None:
    for seed in range(8):
        gradient, memories = draw(seed, 1, 5)
        torch.testing.assert_close(gem_projection(gradient, memories), agem_projection(gradient, memories[0]))


@given(st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_agem_keeps_the_product_from_being_negative(seed: int) -> None:
    gradient, memories = draw(seed, 1, 7)
    reference = memories[0]
    found = agem_projection(gradient, reference)
    assert float(found @ reference) >= -1e-12
    if gradient @ reference < 0:
        expected = gradient - (gradient @ reference) / (reference @ reference) * reference
        torch.testing.assert_close(found, expected)


def test_precision_is_the_wider_one_and_the_type_stays() -> None:
    gradient, memories = draw(0, 3, 4000, torch.float32)
    gradient = gradient - memories.sum(0)
    exact = gem_projection(gradient.double(), memories.double())
    torch.testing.assert_close(gem_projection(gradient, memories), exact.float(), rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(gem_projection(gradient, memories), exact.float(), rtol=1e-4, atol=1e-4)
    assert gem_projection(gradient.bfloat16(), memories).dtype == torch.bfloat16
    assert agem_projection(gradient.bfloat16(), -gradient).dtype == torch.bfloat16


def test_flattening_widens() -> None:
    found = flatten({"a": torch.ones(2, 2, dtype=torch.bfloat16), "b": torch.zeros(())}, ["a", "b"])
    assert found.tolist() == [1, 1, 1, 1, 0] and found.dtype == torch.float32


@pytest.mark.parametrize(
    "call",
    [
        lambda: agem_projection(torch.ones(2), torch.ones(3)),
        lambda: agem_projection(torch.ones(2, 2), torch.ones(2, 2)),
        lambda: gem_projection(torch.ones(2), torch.ones(2)),
        lambda: gem_projection(torch.ones(2), torch.ones(1, 3)),
        lambda: gem_projection(torch.ones(2), torch.ones(1, 2), margin=-1.0),
    ],
)
def test_errors(call) -> None:
    with pytest.raises(MmclError):
        call()
