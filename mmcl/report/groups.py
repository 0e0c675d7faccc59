"""Runs side by side: which of them are one method with several seeds, and what their numbers are together."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from mmcl.errors import MmclError
from mmcl.metrics.matrix import ScoreMatrix
from mmcl.report.measures import Measure, measures
from mmcl.report.results import FILE, Results

SEED = re.compile(r"(^|[/_.-])seed[-_=]?\d+$")
BASELINE = "finetune"


@dataclass(frozen=True)
class Stat:
    """Mean over the seeds of a group.

    Attributes:
        mean: None where any run has no value.
        sd: sample standard deviation; None for fewer than two values.
        n: number of runs with a value.
        reason: why `mean` is None.
    """

    mean: float | None
    sd: float | None
    n: int
    reason: str | None = None

    @classmethod
    def of(cls, values: Sequence[float | None], reason: str | None = None) -> Stat:
        """The statistics of one number per run."""
        present = [value for value in values if value is not None]
        if not present or len(present) < len(values):
            return cls(None, None, len(present), reason or "not every run has a value")
        return cls(statistics.fmean(present), statistics.stdev(present) if len(present) > 1 else None, len(present))


@dataclass
class Group:
    """Runs of one configuration that differ in their seed; most groups hold one run."""

    label: str
    runs: list[Results] = field(default_factory=list)

    @property
    def first(self) -> Results:
        """The run that speaks for what all have in common."""
        return self.runs[0]

    @property
    def seeds(self) -> list[int | None]:
        """The seeds, in the order of the runs."""
        return [results.run.seed for results in self.runs]

    @property
    def unfinished(self) -> bool:
        """Whether any run has tasks to come."""
        return any(results.unfinished for results in self.runs)

    @property
    def done(self) -> int:
        """The last matrix row that every run has measured."""
        return min(results.done for results in self.runs)

    @cached_property
    def measures(self) -> list[dict[str, Measure]]:
        """The measures of each run."""
        return [measures(results) for results in self.runs]

    def measure(self, key: str) -> Measure:
        """A measure of the first run, for its label, unit and definition."""
        return self.measures[0][key]

    def stat(self, key: str) -> Stat:
        """A measure over all runs of the group."""
        found = [each[key] for each in self.measures]
        return Stat.of([each.value for each in found], next((each.reason for each in found if each.reason), None))

    def difference(self, key: str, baseline: Group) -> Stat:
        """The measure minus the baseline's: seed by seed where both have the same seeds, else of the two means."""
        paired = sorted(map(str, self.seeds)) == sorted(map(str, baseline.seeds)) and len(set(self.seeds)) == len(
            self.runs
        )
        mine, theirs = self.stat(key), baseline.stat(key)
        if mine.mean is None or theirs.mean is None:
            return Stat(None, None, 0, mine.reason or theirs.reason)
        if not paired:
            return Stat(mine.mean - theirs.mean, None, min(mine.n, theirs.n))
        other = {
            results.run.seed: each[key].value for results, each in zip(baseline.runs, baseline.measures, strict=True)
        }
        values = [
            each[key].value - other[results.run.seed]  # type: ignore[operator]  # all have values: both means exist
            for results, each in zip(self.runs, self.measures, strict=True)
        ]
        return Stat.of(values)

    @cached_property
    def matrix(self) -> ScoreMatrix:
        """Mean of the runs' matrices; a cell that any run lacks is missing."""
        first = self.first.matrix
        if len(self.runs) == 1:
            return first
        rows = min(len(results.matrix.values) for results in self.runs)
        values = [[self.cell(row, column).mean for column in first.columns] for row in range(rows)]
        return ScoreMatrix(values, first.columns, first.tasks, first.directions, first.counts, first.task_names)

    def cell(self, row: int, column: str) -> Stat:
        """One matrix cell over all runs."""
        return Stat.of([results.matrix[row, column] for results in self.runs])

    def correct(self, row: int, column: str) -> tuple[int, int] | None:
        """Correct and evaluated samples of a cell, pooled over the runs; None where the score is no such proportion."""
        total = [0, 0]
        for results in self.runs:
            cell, score = results.cell(row, column), results.matrix[row, column]
            if cell is None or cell.correct is None or not cell.count or score is None:
                return None
            if abs(cell.correct / cell.count - score) > 1e-6:
                return None
            total = [total[0] + cell.correct, total[1] + cell.count]
        return total[0], total[1]


