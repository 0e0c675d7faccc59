"""The score matrix: reading, growing, the file format, and what it refuses."""

import csv
import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmcl.errors import MmclError
from mmcl.metrics import ScoreMatrix
from mmcl.metrics.matrix import FORMAT

SCORES = st.none() | st.floats(allow_nan=False, allow_infinity=False)


def matrix(**changes) -> ScoreMatrix:
    given = {
        "values": [[20, 30, 9.5], [80, 25, 9], [70, 65, None]],
        "columns": ["pets", "food", "wer"],
        "tasks": ["pets", 1],
        "directions": {"wer": "lower"},
        "counts": [10, 20, 30],
    }
    return ScoreMatrix(**(given | changes))


@st.composite
def matrices(draw: st.DrawFn) -> ScoreMatrix:
    letters = st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp"))
    columns = draw(st.lists(st.text(letters, min_size=1, max_size=8), min_size=1, max_size=4, unique=True))
    column = st.sampled_from(columns)
    tasks = draw(st.lists(st.none() | column | st.lists(column, min_size=1, unique=True), min_size=1, max_size=4))
    row = st.none() | st.lists(SCORES, min_size=len(columns), max_size=len(columns))
    return ScoreMatrix(
        draw(st.lists(row, max_size=len(tasks) + 1)),
        columns,
        tasks,
        draw(st.lists(st.sampled_from(["higher", "lower"]), min_size=len(columns), max_size=len(columns))),
        draw(st.lists(st.none() | st.integers(0, 10**6), min_size=len(columns), max_size=len(columns))),
    )


@given(matrices())
def test_json_round_trip(given: ScoreMatrix) -> None:
    assert ScoreMatrix.from_json(given.to_json()) == given
    assert ScoreMatrix.from_json(given.to_dict()) == given


@given(matrices())
def test_csv_holds_every_digit(given: ScoreMatrix) -> None:
    header, *lines = csv.reader(io.StringIO(given.to_csv(), newline=""))
    assert header == ["row", *given.columns]
    assert [tuple(float(x) if x else None for x in line[1:]) for line in lines] == list(given.values)


def test_reading() -> None:
    m = matrix()
    assert m.row_names == ("initial", "pets", "food")
    assert m.tasks == ("pets", "food") and m.trained == ("pets", "food") and m.held_out == ("wer",)
    assert m[1, "pets"] == 80.0 and m[1, 0] == 80.0 and m[2, "wer"] is None
    assert m.lower_is_better("wer") and not m.lower_is_better(0)
    assert m.trained_by("food") == (2,) and m.trained_by("wer") == ()
    assert not m.complete and matrix(values=[[1, 2, 3]] * 3).complete


def test_tasks_with_several_columns_or_none() -> None:
    m = matrix(tasks=[["pets", "food"], None, "pets"], values=[])
    assert m.columns_of(1) == ("pets", "food") and m.columns_of(2) == () and m.trained_by("pets") == (1, 3)
    assert m.row_names == ("initial", "task-1", "task-2", "pets")


def test_a_column_trained_twice_gives_numbered_rows() -> None:
    assert matrix(tasks=["pets", "pets"]).task_names == ("task-1", "task-2")
    assert matrix(task_names=["a", "b"]).row_names == ("initial", "a", "b")


def test_growing_during_a_run() -> None:
    m = matrix(values=[])
    m = m.with_row([20, 30, 9.5]).with_row({"pets": 80.0, "wer": 9.0})
    assert m.values == ((20.0, 30.0, 9.5), (80.0, None, 9.0))
    assert m[2, "pets"] is None and not m.complete
    assert m.directions == ("higher", "higher", "lower") and m.counts == (10, 20, 30)
    with pytest.raises(MmclError, match="4 rows for 2 tasks"):
        m.with_row(None).with_row(None)
    with pytest.raises(MmclError, match=r"unknown columns \['cars'\]"):
        m.with_row({"cars": 1.0})


def test_numpy_values_are_accepted() -> None:
    m = ScoreMatrix(np.eye(3), list("abc"), list(np.arange(2)), counts=list(np.array([3, 4, 5])))
    assert json.loads(m.to_json())["values"][1] == [0.0, 1.0, 0.0]


def test_files(tmp_path) -> None:
    m = matrix()
    m.to_json(tmp_path / "m.json")
    m.to_csv(str(tmp_path / "m.csv"))
    assert ScoreMatrix.from_json(tmp_path / "m.json") == m == ScoreMatrix.from_json(str(tmp_path / "m.json"))
    assert (tmp_path / "m.csv").read_text().splitlines()[-1] == "food,70.0,65.0,"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.csv", "m.json"]
    assert json.loads((tmp_path / "m.json").read_text())["format"] == FORMAT


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"columns": ["pets", "pets", "wer"]}, "two columns are called 'pets'"),
        ({"columns": "abc"}, "columns must be a list"),
        ({"columns": ["pets", "", "wer"]}, "not empty"),
        ({"columns": ["pets", "a\nb", "wer"]}, "line break"),
        ({"task_names": ["a", "b\r"]}, "line break"),
        ({"values": [[1, 2, 3], [1, 2]]}, r"row 1 \('pets'\) has 2 scores for 3 columns"),
        ({"values": [[1, 2, 3]] * 4}, "4 rows for 2 tasks"),
        ({"values": [[1, float("nan"), 3]]}, "column 'food' holds nan, not a finite number; write None"),
        ({"values": [[1, float("inf"), 3]]}, "not a finite"),
        ({"values": [[1, "2", 3]]}, "not a finite"),
        ({"values": [[1, True, 3]]}, "not a finite"),
        ({"tasks": ["pets", "foot"]}, "task 2 trains an unknown column.*did you mean food"),
        ({"tasks": ["pets", 3]}, r"within 0\.\.2"),
        ({"tasks": ["pets", -1]}, r"within 0\.\.2"),
        ({"tasks": ["pets", 0.5]}, r"within 0\.\.2"),
        ({"tasks": ["pets", ["food", 1]]}, "names a column twice"),
        ({"directions": ["higher", "lower"]}, "one direction per column"),
        ({"directions": {"cer": "lower"}}, "unknown column 'cer'"),
        ({"directions": {"wer": "down"}}, "'down'; use 'higher' or 'lower'"),
        ({"counts": [1, 2]}, "one count per column"),
        ({"counts": [1, 2.5, 3]}, "not a number of samples"),
        ({"counts": [1, -2, 3]}, "not a number of samples"),
        ({"task_names": ["one"]}, "1 task names for 2 tasks"),
    ],
)
def test_refused(changes: dict, words: str) -> None:
    with pytest.raises(MmclError, match=words):
        matrix(**changes)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not valid JSON"),
        ('{"format": "mmcl.score-matrix/2"}', "this version reads 'mmcl.score-matrix/1'"),
        ("{}", "format is None"),
        (f'{{"format": "{FORMAT}", "values": [], "tasks": []}}', "'columns' is missing"),
        (f'{{"format": "{FORMAT}", "values": 3, "tasks": [], "columns": ["a"]}}', "not a score matrix"),
        ("no/such/file.json", "cannot be read"),
    ],
)
def test_bad_files(text: str, words: str) -> None:
    with pytest.raises(MmclError, match=words):
        ScoreMatrix.from_json(text)


def test_rows_are_checked_when_read() -> None:
    with pytest.raises(MmclError, match=r"row 3 is outside 0\.\.2"):
        matrix()[3, "pets"]
    with pytest.raises(MmclError, match="unknown column 'pet'; did you mean pets"):
        matrix()[0, "pet"]
