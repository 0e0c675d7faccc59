"""Merges against the parity arrays, TIES against its rules written out, and what every merge leaves alone."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mmcl.errors import MmclError
from mmcl.functional import (
    breadcrumbs,
    dare,
    ema,
    instruction_residual,
    layer_scaling,
    magmax,
    model_stock,
    running_magmax,
    slerp,
    task_arithmetic,
    task_vector,
    ties,
    unrolled,
)
from mmcl.functional.trimming import Pruned, threshold

PARITY = Path(__file__).parents[1] / "parity"
NAMES = ("a.weight", "a.bias", "b.weight", "b.bias")


def arrays(name: str) -> dict[str, Tensor]:
    with np.load(PARITY / name) as data:
        return {key: torch.from_numpy(data[key].copy()) for key in data.files}


def close(actual: dict[str, Tensor], a: dict[str, Tensor], prefix: str) -> None:
    assert set(actual) == set(NAMES)
    for name in NAMES:
        torch.testing.assert_close(actual[name], a[f"{prefix}.{name}"], rtol=1e-9, atol=1e-12)


Recording = tuple[dict[str, Tensor], dict[str, Tensor], list[dict[str, Tensor]], list[dict[str, Tensor]]]


def recorded(name: str) -> Recording:
    """(arrays, base, models, task vectors)."""
    a = arrays(f"merging/{name}.npz")
    base = {n: a[f"theta0.{n}"] for n in NAMES}
    models = [{n: a[f"thetas.{n}"][i] for n in NAMES} for i in range(4)]
    return a, base, models, [task_vector(m, base) for m in models]


def test_magmax_parity() -> None:
    a, base, _, vectors = recorded("magmax_ta_average_f64")
    for scale in (0.5, 1.0):
        close(magmax(base, vectors, scale), a, f"magmax_scale{scale}")
    zeros = {name: torch.zeros_like(value) for name, value in base.items()}
    close(magmax(zeros, iter(vectors), 1.0), a, "magmax_tv")
    close(magmax(base, vectors, 1.0, later_wins=False), a, "fomo_magmax")
    assert not torch.equal(a["fomo_magmax.a.weight"], a["magmax_scale1.0.a.weight"])  # the two tie rules differ there


def test_running_magmax_is_the_whole_one() -> None:
    a, base, _, vectors = recorded("magmax_ta_average_f64")
    largest = {name: torch.zeros_like(value) for name, value in base.items()}
    for vector in vectors:
        assert running_magmax(largest, vector) is largest
    close(task_arithmetic(base, [largest], 0.5), a, "magmax_scale0.5")


def test_task_arithmetic_parity() -> None:
    a, base, models, vectors = recorded("magmax_ta_average_f64")
    for scale in (0.3, 0.25, 1):
        close(task_arithmetic(base, vectors, scale), a, f"task_arithmetic_scale{scale}")
    close(task_arithmetic(base, vectors[:1], -0.5), a, "negate_task0_scale0.5")
    close(task_arithmetic(base, vectors, 1 / len(models)), a, "average")
    close(task_arithmetic(base, vectors, [0.1, 0.2, 0.3, 0.4]), a, "weighted_average_1234")


@pytest.mark.parametrize("weight", [0.1, 0.5, 0.9])
def test_interpolation_over_time_parity(weight: float) -> None:
    a, base, models, _ = recorded("temporal_f64")
    merged = {name: value.clone() for name, value in base.items()}
    for k, model in enumerate(models, 1):
        ema(merged, model, decay=1 - weight)
        close(merged, a, f"unrolled_wnew{weight}_after{k}")
        pairs = unrolled(base, models[:k], lambda base, pair: task_arithmetic(base, pair, [weight, 1 - weight]))
        close(pairs, a, f"unrolled_wnew{weight}_after{k}")


def test_unrolled_merges_parity() -> None:
    a, base, models, vectors = recorded("temporal_f64")
    for k in range(1, 5):
        found = unrolled(base, models[:k], lambda base, pair: magmax(base, pair, 1.0, later_wins=False))
        close(found, a, f"unrolled_magmax_after{k}")
        found = unrolled(base, models[:k], lambda base, pair: task_arithmetic(base, pair, 1.0))
        close(found, a, f"unrolled_task_arithmetic_after{k}")
        close(task_arithmetic(base, vectors[:k], 1.0), a, f"unrolled_task_arithmetic_after{k}")


def test_slerp_and_model_stock_parity() -> None:
    a, base, models, vectors = recorded("temporal_f64")
    close(slerp(models[0], models[1], 0.3), a, "slerp_w0.3_of_0_1")
    close(model_stock(base, vectors[:2]), a, "model_stock_0_1")


def test_instruction_residual_parity() -> None:
    a = arrays("text/instruct_residual_f64.npz")
    weights = ({"w": a[f"theta_{name}"]} for name in ("base_cpt", "instruct", "base"))
    torch.testing.assert_close(instruction_residual(*weights)["w"], a["theta_out"], rtol=1e-9, atol=1e-12)


def ties_by_rule(rows: Tensor, kth: int, aggregation: str) -> Tensor:
    """(K, d) flat task vectors -> the merged one, as the notes beside the arrays have it."""
    rows = torch.stack([torch.where(row.abs() >= row.abs().sort().values[kth - 1], row, 0) for row in rows])
    signs = rows.sum(0).sign()
    signs[signs == 0] = signs.sum().sign()
    agree = torch.where(rows.sign() == signs, rows, 0)
    if aggregation == "sum":
        return agree.sum(0)
    if aggregation == "max":
        return agree.abs().amax(0) * signs
    return agree.sum(0) / agree.count_nonzero(0).clamp(min=1)


@pytest.mark.parametrize("aggregation", ["mean", "sum", "max"])
@pytest.mark.parametrize("density", [0.2, 0.5, 0.37, 0.9])
@pytest.mark.parametrize("fomo", [False, True])
def test_ties_by_its_rules(aggregation: Any, density: float, fomo: bool) -> None:
    _, base, _, vectors = recorded("magmax_ta_average_f64")
    rows = torch.stack([torch.cat([vector[name].flatten() for name in NAMES]) for vector in vectors])
    kth = int(53 * (1 - density)) if fomo else 53 - int(53 * density)
    expected = ties_by_rule(rows, kth, aggregation)
    found = ties(base, vectors, density, 0.7, aggregation=aggregation, fomo=fomo)
    flat = torch.cat([(found[name] - base[name]).flatten() for name in NAMES])
    torch.testing.assert_close(flat, 0.7 * expected, rtol=1e-9, atol=1e-12)
    assert not torch.equal(flat, torch.zeros_like(flat))


@given(st.lists(st.lists(st.integers(-2, 2), min_size=3, max_size=3), min_size=2, max_size=4), st.floats(0.1, 0.9))
def test_ties_of_small_numbers_where_magnitudes_tie_and_sums_cancel(rows: list[list[int]], density: float) -> None:
    values = torch.tensor(rows, dtype=torch.float64)
    expected = ties_by_rule(values, 3 - int(3 * density), "mean")
    vectors = [{"b": row[:1], "a": row[1:]} for row in values]
    found = ties({"b": torch.zeros(1).double(), "a": torch.zeros(2).double()}, vectors, density, 1.0)
    torch.testing.assert_close(torch.cat([found["b"], found["a"]]), expected)


def test_an_even_entry_takes_the_sign_of_the_majority() -> None:
    vectors = [{"w": torch.tensor([1.0, -3.0, -2.0])}, {"w": torch.tensor([-1.0, -1.0, -4.0])}]
    assert ties({"w": torch.zeros(3)}, vectors, 1.0, 1.0)["w"].tolist() == [-1.0, -2.0, -3.0]
    alone = [{"w": torch.tensor([1.0])}, {"w": torch.tensor([-1.0])}]
    assert ties({"w": torch.zeros(1)}, alone, 1.0, 1.0)["w"].tolist() == [0.0]  # nobody to ask


def test_the_whole_vector_shares_one_threshold() -> None:
    vector = {"large": torch.arange(10.0, 20.0), "small": torch.arange(1.0, 11.0)}
    found = ties({name: torch.zeros(10) for name in vector}, [vector], 0.25, 1.0)
    assert found["small"].count_nonzero() == 0 and found["large"].count_nonzero() == 6  # int(20 x 0.25) + 1


def test_large_tensors_are_merged_in_pieces() -> None:
    torch.manual_seed(0)
    vectors = [{"w": torch.randn(40, 1000)} for _ in range(3)]
    base = {"w": torch.randn(40, 1000)}
    found = ties(base, vectors, 0.2, 1.0)["w"] - base["w"]
    expected = ties_by_rule(torch.stack([v["w"].flatten() for v in vectors]), 40000 - 8000, "mean")
    torch.testing.assert_close(found.flatten(), expected, rtol=1e-5, atol=1e-6)
    largest = torch.stack([v["w"] for v in vectors])
    expected = largest.gather(0, largest.abs().argmax(0, keepdim=True))[0]
    torch.testing.assert_close(magmax(base, vectors, 1.0)["w"] - base["w"], expected, rtol=1e-5, atol=1e-6)


MERGES: dict[str, Any] = {
    "task_arithmetic": lambda base, vectors: task_arithmetic(base, vectors, 0.5),
    "magmax": lambda base, vectors: magmax(base, vectors, 0.5),
    "ties": lambda base, vectors: ties(base, vectors, 0.5, 1.0),
    "model_stock": model_stock,
}


@pytest.mark.parametrize("merge", MERGES.values(), ids=MERGES)
def test_merges_leave_their_inputs_and_integers_alone(merge: Any) -> None:
    base = {"w": torch.randn(4, 4).bfloat16(), "count": torch.tensor(3), "mask": torch.tensor([True, False])}
    models = [{"w": torch.randn(4, 4).bfloat16(), "count": torch.tensor(i), "mask": base["mask"]} for i in (4, 5)]
    vectors = [task_vector(model, base) for model in models]
    assert set(vectors[0]) == {"w"} and vectors[0]["w"].dtype == torch.float32
    kept = [{n: t.clone() for n, t in weights.items()} for weights in (base, *vectors)]
    found = merge(base, vectors)
    assert found["w"].dtype == torch.float32 and found["count"] == 3 and torch.equal(found["mask"], base["mask"])
    assert not torch.equal(found["w"], base["w"].float())
    found["count"].zero_()
    for weights, before in zip((base, *vectors), kept, strict=True):
        assert all(torch.equal(weights[n], before[n]) for n in before)


@pytest.mark.parametrize("merge", MERGES.values(), ids=MERGES)
def test_merges_do_not_depend_on_how_weights_lie_in_memory(merge: Any) -> None:
    torch.manual_seed(0)
    convolution = torch.channels_last
    models = [{"c": torch.randn(4, 3, 2, 2).to(memory_format=convolution), "t": torch.randn(5, 4).T} for _ in range(3)]
    plain = [{name: value.contiguous() for name, value in model.items()} for model in models]
    found, expected = (merge(m[0], [task_vector(model, m[0]) for model in m[1:]]) for m in (models, plain))
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])
    kept = {name: torch.zeros_like(value) for name, value in models[0].items()}
    assert not kept["c"].is_contiguous() and not kept["t"].is_contiguous()
    for model in models:
        running_magmax(kept, model)
    for name, value in kept.items():
        rows = torch.stack([model[name] for model in models])
        assert torch.equal(value, rows.gather(0, rows.abs().argmax(0, keepdim=True))[0])


@pytest.mark.parametrize("merge", MERGES.values(), ids=MERGES)
def test_what_does_not_fit_is_named(merge: Any) -> None:
    base = {"v": torch.zeros(2), "w": torch.zeros(5, 2)}
    good = {"v": torch.ones(2), "w": torch.ones(5, 2)}
    padded = {"v": torch.ones(2), "w": torch.ones(8, 2)}
    with pytest.raises(MmclError, match=r"'w' has shape \(8, 2\) in task vector 2 and \(5, 2\) in the base"):
        merge(base, [good, padded])
    with pytest.raises(MmclError, match="'v' is missing in task vector 1"):
        merge(base, [{"w": good["w"]}, good])
    with pytest.raises(MmclError, match="'more' of task vector 2 is unknown"):
        merge(base, [good, {**good, "more": torch.ones(1)}])


def test_slerp_of_special_cases() -> None:
    start, end = {"w": torch.tensor([1.0, 0.0]), "n": torch.tensor(1)}, {"w": torch.zeros(2), "n": torch.tensor(2)}
    assert slerp(start, end, 0.25)["w"].tolist() == [0.75, 0.0]  # no angle with zero
    found = slerp(start, {"w": torch.tensor([3.0, 0.01]), "n": torch.tensor(2)}, 0.5)
    torch.testing.assert_close(found["w"], torch.tensor([2.0, 0.005]))  # as good as parallel
    assert found["n"] == 2 and slerp(start, end, 0.0)["n"] == 1
    assert torch.equal(slerp(start, end, 0.0)["w"], start["w"])


def test_model_stock_of_more_than_two() -> None:
    torch.manual_seed(0)
    vectors = [{"w": torch.randn(50).double() + 1} for _ in range(3)]
    rows = [v["w"] for v in vectors]
    cosine = sum(torch.cosine_similarity(rows[i], rows[j], dim=0) for i, j in ((0, 1), (0, 2), (1, 2))) / 3
    expected = 3 * cosine / (1 + 2 * cosine) * torch.stack(rows).mean(0)
    torch.testing.assert_close(model_stock({"w": torch.zeros(50).double()}, vectors)["w"], expected, rtol=1e-6, atol=0)


def test_the_order_of_summation_does_not_show_in_model_stock() -> None:
    torch.manual_seed(0)
    base, vectors = {"w": torch.zeros(999).double()}, [{"w": torch.randn(999).double()} for _ in range(3)]
    found = model_stock(base, vectors)["w"]
    for _ in range(20):
        order = torch.randperm(999)
        other = model_stock(base, [{"w": vector["w"][order]} for vector in vectors])["w"]
        torch.testing.assert_close(other, found[order], rtol=1e-12, atol=0)


def test_model_stock_stays_at_the_base_where_models_moved_apart() -> None:
    base = {"apart": torch.zeros(2), "across": torch.zeros(2), "alike": torch.zeros(2)}
    one = {"apart": torch.tensor([1.0, 0.5]), "across": torch.tensor([1.0, 0.0]), "alike": torch.tensor([1.0, 1.0])}
    two = {"apart": torch.tensor([-1.0, 0.5]), "across": torch.tensor([0.0, 1.0]), "alike": torch.tensor([1.0, 1.0])}
    merged = model_stock(base, [one, two], acute=True)
    assert not merged["apart"].any() and not merged["across"].any()
    torch.testing.assert_close(merged["alike"], torch.ones(2))
    assert model_stock(base, [one, two])["apart"].any()


def test_sparsified_vectors() -> None:
    vector = {"w": torch.arange(1.0, 101.0), "v": -torch.arange(1.0, 11.0)}
    found = breadcrumbs(vector, 0.3, outliers=0.1)
    assert found["w"].nonzero()[:, 0].tolist() == list(range(60, 90))
    assert found["v"].tolist() == [0.0] * 6 + [-7.0, -8.0, -9.0, 0.0]
    kept = dare(vector, 0.5, torch.Generator().manual_seed(0))["w"]
    assert {float(k / v) for k, v in zip(kept, vector["w"], strict=True)} == {0.0, 2.0}
    assert 30 < kept.count_nonzero() < 70
    assert torch.equal(dare(vector, 1.0, torch.Generator())["w"], vector["w"])


class Fresh(Mapping[str, Tensor]):
    """A task vector whose tensors are made when asked for; it counts those that are in memory at once."""

    def __init__(self, vector: Mapping[str, Tensor]) -> None:
        self.vector, self.most = vector, 0
        self.made: list[weakref.ref[Any]] = []

    def __getitem__(self, name: str) -> Tensor:
        array = self.vector[name].numpy().copy()
        self.made.append(weakref.ref(array))  # the tensor's memory, whatever views there are of it
        self.most = max(self.most, sum(ref() is not None for ref in self.made))
        return torch.from_numpy(array)

    def __iter__(self) -> Iterator[str]:
        return iter(self.vector)

    def __len__(self) -> int:
        return len(self.vector)


def test_where_everything_stays_no_vector_is_in_memory_as_a_whole() -> None:
    torch.manual_seed(0)
    plain = [{f"w{i}": torch.randn(40) for i in range(8)} for _ in range(3)]
    base = {name: torch.zeros(40) for name in plain[0]}
    fresh = [Fresh(vector) for vector in plain]
    negative = [Pruned(vector, lambda name, value: value.neg_()) for vector in fresh]  # in the same memory
    found = ties(base, negative, 1.0, -1.0)
    assert max(vector.most for vector in fresh) <= 2  # the last one and the next
    for name, value in ties(base, plain, 1.0, 1.0).items():
        torch.testing.assert_close(found[name], value)


def test_later_layers_keep_more() -> None:
    names = ["visual.proj", "visual.blocks.0.w", "visual.blocks.1.w", "visual.blocks.2.w", "text.blocks.0.w"]
    found = layer_scaling({name: torch.ones(1) for name in names}, alpha=0.5, beta=0.5)
    assert [float(v) for v in found.values()] == [1.0, 0.5, 0.75, 1.0, 0.5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_threshold_is_the_kth_smallest(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    parts = [torch.randn(7, 3, dtype=dtype), torch.randn((), dtype=dtype), torch.zeros(2, 2, dtype=dtype)]
    values = torch.cat([part.flatten() for part in parts]).abs().sort().values
    for rank in range(1, len(values) + 1):
        assert torch.equal(threshold(parts, rank), values[rank - 1])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda w: task_vector(w, {"w": torch.zeros(3)}), "'w' has shape"),
        (lambda w: task_vector(w, {}), "'w' is missing"),
        (lambda w: task_arithmetic(w, [w, w], [1.0]), "1 scales, and more"),
        (lambda w: task_arithmetic(w, [w], [1.0, 2.0]), "2 scales, and fewer"),
        (lambda w: ties(w, [w], 0.0, 1.0), "density is 0"),
        (lambda w: ties(w, [], 0.5, 1.0), "no task vector"),
        (lambda w: ties(w, [w], 0.5, 1.0, aggregation="mode"), "'mode' is none of mean"),  # type: ignore[arg-type]
        (lambda w: model_stock(w, [w]), "1 task vectors"),
        (lambda w: magmax({"w": torch.zeros(2, dtype=torch.complex64)}, [w], 1.0), "complex"),
        (lambda w: instruction_residual(w, {"w": torch.zeros(5)}, w), "'w' has shape"),
        (lambda w: dare(w, 0.0, torch.Generator()), "density is 0"),
        (lambda w: breadcrumbs(w, 0.5, outliers=0.6), "outliers are 0.6"),
    ],
)
def test_errors(call: Any, words: str) -> None:
    with pytest.raises(MmclError, match=words):
        call({"w": torch.zeros(2)})
