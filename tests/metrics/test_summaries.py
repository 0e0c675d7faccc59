"""What summaries promise beside their formulas: reasons instead of numbers, signs, missing cells, partial runs."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmcl import metrics
from mmcl.errors import MmclError
from mmcl.metrics import ScoreMatrix, Summary, summarize

SCORE = st.floats(0, 100)


@st.composite
def squares(draw: st.DrawFn, tasks: int | None = None) -> ScoreMatrix:
    """T tasks with a column each, and one held-out column."""
    count = tasks or draw(st.integers(2, 5))
    row = st.lists(SCORE, min_size=count + 1, max_size=count + 1)
    rows = draw(st.lists(row, min_size=count + 1, max_size=count + 1))
    return ScoreMatrix(rows, [f"c{j}" for j in range(count + 1)], range(count))


def flipped(matrix: ScoreMatrix) -> ScoreMatrix:
    """The same as error rates."""
    rows = [[None if x is None else -x for x in row] for row in matrix.values]
    return ScoreMatrix(rows, matrix.columns, matrix.tasks, ["lower"] * len(matrix.columns))


@given(squares(tasks=1))
def test_one_task_has_reasons_instead_of_numbers(matrix: ScoreMatrix) -> None:
    result = summarize(matrix)
    undefined = {"transfer", "backward_transfer", "forward_transfer", "forgetting", "backward", "forward"}
    assert {name for name, summary in result.items() if summary.value is None} == undefined
    for name in undefined:
        assert result[name].reason
        with pytest.raises(MmclError, match="undefined summary"):
            float(result[name])
    assert float(result["worst_case_accuracy"]) == matrix[1, "c0"]


@given(squares())
def test_all_defined_on_a_complete_matrix(matrix: ScoreMatrix) -> None:
    result = summarize(matrix)
    assert all(summary.value is not None and summary.reason is None for summary in result.values())
    assert all(summary.skipped == () and summary.definition for summary in result.values())
    assert json.loads(json.dumps(result["last"].to_dict()))["value"] == float(result["last"])


@given(squares())
def test_differences_do_not_depend_on_how_a_score_is_written(matrix: ScoreMatrix) -> None:
    for name in ("backward_transfer", "forward_transfer", "forgetting", "zero_shot_forgetting"):
        function = getattr(metrics, name)
        assert float(function(flipped(matrix))) == pytest.approx(float(function(matrix)), abs=1e-9)
    for name in ("zero_shot_retention", "knowledge_accumulation"):
        function = getattr(metrics, name)
        assert function(flipped(matrix)).parts["difference"] == pytest.approx(
            function(matrix).parts["difference"], abs=1e-9
        )
        assert float(function(flipped(matrix))) == pytest.approx(-float(function(matrix)), abs=1e-9)
    assert float(metrics.minimum_accuracy(flipped(matrix))) == pytest.approx(-float(metrics.minimum_accuracy(matrix)))


@given(squares())
def test_known_relations(matrix: ScoreMatrix) -> None:
    backward = float(metrics.backward_transfer(matrix))
    assert float(metrics.forgetting(matrix, variant="initial")) == pytest.approx(-backward, abs=1e-9)
    assert float(metrics.forgetting(matrix)) >= float(metrics.forgetting(matrix, variant="initial")) - 1e-9
    assert float(metrics.forgetting(matrix, variant="incl_last")) >= -1e-9
    assert float(metrics.last(matrix)) == float(metrics.average_accuracy(matrix))
    cells = [
        (summary.parts["cells"], float(summary))
        for summary in (metrics.in_domain(matrix), metrics.backward(matrix), metrics.forward(matrix))
    ]
    total = sum(count for count, _ in cells)
    assert total == len(matrix.tasks) ** 2
    assert sum(count * value for count, value in cells) / total == pytest.approx(float(metrics.average(matrix)))


@given(squares())
@settings(max_examples=20)
def test_formulas_written_out(matrix: ScoreMatrix) -> None:
    t = len(matrix.tasks)
    a = np.array(matrix.values)[:, :t]  # a[i, j - 1] is A[i, j]
    last, own, later = a[t], np.array([a[j, j - 1] for j in range(1, t + 1)]), range(1, t)
    past = [a[j + 2 :, j].min() for j in range(t - 1)]
    lower = [a[i, j] for i in range(1, t + 1) for j in range(i - 1)]
    upper = [a[i, j] for i in range(1, t + 1) for j in range(i, t)]
    expected = {
        "transfer": np.mean([a[1 : j + 1, j].mean() for j in later]),
        "average": a[1:].mean(),
        "last": last.mean(),
        "backward_transfer": (last - own)[:-1].mean(),
        "forward_transfer": np.mean([a[j, j] - a[0, j] for j in later]),
        "average_incremental_accuracy": np.mean([a[k, :k].mean() for k in range(1, t + 1)]),
        "minimum_accuracy": np.mean(past),
        "worst_case_accuracy": last[-1] / t + (1 - 1 / t) * np.mean(past),
        **{"in_domain": own.mean(), "backward": np.mean(lower), "forward": np.mean(upper)},
        "geometric_mean": np.sqrt(last.mean() * matrix.values[t][t]),
    }
    for name, value in expected.items():
        assert float(getattr(metrics, name)(matrix)) == pytest.approx(value, abs=1e-9), name
    best = {
        "chaudhry": [a[1:t, j].max() for j in range(t - 1)],
        "since_learned": [a[j + 1 : t, j].max() for j in range(t - 1)],
        "incl_last": [a[1:, j].max() for j in range(t - 1)],
        "incl_last_lower_triangle_only": [a[j + 1 :, j].max() for j in range(t - 1)],
        "initial": own[:-1],
    }
    for variant, reference in best.items():
        found = metrics.forgetting(matrix, variant=variant)  # type: ignore[arg-type]
        assert float(found) == pytest.approx(np.mean(reference - last[:-1]), abs=1e-9), variant


@given(squares())
def test_seen_average_is_the_lower_triangle_column_by_column(matrix: ScoreMatrix) -> None:
    last = len(matrix.tasks)
    columns = [[matrix[i, j] or 0 for i in range(j + 1, last + 1)] for j in range(last)]
    expected = sum(sum(its) / len(its) for its in columns) / last
    assert float(metrics.seen_average(matrix)) == pytest.approx(expected, abs=1e-9)


@given(squares())
def test_stepwise_forgetting_is_the_drops_of_one_task_each(matrix: ScoreMatrix) -> None:
    a, last = matrix.values, len(matrix.tasks)
    drops = [[(a[t - 1][i] or 0) - (a[t][i] or 0) for i in range(t - 1)] for t in range(2, last + 1)]
    expected = sum(sum(its) / len(its) for its in drops) / (last - 1)
    assert float(metrics.stepwise_forgetting(matrix)) == pytest.approx(expected, abs=1e-9)
    assert float(metrics.stepwise_forgetting(flipped(matrix))) == pytest.approx(expected, abs=1e-9)


def test_stepwise_forgetting_that_is_undefined_or_in_parts() -> None:
    single = metrics.stepwise_forgetting(ScoreMatrix([[1], [2]], ["a"], ["a"]))
    assert single.value is None and single.reason
    holes = ScoreMatrix([None, [9, 1], [None, 8], [5, 6]], ["a", "b"], ["a", "b", None])
    with pytest.raises(MmclError, match=r"\(2,1\) row 'b' column 'a'"):
        metrics.stepwise_forgetting(holes)
    assert float(metrics.stepwise_forgetting(holes, missing="skip")) == 2.0


def test_lower_is_better_transfer_is_positive_when_errors_fall() -> None:
    matrix = ScoreMatrix([[50, 40], [20, 30], [10, 5]], ["en", "de"], ["en", "de"], {"en": "lower", "de": "lower"})
    assert float(metrics.backward_transfer(matrix)) == 10.0
    assert float(metrics.forward_transfer(matrix)) == 10.0
    assert float(metrics.last(matrix)) == 7.5
    assert float(metrics.worst_case_accuracy(matrix)) == 5 / 2 + 10 / 2


def test_retention_ratio_above_one_is_better_in_either_direction() -> None:
    for direction, final, ratio in (("higher", 60, 1.5), ("lower", 20, 2.0)):
        matrix = ScoreMatrix([[40, 40], [0, final]], ["own", "held"], ["own"], [direction] * 2)
        assert metrics.zero_shot_retention(matrix).parts["ratio"] == ratio
    matrix = ScoreMatrix([[40, 0], [0, 50]], ["own", "held"], ["own"])
    assert metrics.zero_shot_retention(matrix).parts["ratio"] is None


def test_means_over_both_directions_are_undefined() -> None:
    matrix = ScoreMatrix([[50, 40], [60, 30], [70, 20]], ["acc", "wer"], ["acc", "wer"], {"wer": "lower"})
    result = summarize(matrix)
    for name in ("average", "last", "average_accuracy", "worst_case_accuracy", "knowledge_accumulation", "in_domain"):
        assert result[name].value is None and "lower is better for wer" in result[name].reason, name
    assert result["backward_transfer"].value == 10.0


def test_a_stream_without_columns() -> None:
    matrix = ScoreMatrix([[50.0], [40.0]], ["held"], [None])
    result = summarize(matrix)
    assert float(result["zero_shot_retention"]) == 40.0
    assert all(summary.reason for name, summary in result.items() if name != "zero_shot_retention")


def test_a_run_in_progress() -> None:
    matrix = ScoreMatrix([[20, 30, 50], [80, 25, 45]], ["a", "b", "held"], ["a", "b"])
    for function in (metrics.last, metrics.average, metrics.backward_transfer, metrics.zero_shot_retention, summarize):
        with pytest.raises(MmclError, match=r"cells not measured: .* row 'b'"):
            function(matrix)
    result = summarize(matrix, missing="skip")
    assert result["last"].value is None and result["last"].reason == "the cells it needs were not measured"
    assert result["last"].skipped == ((2, "a"), (2, "b"))
    assert float(result["transfer"]) == 25.0 and float(result["average"]) == pytest.approx((80 + 25) / 2)
    assert float(metrics.zero_shot_retention(matrix, after=1)) == 45.0
    assert metrics.zero_shot_retention(matrix, after=1).parts["difference"] == -5.0
    assert float(metrics.average_accuracy(matrix, after=1)) == 80.0


def test_without_row_0_retention_has_no_difference() -> None:
    matrix = ScoreMatrix([None, [80, 45]], ["a", "held"], ["a"])
    kept = metrics.zero_shot_retention(matrix)
    assert float(kept) == 45.0 and kept.parts["difference"] is None and kept.parts["ratio"] is None


def test_a_gap_in_row_0_compares_the_same_columns() -> None:
    matrix = ScoreMatrix([[10, 50, None], [20, 45, 5]], ["a", "h1", "h2"], ["a"])
    with pytest.raises(MmclError, match=r"\(0,3\) row 'initial' column 'h2'"):
        metrics.zero_shot_retention(matrix)
    kept = metrics.zero_shot_retention(matrix, missing="skip")
    assert float(kept) == 25.0 and kept.parts["difference"] == -5.0 and kept.skipped == ((0, "h2"),)


def test_columns_trained_more_than_once() -> None:
    matrix = ScoreMatrix([[10, 10], [50, 20], [30, 60], [70, 40]], ["a", "b"], ["a", "b", "a"])
    assert metrics.backward_transfer(matrix).per_column == {"a": None, "b": -20.0}
    assert metrics.transfer(matrix).per_column == {"a": None, "b": 20.0}
    assert metrics.forgetting(matrix).per_column == {"a": -20.0, "b": 20.0}
    assert metrics.in_domain(matrix).per_column == {"a": 60.0, "b": 60.0}
    assert float(metrics.worst_case_accuracy(matrix)) == pytest.approx(70 / 3 + 2 / 3 * 40)


def test_tic_with_evaluation_times_of_their_own() -> None:
    matrix = ScoreMatrix([None, [10, 20, 30], [11, 21, 31]], ["2016", "2018", "2020"], [None, None])
    times = {"train_time": [2016, 2018], "eval_time": {"2016": 2016, "2018": 2018, "2020": 2020}}
    assert float(metrics.in_domain(matrix, **times)) == (10 + 21) / 2
    assert float(metrics.backward(matrix, **times)) == 11
    assert float(metrics.forward(matrix, **times)) == (20 + 30 + 31) / 3
    with pytest.raises(MmclError, match="give both train_time"):
        metrics.forward(matrix, train_time=[1, 2])
    with pytest.raises(MmclError, match="train_time has 1 entries for 2 tasks"):
        metrics.forward(matrix, train_time=[1], eval_time=[1, 2, 3])


def test_windows() -> None:
    matrix = ScoreMatrix([[50], [80], [60], [45]], ["a"], ["a", None, None])
    assert float(metrics.windowed_forgetting(matrix, window=2)) == 20.0
    assert float(metrics.windowed_forgetting(matrix, window=3)) == 35.0
    assert float(metrics.windowed_plasticity(matrix, window=2)) == 30.0
    with pytest.raises(MmclError, match="at least 2 evaluations"):
        metrics.windowed_forgetting(matrix, window=1)


def test_segments_are_checked() -> None:
    matrix = ScoreMatrix([], ["a", "b"], ["a", "b"])
    steps = {"a": [1.0, 2.0, 3.0], "b": [1.0, 2.0, None]}
    with pytest.raises(MmclError, match="give both or neither"):
        metrics.worst_case_accuracy(matrix, steps=steps)
    with pytest.raises(MmclError, match="ascending: 2 tasks"):
        metrics.worst_case_accuracy(matrix, steps=steps, ends=[2])
    with pytest.raises(MmclError, match=r"within 0\.\.2"):
        metrics.worst_case_accuracy(matrix, steps=steps, ends=[1, 3])
    with pytest.raises(MmclError, match="no scores for column 'b'"):
        metrics.worst_case_accuracy(matrix, steps={"a": [1.0]}, ends=[0, 1])
    with pytest.raises(MmclError, match="row 'evaluation 2' column 'b'"):
        metrics.worst_case_accuracy(matrix, steps=steps, ends=[0, 2])
    skipped = metrics.worst_case_accuracy(matrix, steps=steps, ends=[0, 2], missing="skip")
    assert skipped.value is None and skipped.skipped == ((2, "b"),)


def test_bad_arguments() -> None:
    matrix = ScoreMatrix([[1], [2]], ["a"], ["a"])
    for call, words in (
        (lambda: metrics.last(matrix, missing="ignore"), "use 'error' or 'skip'"),
        (lambda: metrics.forgetting(matrix, variant="max"), "unknown variant 'max'; known: chaudhry"),
        (lambda: metrics.knowledge_accumulation(matrix, after=2), "from 0 to 1"),
        (lambda: metrics.average_accuracy(matrix, after=0), "from 1 to 1"),
        (lambda: metrics.zero_shot_retention(matrix, columns=["b"]), "unknown column 'b'"),
    ):
        with pytest.raises(MmclError, match=words):
            call()


def test_a_negative_product_has_no_geometric_mean() -> None:
    result = metrics.geometric_mean(ScoreMatrix([[1, 1], [2, -2]], ["a", "held"], ["a"]))
    assert isinstance(result, Summary) and result.value is None and "negative" in result.reason


def test_the_example_of_the_matrix() -> None:
    import doctest

    from mmcl.metrics import matrix

    assert Path(matrix.__file__).exists() and doctest.testmod(matrix).failed == 0
