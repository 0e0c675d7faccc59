import csv
import json
import re
from html.parser import HTMLParser

import pytest

from mmcl.errors import MmclError
from mmcl.report import build_report

EVIL = '<script>alert("x")</script>'


class Links(HTMLParser):
    """Collects tags, and everything that could load something."""

    def __init__(self):
        super().__init__()
        self.tags, self.targets, self.ids = set(), [], []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.targets += [value for key, value in attrs if key in ("src", "href", "xlink:href", "srcset", "data")]
        self.ids += [value for key, value in attrs if key == "id"]


def page(paths, out):
    return build_report(paths, out).read_text(encoding="utf-8")


def row_of(text, label):
    """Text of the table row that begins with `label`, without tags."""
    found = re.search(rf'<tr><th class="pin" scope="row">{re.escape(label)}.*?</tr>', text, re.DOTALL)
    assert found, label
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", found[0]))


def test_the_verdict_is_the_title(pair, tmp_path):
    text = page(pair, tmp_path / "out")
    assert "<h1>finetune lost 18.0 points of held-out accuracy (48.0 → 30.0); zscl lost 2.0 (48.0 → 46.0).</h1>" in text
    assert "finetune ends at 72.5 % accuracy, zscl at 74.0 (102 % of that)." in text


def test_the_page_has_the_numbers(pair, tmp_path):
    text = page(pair, tmp_path / "out")
    assert "−18.0 −2.0 +16.0" in row_of(text, "Held out, change")
    assert "0.62 0.96 +0.33" in row_of(text, "Held out, ratio")
    assert "20.0 s 30.0 s × 1.50" in row_of(text, "Training time")
    assert "38.0" in row_of(text, "Transfer (MTIL)")
    assert "smileys, after food: 31.0 %; 62 of 200, 95 % interval 25.0 to 37.7; −19.0 since row 0" in text
    for item in ("812", "3.0 GiB", "hash-zscl-0", "mmcl fit --config zscl --seed 0", "torch 2.11.0", "150 steps"):
        assert item in text
    for item in ("mmcl.strategies.X", "teacher", "initial", "No strategy: plain fine-tuning.", "a note of the runner"):
        assert item in text


def test_the_trained_cells_are_outlined(write, tmp_path):
    text = page([write("a")], tmp_path / "out")
    assert re.findall(r'class="\w+ trained[^>]*>([\d.]+)', text) == ["80.0", "75.0"]


def test_the_page_is_self_contained(pair, tmp_path):
    text = page(pair, tmp_path / "out")
    links = Links()
    links.feed(text)
    assert not links.tags & {"script", "link", "img", "iframe", "object", "embed"}
    assert all(target.startswith("#") for target in links.targets)
    assert len(links.ids) == len(set(links.ids))
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"|http-equiv', "", text)
    assert "@import" not in text


def test_names_are_escaped(write, tmp_path):
    names = (EVIL, "a & b")
    columns = (*names, f"held {EVIL}", "places")
    strategies = [{"name": EVIL, "class_path": EVIL, "arguments": {EVIL: EVIL}}]
    segments = [
        {"task": names[0], "step": step, "task_step": step, "scores": {columns[2]: 0.5, "places": 0.4}}
        for step in (50, 100)
    ]
    folder = write(
        "a", name=EVIL, tasks=names, columns=columns, strategies=strategies, stream=EVIL, segments=segments, device=EVIL
    )
    text = page([folder], tmp_path / "out")
    links = Links()
    links.feed(text)
    assert "script" not in links.tags
    assert EVIL not in text
    assert "&lt;script&gt;" in text
    assert "Within tasks: held out" in text


def test_seeds_are_one_column_with_mean_and_deviation(write, tmp_path):
    for seed, shift in enumerate((0.0, 0.02, 0.04)):
        worse = [[0.5, 0.4, 0.5, 0.46], [0.8, 0.38, 0.4, 0.36], [0.7, 0.75, 0.31 - shift, 0.29 - shift]]
        better = [[0.5, 0.4, 0.5, 0.46], [0.8, 0.38, 0.4, 0.36], [0.7, 0.75, 0.41 - shift, 0.39 - shift]]
        write(f"all/finetune/seed-{seed}", worse, name=f"finetune/seed-{seed}", seed=seed)
        write(f"all/kept/seed-{seed}", better, name="kept", seed=seed)
    text = page([tmp_path / "all"], tmp_path / "out")
    line = row_of(text, "Held out, change")
    assert "−20.0 ± 2.0" in line
    assert "−10.0 ± 2.0 +10.0 ± 0.0" in line
    assert "means of 3 seeds" in text
    assert "seed 2" in text
    with open(tmp_path / "out" / "comparison.csv", newline="") as file:
        lines = {(line["run"], line["measure"]): line for line in csv.DictReader(file)}
    change = lines["kept", "retention_difference"]
    assert (float(change["mean"]), int(change["n"])) == (pytest.approx(-0.10), 3)
    assert float(change["sd"]) == pytest.approx(0.02)
    assert float(change["difference_to_baseline"]) == pytest.approx(0.10)