def load(paths: Sequence[str | Path]) -> list[Results]:
    """Read runs. A folder without results of its own stands for all runs below it, in the order of their names.

    Raises:
        MmclError: no path, no run below a path, or results that cannot be read.
    """
    if not paths:
        raise MmclError("report: give at least one run folder")
    folders: dict[Path, None] = {}
    for path in map(Path, paths):
        if path.name == FILE or (path / FILE).is_file() or not path.is_dir():
            folders[path] = None
            continue
        below = sorted(found.parent for depth in ("*", "*/*") for found in path.glob(f"{depth}/{FILE}"))
        if not below:
            raise MmclError(f"{path}: no {FILE} in it or below; give run folders that `mmcl fit` started")
        folders.update(dict.fromkeys(below))
    return [Results.from_folder(folder) for folder in folders]


def group_runs(runs: Sequence[Results]) -> list[Group]:
    """Put runs of one configuration with different seeds together, in the order given, the baseline first.

    Raises:
        MmclError: the runs are of different streams.
    """
    check_comparable(runs)
    fractions = frozenset.intersection(*(results.fractions for results in runs))
    groups: list[Group] = []
    for results in (replace(results, fractions=fractions) for results in runs):
        home = next((group for group in groups if _belongs(results, group)), None)
        if home is None:
            home = Group(_name(results))
            groups.append(home)
        home.runs.append(results)
    groups.sort(key=lambda group: group.label != BASELINE)
    _tell_apart(groups)
    return groups


def check_comparable(runs: Sequence[Results]) -> None:
    """Refuse runs whose matrices do not mean the same.

    Raises:
        MmclError: another stream, other tasks, columns, directions or metrics, or other columns for retention; the line
            names the first difference.
    """
    first = runs[0]
    for other in runs[1:]:
        for what, ours, theirs in (
            ("stream", [first.stream], [other.stream]),
            ("tasks", [t.name for t in first.tasks], [t.name for t in other.tasks]),
            ("columns", list(first.matrix.columns), list(other.matrix.columns)),
            ("trained columns", list(map(str, first.matrix.tasks)), list(map(str, other.matrix.tasks))),
            ("directions", list(first.matrix.directions), list(other.matrix.directions)),
            ("metrics", [e.metric for e in first.evals], [e.metric for e in other.evals]),
            ("held-out columns", list(first.held_out), list(other.held_out)),
        ):
            if ours != theirs:
                raise MmclError(
                    f"runs of different streams cannot be compared: {_place(first)} has the {what} {', '.join(ours)}; "
                    f"{_place(other)} has {', '.join(theirs)}"
                )


def _belongs(results: Results, group: Group) -> bool:
    first = group.first
    alike = _method(results) == _method(first) and results.run.seed not in group.seeds
    same_hash = bool(results.run.config_hash) and results.run.config_hash == first.run.config_hash
    return alike and (same_hash or _name(results) == group.label)


def _method(results: Results) -> str:
    return json.dumps([[item.class_path, item.name, item.arguments] for item in results.strategies], sort_keys=True)


def _name(results: Results) -> str:
    """The run's name without its seed: ``zscl/seed-1`` and the folder ``zscl/seed-1`` are both ``zscl``."""
    name = SEED.sub("", results.run.name)
    if name:
        return name
    parent = results.folder.resolve().parent.name if results.folder else ""
    return parent or results.run.name


def _place(results: Results) -> str:
    return str(results.folder) if results.folder else results.run.name


def _tell_apart(groups: Sequence[Group]) -> None:
    labels = [group.label for group in groups]
    for group, label in zip(groups, labels, strict=True):
        if labels.count(label) > 1:
            group.label = f"{label} ({'/'.join(Path(_place(group.first)).parts[-2:])})"
