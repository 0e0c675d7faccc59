import pytest

from mmcl.report.measures import MAIN, measures, wilson
from mmcl.report.results import Results


def test_the_main_numbers(data):
    found = measures(Results.from_json(data()))
    assert tuple(found)[: len(MAIN)] == MAIN
    assert found["retention_initial"].value == pytest.approx(0.48)
    assert found["retention_final"].value == pytest.approx(0.30)
    assert found["retention_difference"].value == pytest.approx(-0.18)
    assert found["retention_ratio"].value == pytest.approx(0.625)
    assert found["last"].value == pytest.approx(0.725)
    assert found["transfer"].value == pytest.approx(0.38)
    assert found["backward_transfer"].value == pytest.approx(-0.10)
    assert found["train_seconds"].value == pytest.approx(20.0)
    assert {m.unit for m in found.values()} == {"percent", "points", "ratio", "seconds"}


def test_an_unfinished_run_says_what_is_still_undefined(data):
    found = measures(Results.from_json(data([[0.5, 0.4, 0.5, 0.46], [0.8, 0.38, 0.4, 0.36]], status="running")))
    assert found["retention_difference"].value == pytest.approx(-0.10)
    assert found["last"].value == pytest.approx(0.59)
    assert found["transfer"].value is None
    assert found["transfer"].reason == "the run is unfinished"


def test_a_run_with_row_zero_only(data):
    found = measures(Results.from_json(data([[0.5, 0.4, 0.5, 0.46]], status="running")))
    assert found["retention_initial"].value == pytest.approx(0.48)
    assert found["retention_difference"].reason == "no task is measured yet"


def test_lower_is_better_turns_the_sign(data):
    values = [[0.5, 0.4, 10.0, 12.0], [0.8, 0.4, 11.0, 12.0], [0.8, 0.7, 12.0, 14.0]]
    found = measures(Results.from_json(data(values, lower=["smileys", "places"])))
    change = found["retention_difference"]
    assert (change.value, change.unit, change.better) == (pytest.approx(-2.0), "change", "higher")
    assert found["retention_final"].better == "lower"
    assert found["retention_ratio"].value == pytest.approx(11 / 13)


@pytest.mark.parametrize(("lower", "reason"), [(["smileys"], "mix directions"), ([], "mix units")])
def test_no_mean_over_scores_that_do_not_add_up(data, lower, reason):
    values = [[0.5, 0.4, 10.0, 0.3], [0.8, 0.4, 11.0, 0.3], [0.8, 0.7, 12.0, 0.3]]
    found = measures(Results.from_json(data(values, lower=lower)))
    assert found["retention_final"].value is None
    assert reason in found["retention_final"].reason


def test_a_column_beside_retention_does_not_enter_it(data):
    found = measures(Results.from_json(data(groups={"places": "upstream"})))
    assert found["retention_initial"].value == pytest.approx(0.50)
    assert found["zero_shot_retention"].value == pytest.approx(0.31)


def test_columns_that_all_tasks_share_and_none_evaluates(data):
    """FoMo-in-Flux: every task has classes of every adaptation set."""
    groups = {"flags": "adaptation", "food": "adaptation"}
    given = data(tasks=("task-1", "task-2"), groups=groups)
    given["matrix"]["tasks"] = [None, None]
    found = measures(Results.from_json(given))
    assert found["knowledge_accumulation"].value == pytest.approx(0.725)  # of flags and food after the last task
    assert found["zero_shot_retention"].value == pytest.approx(0.30)
    assert found["geometric_mean"].value == pytest.approx((0.725 * 0.30) ** 0.5)
    assert found["last"].value is None and "no task trains a column" in found["last"].reason


def test_missing_cells_are_counted(data):
    values = [[0.5, 0.4, 0.5, 0.46], [0.8, 0.38, 0.4, 0.36], [0.7, 0.75, 0.31, None]]
    found = measures(Results.from_json(data(values)))
    assert found["retention_final"].skipped == 1
    assert found["retention_difference"].value == pytest.approx(-0.19)


def test_wilson_stays_within_bounds():
    assert wilson(0, 20)[0] == 0.0
    assert wilson(20, 20)[1] == pytest.approx(1.0)
    low, high = wilson(81, 263)
    assert (low, high) == (pytest.approx(0.2553, abs=5e-4), pytest.approx(0.3662, abs=5e-4))
