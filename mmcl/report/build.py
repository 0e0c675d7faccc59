"""Write the report of one run, or of several side by side, as one self-contained HTML page."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcl.errors import MmclError
from mmcl.report.formats import MINUS, number
from mmcl.report.groups import Group, group_runs, load
from mmcl.report.headline import headline, learned_line
from mmcl.report.heatmap import HeatMap, colour_scale, column_groups, heat_map
from mmcl.report.plots import SERIES, curves, segment_curves
from mmcl.report.shares import share_maps
from mmcl.report.tables import cost_rows, eval_rows, run_cards, summary_lines

PAGE = "report.html"
COMPARISON = "comparison.csv"


def build_report(runs: Sequence[str | Path], out: str | Path) -> Path:
    """Write `report.html` into the folder `out`, and `comparison.csv` beside it where there are several runs.

    Runs of one configuration with different seeds become one column, shown as mean and standard deviation. The
    baseline that differences refer to is the run named ``finetune``, or else the first one.

    Args:
        runs: run folders, or folders that hold run folders.
        out: where to write; made if it does not exist.

    Returns:
        The path of the page.

    Raises:
        MmclError: no results in a folder, results of another format, runs of different streams, or `out` is no folder.
    """
    results = load(runs)
    groups = group_runs(results)
    page = render(groups)
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MmclError(f"{folder}: cannot be made a folder for the report ({error.strerror})") from error
    if len(results) > 1:
        _write(folder / COMPARISON, comparison_csv(groups))
    return _write(folder / PAGE, page)


def render(groups: Sequence[Group]) -> str:
    """The whole page as text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("mmcl.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(_context(groups))


def comparison_csv(groups: Sequence[Group]) -> str:
    """One line per run (or group of seeds) and measure, in full precision; scores are fractions as in the matrix."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        ["run", "measure", "mean", "sd", "n", "difference_to_baseline", "difference_sd", "undefined_because"]
    )
    for group in groups:
        for key in group.measures[0]:
            stat, gap = group.stat(key), group.difference(key, groups[0])
            numbers = [stat.mean, stat.sd, stat.n, gap.mean, gap.sd]
            writer.writerow([group.label, key, *("" if x is None else repr(x) for x in numbers), stat.reason or ""])
    return buffer.getvalue()


@dataclass(frozen=True)
class Verdict:
    """A run's card at the top of the page."""

    label: str
    series: int
    baseline: bool
    big: str
    unit: str
    tone: str
    strength: int
    kept: str
    learned: str
    seeds: str
    unfinished: str


def _verdict(group: Group, index: int, several: bool, scale: float) -> Verdict:
    measure, change = group.measure("retention_difference"), group.stat("retention_difference").mean
    unit = group.measure("retention_final").unit
    initial, final = (group.stat(f"retention_{part}").mean for part in ("initial", "final"))
    start, end = number(initial, unit), number(final, unit)
    size = abs(change or 0.0) if unit == "percent" else abs((change or 0.0) / (initial or 1.0))
    text = number(change, measure.unit)
    learned = group.stat("last").mean
    return Verdict(
        label=group.label,
        series=index,
        baseline=several and index == 0,
        big=text,
        unit="points" if measure.unit == "points" and change is not None else "",
        tone="good" if text.startswith("+") else "bad" if text.startswith(MINUS) else "",
        strength=round(100 * min(size / scale, 1.0)),
        kept=f"held out {start} → {end}" if change is not None else str(measure.reason),
        learned="" if learned is None else f"learned {number(learned, group.measure('last').unit)}",
        seeds=f"{len(group.runs)} seeds" if len(group.runs) > 1 else "",
        unfinished=f"unfinished: {max(group.done, 0)} of {len(group.first.tasks)} tasks" if group.unfinished else "",
    )


def _context(groups: Sequence[Group]) -> dict[str, Any]:
    first, several = groups[0].first, len(groups) > 1
    scale = colour_scale(groups)
    layout = column_groups(first)
    return {
        "first": first,
        "groups": groups,
        "several": several,
        "seeds": any(len(group.runs) > 1 for group in groups),
        "headline": headline(groups),
        "learned": learned_line(groups),
        "verdicts": [_verdict(group, index, several, scale) for index, group in enumerate(groups)],
        "maps": [heat_map(group, index, scale) for index, group in enumerate(groups)],
        "seed_maps": [_seed_maps(group, index, scale) for index, group in enumerate(groups)],
        "scale": round(100 * scale),
        "percent": bool(first.fractions),
        "raw": len(first.fractions) < len(first.evals),
        "plots": curves(groups),
        "segments": segment_curves(groups),
        "shares": share_maps(groups),
        "summary": summary_lines(groups, main=True),
        "more": summary_lines(groups, main=False),
        "evals": eval_rows(groups, layout),
        "costs": cost_rows(groups),
        "cards": run_cards(groups),
        "series": SERIES,
    }


def _seed_maps(group: Group, index: int, scale: float) -> list[HeatMap]:
    """The matrix of each seed, where there are several."""
    if len(group.runs) < 2:
        return []
    return [heat_map(Group(group.label, [results]), index, scale, f"seed {results.run.seed}") for results in group.runs]


def _write(path: Path, text: str) -> Path:
    """Write through a temporary name, so that a reader never sees half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise MmclError(f"{path}: cannot be written ({error.strerror})") from error
    return path