def test_one_name_with_other_arguments_is_another_run(write, tmp_path):
    weak, strong = ([{"name": "L2", "class_path": "x.L2", "arguments": {"weight": w}}] for w in (1, 9))
    paths = [write("a/l2", name="l2", strategies=weak), write("b/l2", name="l2", seed=1, strategies=strong)]
    text = page(paths, tmp_path / "out")
    assert "l2 (a/l2)" in text
    assert "l2 (b/l2)" in text


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"stream": "mtil"}, "has the stream pocket; .* has mtil"),
        ({"columns": ("flags", "food", "smileys", "rooms")}, "has the columns flags, food, smileys, places; .*rooms"),
        ({"lower": ["places"]}, "has the directions"),
        ({"groups": {"places": "beside"}}, "has the held-out columns smileys, places; .* has smileys"),
    ],
)
def test_different_streams_are_refused(write, tmp_path, other, message):
    paths = [write("a"), write("b", **other)]
    with pytest.raises(MmclError, match=f"runs of different streams cannot be compared: .*{message}") as error:
        build_report(paths, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("rows", [1, 2])
def test_an_unfinished_run_says_so(write, tmp_path, rows):
    folder = write("a", [[0.5, 0.4, 0.5, 0.46], [0.8, 0.38, 0.4, 0.36]][:rows], status="running")
    text = page([folder], tmp_path / "out")
    assert f"finetune is unfinished: {rows - 1} of 2 tasks are measured" in text
    assert "undefined: the run is unfinished" in text
    assert not (tmp_path / "out" / "comparison.csv").exists()


def test_a_run_without_any_row_makes_a_page(write, tmp_path):
    assert "0 of 2 tasks are measured" in page([write("a", [], status="running")], tmp_path / "out")


def test_lower_is_better_columns_say_so_and_turn_the_colour(write, tmp_path):
    values = [[0.5, 0.4, 10.0, 12.0], [0.8, 0.4, 11.0, 12.0], [0.8, 0.7, 12.0, 11.0]]
    text = page([write("a", values, lower=["smileys", "places"])], tmp_path / "out")
    assert "error ↓ lower is better" in text
    assert "finetune worsened its held-out error by 0.500 (11.0 → 11.5)." in text
    tones = {title: tone for tone, title in re.findall(r'<td class="(\w+)[^>]*title="(\w+, after food)', text)}
    assert tones["smileys, after food"] == "loss"
    assert tones["places, after food"] == "gain"


def test_a_change_that_takes_an_exponent_makes_a_page(write, tmp_path):
    values = [[0.5, 0.4, 10.0, 12.0], [0.8, 0.4, 10.0, 12.0], [0.8, 0.7, 10.0, 12.0004]]
    text = page([write("a", values, lower=["smileys", "places"])], tmp_path / "out")
    assert "finetune worsened its held-out error by 2.00e−04 (11.0 → 11.0)." in text


def test_sample_counts_that_differ_are_a_range_of_numbers(write, tmp_path):
    paths = [write("a", name="a"), write("b", name="b")]
    for path, count in zip(paths, (90, 1000), strict=True):
        record = json.loads((path / "results.json").read_text())
        record["stream"]["evals"][2]["count"] = count
        (path / "results.json").write_text(json.dumps(record))
    assert "smileys 90 to 1000 " in row_of(page(paths, tmp_path / "out"), "smileys")


def test_arguments_are_shown_as_they_were(write, tmp_path):
    ema = {"name": "EMA", "class_path": "x.EMA", "arguments": {"decay": 0.99999995, "lr": 1e-5, "steps": 2.0}}
    text = page([write("a", strategies=[ema])], tmp_path / "out")
    assert re.findall(r"<dd>(0.99999995|1e-05|2)</dd>", text) == ["0.99999995", "1e-05", "2"]


def test_missing_cells_are_shown_as_missing(write, tmp_path):
    values = [[0.5, 0.4, 0.5, 0.46], [0.8, None, 0.4, 0.36], [0.7, 0.75, 0.31, None]]
    text = page([write("a", values)], tmp_path / "out")
    assert 'class="missing" title="food, after flags: not measured">–<' in text
    assert "cells were not measured and are left out" in text


def test_without_held_out_columns_the_verdict_is_on_forgetting(write, tmp_path):
    values = [[0.5, 0.4], [0.8, 0.38], [0.7, 0.75]]
    text = page([write("a", values, columns=("flags", "food"))], tmp_path / "out")
    assert "finetune forgot 10.0 points of what earlier tasks had learned (final mean 72.5)." in text


def test_segments_draw_the_curve_within_tasks(write, tmp_path):
    scores = {"flags": 0.6, "smileys": 0.5, "places": 0.4}
    segments = [
        {"task": task, "step": start + step, "task_step": step, "scores": scores}
        for start, task in ((0, "flags"), (150, "food"))
        for step in (50, 100)
    ]
    text = page([write("a", segments=segments)], tmp_path / "out")
    assert "Within tasks: held out" in text
    assert "Within tasks: learned before" in text


def test_many_runs_name_the_best(write, tmp_path):
    paths = [write("finetune")]
    for index in range(5):
        values = [[0.5, 0.4, 0.5, 0.46], [0.8, 0.38, 0.4, 0.36], [0.7, 0.75, 0.35 + index / 100, 0.35]]
        paths.append(write(f"m{index}", values, name=f"m{index}"))
    text = page(paths, tmp_path / "out")
    assert "; the best of the other 5, m4 lost 11.0 (48.0 → 37.0)." in text


def test_bad_paths_are_one_clear_line(tmp_path, write):
    (tmp_path / "empty").mkdir()
    with pytest.raises(MmclError, match=r"no results\.json in it or below"):
        build_report([tmp_path / "empty"], tmp_path / "out")
    with pytest.raises(MmclError, match="give at least one run folder"):
        build_report([], tmp_path / "out")
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(MmclError, match="cannot be made a folder"):
        build_report([write("a")], file)
