import json
import re

import pytest

from mmcl.errors import MmclError
from mmcl.report.results import Results


def test_reads_a_run_folder(write):
    folder = write("a", groups={"flags": "task", "food": "task"})
    results = Results.from_folder(folder)
    assert results.run.name == "finetune"
    assert results.held_out == ("smileys", "places")
    assert results.fractions == {"flags", "food", "smileys", "places"}
    assert results.done == 2
    assert not results.unfinished
    assert results.cell(2, "flags").correct == 70
    assert Results.from_folder(folder / "results.json").matrix == results.matrix


def test_retention_is_on_the_held_out_group_where_there_is_one(data):
    assert Results.from_json(data(groups={"places": "upstream"})).held_out == ("smileys",)
    own = {"smileys": "styles", "places": "groups"}
    assert Results.from_json(data(groups=own)).held_out == ("smileys", "places")


def test_columns_in_percent_are_higher_is_better_fractions(data):
    values = [[0.5, 0.4, 12.0, 0.3], [0.6, 0.4, 13.0, 0.3]]
    assert Results.from_json(data(values, lower=["places"])).fractions == {"flags", "food"}


def set_key(content, path, value):
    *parents, last = path
    for key in parents:
        content = content[key]
    if value is KeyError:
        del content[last]
    else:
        content[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["format"], "mmcl.results/9", "format is 'mmcl.results/9', this version reads 'mmcl.results/1'"),
        (["run", "name"], KeyError, "run: the key 'name' is missing"),
        (["run", "status"], "lost", "status is 'lost'; known: running, finished"),
        (["run", "seed"], 0.5, "'seed' must be a whole number, found 0.5"),
        (["run"], [], "run: expected an object, found []"),
        (["stream", "tasks"], {}, "'tasks' must be a list"),
        (["stream", "evals", 1, "direction"], "up", "stream: evals[1]: direction is 'up'"),
        (["stream", "evals", 0, "name"], "x", "the matrix has the columns flags, food"),
        (["stream", "tasks"], [], "the matrix has 2 tasks, the stream 0"),
        (["matrix", "values"], [[1]], "row 0 ('initial') has 1 scores for 4 columns"),
        (["cells", 0, "row"], -1, "cells[0]: 'row' must be a whole number from 0"),
        (["cells", 0, "eval"], "x", "cells of evaluation sets that the stream lacks: x"),
        (["tasks", 0, "train_seconds"], "long", "'train_seconds' must be a finite number, found 'long'"),
        (["notes"], [1], "'notes' must be a list of strings"),
    ],
)
def test_errors_name_the_place(data, path, value, message):
    content = data()
    set_key(content, path, value)
    with pytest.raises(MmclError, match=re.escape(message)) as error:
        Results.from_json(json.dumps(content), where="runs/a/results.json")
    assert "\n" not in str(error.value)


def test_a_folder_without_results_says_what_to_give(tmp_path):
    with pytest.raises(MmclError, match=r"no results\.json there; give the folder of a run"):
        Results.from_folder(tmp_path)


def test_broken_json_names_the_line(tmp_path):
    (tmp_path / "results.json").write_text('{"format":\n oops')
    with pytest.raises(MmclError, match="not valid JSON \\(line 2"):
        Results.from_folder(tmp_path)


def test_unknown_keys_are_ignored(data):
    content = data()
    content["later"] = 1
    content["run"]["later"] = 1
    assert Results.from_json(content).run.seed == 0
