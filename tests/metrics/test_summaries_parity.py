"""Every summary against the worked examples below `tests/parity/metrics`."""

import json
from pathlib import Path
from typing import Any

import pytest

from mmcl import metrics
from mmcl.errors import MmclError
from mmcl.metrics import ScoreMatrix

PARITY = Path(__file__).parents[1] / "parity" / "metrics"


def cases(name: str) -> list[dict[str, Any]]:
    return json.loads((PARITY / f"{name}.json").read_text())["cases"]


def square(rows: list[list[float | None]], order: list[int] | None = None) -> ScoreMatrix:
    """One column per task, row 0 first."""
    count = len(rows[0])
    return ScoreMatrix(rows, [f"c{j}" for j in range(count)], order or list(range(count)))


def near(value: float | None) -> Any:
    return None if value is None else pytest.approx(value, rel=0, abs=1e-9)


def test_mtil() -> None:
    plain, permuted, holes = cases("mtil_transfer_avg_last")
    order = permuted["inputs"]["task_order_0based"]
    rows = permuted["inputs"]["A_canonical"]
    reordered = [[rows[0][j] for j in order], *([rows[1 + i][j] for j in order] for i in order)]
    for matrix, expected in (
        (square(plain["inputs"]["A"]), plain["expected"]),
        (square(reordered), permuted["expected"]),
        # The same with the columns left in their canonical order: `tasks` says which column a row trained.
        (square([rows[0], *(rows[1 + i] for i in order)], order), permuted["expected"]),
    ):
        for name, key in (("transfer", "transfer"), ("average", "avg"), ("last", "last")):
            summary = getattr(metrics, name)(matrix)
            assert float(summary) == near(expected[key])
            assert list(summary.per_column.values()) == [near(v) for v in expected[f"{key}_per_dataset"]]

    matrix = square(holes["inputs"]["A"])
    with pytest.raises(MmclError, match=r"\(2,4\) row 'c1' column 'c3', \(5,1\) row 'c4' column 'c0'|\(5,1\).*\(2,4\)"):
        metrics.average(matrix)
    for name, key in (("transfer", "transfer"), ("average", "avg"), ("last", "last")):
        assert float(getattr(metrics, name)(matrix, missing="skip")) == near(holes["expected"]["skip_missing"][key])
    assert metrics.average(matrix, missing="skip").skipped == ((5, "c0"), (2, "c3"))


@pytest.mark.parametrize("case", cases("gem_acc_bwt_fwt"), ids=lambda case: case["name"])
def test_gem(case: dict[str, Any]) -> None:
    matrix = square(case["inputs"]["A"])
    for name, key in (("average_accuracy", "ACC"), ("backward_transfer", "BWT"), ("forward_transfer", "FWT")):
        summary = getattr(metrics, name)(matrix)
        assert summary.value == near(case["expected"][key])
        assert (summary.reason is None) == (summary.value is not None)


def test_trace() -> None:
    stream, general = cases("trace_op_bwt_delta")
    matrix = square(stream["inputs"]["A"])
    for t in range(1, 5):
        expected = stream["expected"][f"t={t}"]
        assert float(metrics.average_accuracy(matrix, after=t)) == near(expected["OP"])
        found = metrics.backward_transfer(matrix, after=t).value
        assert found == near(expected["BWT_over_t_minus_1"])
        assert (found or 0.0) * (t - 1) / t == near(expected["BWT"])
    names = [f"g{j}" for j in range(5)]
    kept = metrics.zero_shot_retention(
        ScoreMatrix([general["inputs"][row] for row in ("before", "after")], names, [None])
    )
    assert kept.parts["difference"] == near(general["expected"]["delta"])


