"""The score matrix as a table whose colours show what each cell gained or lost since row 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmcl.metrics.matrix import ScoreMatrix
from mmcl.report.formats import number
from mmcl.report.groups import Group
from mmcl.report.measures import clash, wilson
from mmcl.report.results import Results

FLOOR = 0.10  # the colour scale spans at least this change, so that noise does not look like forgetting
STRONGEST = 68  # percent of full colour at the largest change; the text stays readable on it


@dataclass(frozen=True)
class HeatCell:
    """A cell: its text, what a pointer shows, the colour's tone (gain, loss or none) and strength in percent."""

    text: str
    title: str
    tone: str
    strength: int
    trained: bool = False
    mean: bool = False
    first: bool = False


@dataclass(frozen=True)
class HeatColumn:
    """A column header."""

    name: str
    note: str
    first: bool = False
    mean: bool = False


@dataclass(frozen=True)
class HeatMap:
    """One matrix ready for the page; `spans` are the headings over groups of columns with their widths."""

    label: str
    series: int
    spans: tuple[tuple[str, int], ...]
    columns: tuple[HeatColumn, ...]
    rows: tuple[tuple[str, tuple[HeatCell, ...]], ...]
    unfinished: bool

    @property
    def narrow(self) -> bool:
        """Whether the columns are so many that their names stand upright."""
        return len(self.columns) > 12


def column_groups(results: Results) -> list[tuple[str, tuple[str, ...]]]:
    """Columns in the order of the page: trained by a task, held out, then other groups by their names."""
    trained, held = results.matrix.trained, results.held_out
    groups = [("trained by a task", trained), ("held out", held)]
    rest: dict[str, list[str]] = {}
    for record in results.evals:
        if record.name not in trained and record.name not in held:
            rest.setdefault(record.group, []).append(record.name)
    groups += [(f"{name} (beside retention)", tuple(names)) for name, names in rest.items()]
    return [(name, names) for name, names in groups if names]


def change(matrix: ScoreMatrix, row: int, column: str, percent: bool) -> float | None:
    """What a cell gained since row 0: in score for percentages, else relative to row 0. Positive is better."""
    now, start = matrix[row, column], matrix[0, column]
    if now is None or start is None:
        return None
    gain = (start - now) if matrix.lower_is_better(column) else (now - start)
    if percent:
        return gain
    return gain / abs(start) if start else None


def colour_scale(groups: Sequence[Group]) -> float:
    """The change that gets the full colour: the largest one of all runs, so that their maps can be compared."""
    largest = FLOOR
    for group in groups:
        for row in range(len(group.matrix.values)):
            for column in group.matrix.columns:
                gained = change(group.matrix, row, column, column in group.first.fractions)
                largest = max(largest, abs(gained or 0.0))
    return min(largest, 1.0)


def heat_map(group: Group, series: int, scale: float, label: str | None = None) -> HeatMap:
    """The map of a run, or of the mean over the seeds of a group."""
    results, matrix = group.first, group.matrix
    layout = column_groups(results)
    spans, columns = [], []
    for name, names in layout:
        with_mean = len(names) > 1 and not clash(results, names)
        spans.append((name, len(names) + with_mean))
        columns += [HeatColumn(item, _note(results, item), first=item == names[0]) for item in names]
        columns += [HeatColumn("mean", "", mean=True)] * with_mean
    rows = []
    for row in range(len(matrix.tasks) + 1):
        cells = [cell for _, names in layout for cell in _row(group, row, names, scale)]
        rows.append((matrix.row_names[row] if row else "before training", tuple(cells)))
    return HeatMap(label or group.label, series, tuple(spans), tuple(columns), tuple(rows), group.unfinished)


def _note(results: Results, name: str) -> str:
    record = results.eval(name)
    unit = "%" if name in results.fractions else record.metric
    return f"{unit} ↓ lower is better" if record.direction == "lower" else unit


def _row(group: Group, row: int, names: tuple[str, ...], scale: float) -> list[HeatCell]:
    cells = [_cell(group, row, name, scale, first=name == names[0]) for name in names]
    if len(names) > 1 and not clash(group.first, names):
        scores = [group.matrix[row, name] for name in names]
        present = [score for score in scores if score is not None]
        unit = "percent" if names[0] in group.first.fractions else "score"
        mean = sum(present) / len(present) if present and len(present) == len(scores) else None
        cells.append(HeatCell(number(mean, unit), "mean of the columns to the left", "none", 0, mean=True))
    return cells


def _cell(group: Group, row: int, name: str, scale: float, first: bool) -> HeatCell:
    results, matrix = group.first, group.matrix
    trained = row > 0 and name in matrix.columns_of(row)
    score = matrix[row, name]
    where = f"{name}, {f'after {matrix.row_names[row]}' if row else 'before training'}"
    if score is None:
        return HeatCell("–", f"{where}: not measured", "missing", 0, trained, first=first)
    percent = name in results.fractions
    unit = "percent" if percent else "score"
    parts = [f"{where}: {number(score, unit)}{' %' if percent else ''}"]
    sd = group.cell(row, name).sd
    if sd is not None:
        parts.append(f"standard deviation {number(sd, unit)} over {len(group.runs)} seeds")
    pooled = group.correct(row, name)
    if pooled:
        low, high = wilson(*pooled)
        parts.append(f"{pooled[0]} of {pooled[1]}, 95 % interval {number(low, unit)} to {number(high, unit)}")
    elif results.eval(name).count is not None:
        parts.append(f"{results.eval(name).count} samples")
    gained = change(matrix, row, name, percent) if row else None
    start = matrix[0, name]
    if gained is not None and start is not None:
        parts.append(f"{number(score - start, 'points' if percent else 'change')} since row 0")
    strength = round(STRONGEST * min(abs(gained or 0.0) / scale, 1.0))
    tone = "none" if not strength else "gain" if (gained or 0.0) > 0 else "loss"
    return HeatCell(number(score, unit), "; ".join(parts), tone, strength, trained, first=first)
