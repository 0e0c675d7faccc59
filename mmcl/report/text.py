"""Reports for the terminal: a line per finished task, and the matrix with its summaries at the end."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence

from mmcl.errors import MmclError
from mmcl.report.formats import MISSING, duration, number
from mmcl.report.heatmap import column_groups
from mmcl.report.measures import clash, mean_score, measures
from mmcl.report.results import Results

LONGEST = 14  # characters of a column's name
NARROWEST = 50  # a row's label, one column and the mean
LABEL = 22  # characters of a row's label


def run_line(results: Results, task: int) -> str:
    """One line on a task that has just been trained and evaluated.

    Args:
        results: the run so far.
        task: which task, 1..T.

    Returns:
        For instance ``task 2/3 food: food 57.1 → 80.0 | held out 49.7 → 48.2 | 12.1 s, 800 samples/s``.

    Raises:
        MmclError: the run has no such task.
    """
    if not 1 <= task <= len(results.tasks):
        raise MmclError(f"run {results.run.name!r} has no task {task}; it has the tasks 1 to {len(results.tasks)}")
    parts = [
        f"{name} {_score(results, task - 1, name)} → {_score(results, task, name)}"
        for name in results.matrix.columns_of(task)
    ]
    if not clash(results, results.held_out):
        unit = _unit(results, results.held_out[0])
        start, now = (number(mean_score(results, row, results.held_out), unit) for row in (0, task))
        parts.append(f"held out {start} → {now}")
    cost = results.costs[task - 1] if task <= len(results.costs) else None
    if cost and cost.train_seconds is not None:
        rate = "" if cost.samples_per_second is None else f", {cost.samples_per_second:.0f} samples/s"
        parts.append(f"{duration(cost.train_seconds)}{rate}")
    return f"task {task}/{len(results.tasks)} {results.tasks[task - 1].name}: {' | '.join(parts)}"


def final_table(results: Results, width: int | None = None) -> str:
    """The score matrix and the main summaries as plain text.

    Args:
        results: the run, finished or not.
        width: characters per line, 50 at least; the terminal's by default. Columns that do not fit go into a block
            below.
    """
    width = max(width or shutil.get_terminal_size((100, 24)).columns, NARROWEST)
    state = f"unfinished, {max(results.done, 0)} of {len(results.tasks)} tasks" if results.unfinished else "finished"
    blocks = [f"{results.run.name} on {results.stream} ({state}; {_units(results)})"]
    for role, names in column_groups(results):
        for part in _fit(results, names, width):
            blocks.append(_block(results, role, part, last=part[-1] == names[-1], names=names))
    if any(results.matrix.columns_of(row) for row in range(1, results.done + 1)):
        blocks[-1] += "\n* the column that the row's task trains"
    blocks.append(_summary(results, width))
    return "\n\n".join(blocks)


def _units(results: Results) -> str:
    if not results.fractions:
        return "scores as measured"
    return (
        "percent" if len(results.fractions) == len(results.evals) else "percent where a column's name is followed by %"
    )


def _unit(results: Results, name: str) -> str:
    return "percent" if name in results.fractions else "score"


def _score(results: Results, row: int, name: str) -> str:
    return number(results.matrix[row, name], _unit(results, name))


def _title(results: Results, name: str) -> str:
    mark = "↓" if results.eval(name).direction == "lower" else ""
    if results.fractions and len(results.fractions) < len(results.evals) and name in results.fractions:
        mark = " %"
    room = LONGEST - len(mark)
    return (name if len(name) <= room else f"{name[: room - 1]}…") + mark


def _size(results: Results, name: str) -> int:
    """Characters of a column with the space before it; one is for the trained cell's mark."""
    return max(len(_title(results, name)), 7) + 3


def _fit(results: Results, names: Sequence[str], width: int) -> list[list[str]]:
    """Cut the columns into blocks that fit; the last one keeps room for the mean."""
    blocks: list[list[str]] = [[]]
    used = LABEL
    for name in names:
        size = _size(results, name)
        mean = 8 if name == names[-1] else 0
        if blocks[-1] and used + size + mean > width:
            blocks.append([])
            used = LABEL
        blocks[-1].append(name)
        used += size
    return blocks


def _block(results: Results, role: str, part: Sequence[str], *, last: bool, names: Sequence[str]) -> str:
    with_mean = last and len(names) > 1 and not clash(results, names)
    head = "".join(_title(results, name).rjust(_size(results, name) - 1) + " " for name in part)
    lines = [f"{role:<{LABEL}}"[:LABEL] + head + ("mean".rjust(7) if with_mean else "")]
    for row in range(results.done + 1):
        label = f"{row} {results.matrix.row_names[row]}" if row else "before training"
        label = label if len(label) < LABEL else f"{label[: LABEL - 2]}…"
        text = f"{label:<{LABEL}}"
        for name in part:
            mark = "*" if row and name in results.matrix.columns_of(row) else " "
            text += _score(results, row, name).rjust(_size(results, name) - 1) + mark
        if with_mean:
            text += number(mean_score(results, row, names), _unit(results, names[0])).rjust(7)
        lines.append(text)
    return "\n".join(line.rstrip() for line in lines)


def _summary(results: Results, width: int) -> str:
    found = measures(results)
    start, end, gap, ratio = (found[f"retention_{part}"] for part in ("initial", "final", "difference", "ratio"))
    if gap.value is None:
        lines = [f"held out: {MISSING} ({gap.reason})"]
    else:
        points = " points" if gap.unit == "points" else ""
        lines = [
            f"held out: {number(start.value, start.unit)} → {number(end.value, end.unit)} "
            f"({number(gap.value, gap.unit)}{points}, ratio {number(ratio.value, ratio.unit)})"
        ]
    for key in ("last", "transfer", "average", "forgetting", "backward_transfer"):
        item = found[key]
        value = f"{number(item.value, item.unit)}" if item.value is not None else f"{MISSING} ({item.reason})"
        lines.append(f"{item.label}: {value}")
    seconds = found["train_seconds"].value, found["eval_seconds"].value
    if None not in seconds:
        lines.append(f"time: training {number(seconds[0], 'seconds')}, evaluation {number(seconds[1], 'seconds')}")
    return "\n".join(part for line in _wrap(lines, width) for part in textwrap.wrap(line, width))


def _wrap(items: Sequence[str], width: int) -> list[str]:
    """Put short items on one line, as many as fit."""
    lines: list[str] = []
    for item in items:
        if lines and len(lines[-1]) + len(item) + 3 <= width:
            lines[-1] += f" | {item}"
        else:
            lines.append(item)
    return lines
