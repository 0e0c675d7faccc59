"""Curves as inline SVG that takes its colours and fonts from the page, so that it reads in light and dark."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import pairwise
from typing import Any

from markupsafe import Markup, escape

from mmcl.report.groups import Group, Stat
from mmcl.report.measures import clash, mean_score
from mmcl.report.results import Results

SERIES = 8  # the style sheet has this many colours; further runs repeat them with another dash
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))
INK, FAINT = "#0a0001", "#0a0002"  # drawn in these, then replaced by the page's own variables
LEAST = 10.0  # percent points that an axis spans at least, so that noise does not look like a fall
SIZE = (5.4, 3.3)  # inches of 72 px: small enough to be readable without zoom on a narrow screen


@dataclass(frozen=True)
class Line:
    """One curve: points (x, y), an optional half-width of a band per point, and the index of its run."""

    points: Sequence[tuple[float, float]]
    band: Sequence[float] | None
    series: int


@dataclass(frozen=True)
class Plot:
    """A titled figure."""

    title: str
    note: str
    svg: Markup


def curves(groups: Sequence[Group]) -> list[Plot]:
    """Held-out and learned scores over tasks, one line per run; a panel without anything to show is left out."""
    first = groups[0].first
    trained, held = first.matrix.trained, first.held_out
    panels = (
        ("Retention", held, "mean over the held-out columns, which no task trains"),
        ("Learning", trained, "mean over all columns that a task trains"),
    )
    labels = ["start", *first.matrix.task_names]
    plots = []
    for title, columns, what in panels:
        if any(clash(results, columns) for group in groups for results in group.runs):
            continue
        lines = [_over_tasks(group, columns, index) for index, group in enumerate(groups)]
        if not any(line.points for line in lines):
            continue
        scale, note = _scale(first, columns, what)
        plots.append(_draw(title, note, lines, scale, ticks=labels))
    return plots


def segment_curves(groups: Sequence[Group]) -> list[Plot]:
    """Scores within tasks, where runs have segments: on held-out columns, and on columns of earlier tasks."""
    first = groups[0].first
    order = {task.name: position for position, task in enumerate(first.tasks)}
    earlier = {
        task.name: tuple(c for c in first.matrix.trained if first.matrix.trained_by(c)[-1] <= position)
        for position, task in enumerate(first.tasks)
    }
    everywhere = {name: first.held_out for name in order}
    plots = []
    for title, columns, what in (
        ("Within tasks: held out", everywhere, "mean over the held-out columns at every cut within a task"),
        ("Within tasks: learned before", earlier, "mean over the columns of earlier tasks at every cut within a task"),
    ):
        lines = [_over_steps(group.first, columns, index) for index, group in enumerate(groups)]
        if not any(len(line.points) > 1 for line in lines):
            continue
        scale, note = _scale(first, first.matrix.trained if columns is earlier else first.held_out, what)
        note += "; a cut may use a subset of the samples"
        if any(len(group.runs) > 1 for group in groups):
            note += "; first seed of each run"
        begin = min(x for line in lines for x, _ in line.points)
        ends = [end for end in _ends(groups) if end[0] > begin]
        plots.append(_draw(title, note, lines, scale, ends=ends))
    return plots


def _over_tasks(group: Group, columns: Sequence[str], series: int) -> Line:
    points: list[tuple[float, float]] = []
    band: list[float] = []
    for row in range(group.done + 1):
        stat = Stat.of([mean_score(results, row, columns) for results in group.runs])
        if stat.mean is not None:
            points.append((float(row), stat.mean))
            band.append(stat.sd or 0.0)
    return Line(points, band if len(group.runs) > 1 else None, series)


def _over_steps(results: Results, columns: dict[str, tuple[str, ...]], series: int) -> Line:
    points = []
    for segment in results.segments:
        names = columns.get(segment.task, ())
        scores = [segment.scores.get(name) for name in names]
        present = [score for score in scores if score is not None]
        if present and len(present) == len(scores) and not clash(results, names):
            points.append((float(segment.step), sum(present) / len(present)))
    return Line(points, None, series)


def _ends(groups: Sequence[Group]) -> list[tuple[float, str]]:
    """Last cut of every task with its name: where one task ends and the next begins."""
    last: dict[str, int] = {}
    for group in groups:
        for segment in group.first.segments:
            last[segment.task] = max(segment.step, last.get(segment.task, 0))
    return sorted((float(step), name) for name, step in last.items())


def _scale(results: Results, columns: Sequence[str], what: str) -> tuple[float, str]:
    if all(name in results.fractions for name in columns):
        return 100.0, f"{what}, in percent"
    lower = results.eval(columns[0]).direction == "lower"
    return 1.0, f"{what}; lower is better" if lower else what


def _draw(
    title: str,
    note: str,
    lines: Sequence[Line],
    scale: float,
    ticks: Sequence[str] = (),
    ends: Sequence[tuple[float, str]] = (),
) -> Plot:
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    style = {"svg.fonttype": "none", "svg.hashsalt": title, "font.size": 11, "text.parse_math": False}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.add_subplot()
        for line in lines:
            _add(axes, line, scale)
        if ticks:
            short = [tick if len(tick) <= 16 else f"{tick[:15]}…" for tick in ticks]
            room = 54 / max(len(short) - 1, 1)  # characters between two ticks
            crowded = any(len(left) + len(right) > 2 * room - 7 for left, right in pairwise(short))
            axes.set_xticks(range(len(ticks)), short, rotation=40 * crowded, ha="right" if crowded else "center")
            axes.set_xlim(-0.2, len(ticks) - 0.8)
        else:
            axes.set_xlabel("optimizer step", color=FAINT)
        for step, task in ends:
            axes.axvline(step, color=FAINT, linewidth=0.7, linestyle=(0, (2, 3)))
            axes.annotate(
                task if len(task) <= 12 else f"{task[:11]}…",
                (step, 1.0), (-3, 3), xycoords=("data", "axes fraction"), textcoords="offset points",
                ha="right", fontsize=9, color=FAINT,
            )  # fmt: skip
        low, high = axes.get_ylim()
        if scale > 1 and high - low < LEAST:
            axes.set_ylim((low + high - LEAST) / 2, (low + high + LEAST) / 2)
        axes.yaxis.set_major_locator(MaxNLocator(5, min_n_ticks=3))
        axes.grid(axis="y", color=FAINT, linewidth=0.5, alpha=0.35)
        axes.tick_params(color=FAINT, labelcolor=INK, length=3)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(FAINT)
        stream = StringIO()
        with warnings.catch_warnings():  # the page brings its own fonts: glyphs that matplotlib lacks are no loss
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Plot(title, note, _inline(stream.getvalue(), title, note))


def _add(axes: Any, line: Line, scale: float) -> None:
    if not line.points:
        return
    color = f"#0b00{line.series % SERIES + 1:02x}"
    xs = [x for x, _ in line.points]
    ys = [scale * y for _, y in line.points]
    dash = DASHES[line.series // SERIES % len(DASHES)]
    marker = "o" if len(xs) <= 30 else ""
    axes.plot(xs, ys, color=color, linewidth=2.2, linestyle=dash, marker=marker, markersize=4.5, clip_on=False)
    if line.band is not None:
        low = [y - scale * half for y, half in zip(ys, line.band, strict=True)]
        high = [y + scale * half for y, half in zip(ys, line.band, strict=True)]
        axes.fill_between(xs, low, high, color=color, alpha=0.16, linewidth=0)


def _inline(svg: str, title: str, note: str) -> Markup:
    """Make matplotlib's file a part of the page: no prolog, own ids, the page's colours and fonts."""
    svg = svg[svg.index("<svg ") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<defs>\s*<style.*?</defs>", "", svg, flags=re.DOTALL)
    svg = svg.replace("xlink:href=", "href=")
    prefix = re.sub(r"\W+", "-", title).lower()
    svg = re.sub(r'(\bid="|href="#|url\(#)', lambda found: f"{found[1]}{prefix}-", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', r'<svg viewBox="\1" role="img" NAME>', svg, count=1)
    svg = svg.replace("NAME", f'aria-label="{escape(title)}: {escape(note)}"', 1)
    svg = svg.replace(INK, "var(--ink)").replace(FAINT, "var(--faint)")
    svg = re.sub(r"#0b00(\d\d)", lambda found: f"var(--s{int(found[1])})", svg)
    return Markup(svg)  # matplotlib escapes texts, the label is escaped above