def test_forgetting() -> None:
    case, single = cases("forgetting_and_average_incremental")
    matrix, expected = square(case["inputs"]["A"]), case["expected"]
    for variant in ("chaudhry", "since_learned", "incl_last", "incl_last_lower_triangle_only"):
        assert float(metrics.forgetting(matrix, variant=variant)) == near(expected[f"forgetting_{variant}"])
    assert float(metrics.forgetting(matrix, variant="initial")) == near(expected["forgetting_initial_avalanche"])
    assert list(metrics.forgetting(matrix).per_column.values()) == [near(v) for v in expected["per_task_chaudhry"]]
    assert float(metrics.backward_transfer(matrix)) == near(expected["BWT"])
    incremental = metrics.average_incremental_accuracy(matrix)
    assert float(incremental) == near(expected["average_incremental_accuracy"])
    assert list(incremental.parts.values()) == [near(v) for v in expected["average_accuracy_per_step"]]
    for k, value in enumerate(expected["average_accuracy_per_step"], 1):
        assert float(metrics.average_accuracy(matrix, after=k)) == near(value)
    lost = metrics.zero_shot_forgetting(matrix).per_column
    assert list(lost.values()) == [near(v) for v in expected["zero_shot_forgetting_per_column"]]

    matrix = square(single["inputs"]["A"])
    assert metrics.forgetting(matrix).value is None and metrics.forgetting(matrix).reason
    assert float(metrics.average_incremental_accuracy(matrix)) == 80.0


def test_fomo() -> None:
    case, bare = cases("fomo_ka_zs_gm")
    adaptation, held_out = (case["inputs"][key] for key in ("adaptation", "held_out"))
    rows = [a + b for a, b in zip(adaptation["scores_rows_0_to_T"], held_out["scores_rows_0_to_T"], strict=True)]
    names = adaptation["names"]
    matrix, expected = ScoreMatrix(rows, names + held_out["names"], [names, names]), case["expected"]
    for t in range(3):
        assert float(metrics.knowledge_accumulation(matrix, after=t)) == near(expected["A_KA"][t])
        assert float(metrics.zero_shot_retention(matrix, after=t)) == near(expected["A_ZS"][t])
        assert float(metrics.geometric_mean(matrix, after=t)) == near(expected["GM"][t])
    gained, kept = metrics.knowledge_accumulation(matrix), metrics.zero_shot_retention(matrix)
    assert float(metrics.geometric_mean(matrix)) == near(expected["final"]["GM"])
    assert gained.value == near(expected["final"]["A_KA"]) and kept.value == near(expected["final"]["A_ZS"])
    assert gained.parts["difference"] == near(expected["delta_KA"])
    assert kept.parts["difference"] == near(expected["delta_ZS"])
    assert kept.parts["ratio"] == near(expected["zs_retention_ratio"])

    matrix = ScoreMatrix(bare["inputs"]["adaptation"]["scores_rows_0_to_T"], names, [names, names])
    for name in ("zero_shot_retention", "geometric_mean"):
        summary = getattr(metrics, name)(matrix)
        assert summary.value is None and "held-out" in summary.reason


@pytest.mark.parametrize("stamps", [False, True])
def test_tic(stamps: bool) -> None:
    for case in cases("tic_backward_id_forward"):
        given, expected = case["inputs"], case["expected"]
        matrix = square([[0.0] * len(given["E"]), *given["E"]])
        times = {"train_time": given["train_time"], "eval_time": given["eval_time"]} if stamps else {}
        parts = [getattr(metrics, name)(matrix, **times) for name in ("in_domain", "backward", "forward")]
        for summary, key in zip(parts, ("in_domain", "backward_transfer", "forward_transfer"), strict=True):
            assert summary.value == near(expected[key])
        if "n_cells" in expected:
            assert [summary.parts["cells"] for summary in parts] == expected["n_cells"]
            assert parts[2].parts["next_domain"] == near(expected["next_step"])


def test_stability_gap() -> None:
    (case,) = cases("stability_gap_min_acc_wc_acc")
    steps, expected = case["inputs"]["acc_per_task"], case["expected"]
    matrix = ScoreMatrix([], list(steps), list(steps))
    within = {"steps": steps, "ends": case["inputs"]["last_step_index_of_task_0based"]}
    for k in (2, 3):
        minimum = metrics.minimum_accuracy(matrix, after=k, **within)
        assert float(minimum) == near(expected[f"min_ACC_after_task_{k}"])
        assert list(minimum.per_column.values()) == [near(v) for v in expected[f"min_acc_per_past_task_after_task_{k}"]]
    for k in (1, 2, 3):
        value = metrics.worst_case_accuracy(matrix, after=k, **within)
        assert float(value) == near(expected[f"WC_ACC_after_task_{k}"])
    for window, figures in expected["windowed_forgetting"].items():
        summary = metrics.windowed_forgetting(matrix, window=int(window), steps=steps)
        assert float(summary) == near(figures["mean"])
        assert list(summary.per_column.values()) == [near(v) for v in figures["per_task"]]
