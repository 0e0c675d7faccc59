import pytest

from mmcl.errors import MmclError
from mmcl.report import Results, final_table, run_line


def test_the_final_table(data):
    text = final_table(Results.from_json(data()), width=100)
    lines = text.splitlines()
    assert lines[0] == "finetune on pocket (finished; percent)"
    assert "before training            50.0      40.0    45.0" in lines
    assert "2 food                     70.0      75.0*   72.5" in lines
    assert "held out: 48.0 → 30.0 (−18.0 points, ratio 0.62)" in text
    assert "time: training 20.0 s, evaluation 4.0 s" in text
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("width", [50, 60, 80])
def test_wide_matrices_are_cut_into_blocks(data, width):
    columns = [f"a column with a long name {i}" for i in range(12)]
    values = [[0.5] * 12] * 3
    text = final_table(Results.from_json(data(values, columns=columns, tasks=columns[:2])), width=width)
    assert max(map(len, text.splitlines())) <= width
    assert text.count("held out") > 2


def test_an_unfinished_run_and_its_missing_cells(data):
    text = final_table(Results.from_json(data([[0.5, None, 0.5, 0.4], [0.6, 0.4, 0.5, 0.4]], status="running")), 100)
    assert "unfinished, 1 of 2 tasks" in text
    assert "–" in text.splitlines()[3]
    assert "Transfer (MTIL): – (the run is unfinished)" in text


def test_lower_is_better_is_marked(data):
    values = [[0.5, 0.4, 10.0, 12.0], [0.8, 0.4, 11.0, 12.0], [0.8, 0.7, 12.0, 11.0]]
    text = final_table(Results.from_json(data(values, lower=["smileys", "places"])), 100)
    assert "smileys↓" in text
    assert "flags %" in text


def test_run_line(data):
    results = Results.from_json(data())
    assert run_line(results, 2) == "task 2/2 food: food 38.0 → 75.0 | held out 48.0 → 30.0 | 10.0 s, 812 samples/s"
    with pytest.raises(MmclError, match="has no task 3"):
        run_line(results, 3)
