"""The score matrix: what a model scores on every evaluation set, before the stream and after each of its tasks.

File format ``mmcl.score-matrix/1`` (JSON, UTF-8), one object with these keys:

=============  ==========================================================================================
``format``     the string ``mmcl.score-matrix/1``
``columns``    names of the J evaluation sets
``tasks``      T entries: the column that the task trains, a list of columns, or null where there is none
``task_names`` T names, the labels of rows 1..T (row 0 is ``initial``)
``directions`` J times ``higher`` or ``lower``: which scores are better
``counts``     J numbers of evaluated samples (null where unknown)
``values``     at most T+1 rows of J numbers, row 0 before any training; null is a cell that was not measured
=============  ==========================================================================================

A run in progress has fewer than T+1 rows. Readers ignore keys that they do not know.
"""

from __future__ import annotations

import csv
import io
import json
import math
import operator
import os
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat, TypeAlias

from mmcl.errors import MmclError, near

FORMAT = "mmcl.score-matrix/1"
DIRECTIONS = ("higher", "lower")

Column: TypeAlias = str | int
TaskColumns: TypeAlias = Column | Sequence[Column] | None
Row: TypeAlias = Sequence[SupportsFloat | None]


class ScoreMatrix:
    """Scores A[i, j]: row 0 before any training, row i after task i, column j an evaluation set. Immutable.

    Args:
        values: at most T+1 rows (row 0 first) of J numbers. ``None`` is a cell that was not measured; a ``None`` row is
            a row of such cells. Units are the caller's; the summaries keep them.
        columns: names of the J evaluation sets, each once.
        tasks: for each of the T tasks the column (name or 0-based index) that it trains, a sequence of columns where it
            trains several, or ``None`` where no column measures it.
        directions: ``higher`` or ``lower`` is better: per column, or by column name, or ``None`` for all ``higher``.
        counts: evaluated samples per column, or by column name, or ``None``.
        task_names: labels of rows 1..T. Default: the name of the task's only column, else ``task-K``.

    Raises:
        MmclError: duplicate or empty names, ragged or too many rows, a score that is not a finite number, an unknown
            column or direction.

    >>> m = ScoreMatrix([[20, 30], [80, 25]], columns=["pets", "food"], tasks=["pets"])
    >>> m.row_names, m.held_out, m[1, "pets"]
    (('initial', 'pets'), ('food',), 80.0)
    """

    def __init__(
        self,
        values: Sequence[Row | None],
        columns: Sequence[str],
        tasks: Sequence[TaskColumns],
        directions: Sequence[str] | Mapping[str, str] | None = None,
        counts: Sequence[int | None] | Mapping[str, int | None] | None = None,
        task_names: Sequence[str] | None = None,
    ) -> None:
        self.columns = _column_names(columns)
        self.tasks = tuple(self._task(position, task) for position, task in enumerate(tasks, 1))
        self.task_names = self._names(task_names)
        self.directions = tuple(
            self._direction(name, item or "higher") for name, item in self._by_column(directions, "direction").items()
        )
        self.counts = tuple(_count(name, item) for name, item in self._by_column(counts, "count").items())
        if len(values) > len(self.tasks) + 1:
            raise MmclError(
                f"score matrix: {len(values)} rows for {len(self.tasks)} tasks; there is one row before training and "
                "one after each task"
            )
        self.values = tuple(self._row(index, row) for index, row in enumerate(values))

    # -- reading -------------------------------------------------------------------------------------------------

    @property
    def row_names(self) -> tuple[str, ...]:
        """Labels of all T+1 rows, measured or not: ``initial``, then the tasks."""
        return ("initial", *self.task_names)

    @property
    def complete(self) -> bool:
        """Whether all (T+1) x J cells are measured."""
        return len(self.values) == len(self.row_names) and all(None not in row for row in self.values)

    @property
    def trained(self) -> tuple[str, ...]:
        """Columns that some task trains, in the order in which they are first trained."""
        return tuple(dict.fromkeys(name for task in range(1, len(self.tasks) + 1) for name in self.columns_of(task)))

    @property
    def held_out(self) -> tuple[str, ...]:
        """Columns that no task trains, in column order."""
        trained = set(self.trained)
        return tuple(name for name in self.columns if name not in trained)

    def columns_of(self, task: int) -> tuple[str, ...]:
        """Columns that task `task` (1..T) trains."""
        entry = self.tasks[task - 1]
        return () if entry is None else (entry,) if isinstance(entry, str) else entry

    def trained_by(self, column: Column) -> tuple[int, ...]:
        """The tasks (1..T) that train `column`, in order; empty for a held-out column."""
        name = self.columns[self.index(column)]
        return tuple(task for task in range(1, len(self.tasks) + 1) if name in self.columns_of(task))

    def index(self, column: Column) -> int:
        """0-based position of `column` (a name, or a position that is checked)."""
        if isinstance(column, str):
            if column not in self.columns:
                raise MmclError(f"score matrix: unknown column {column!r}; {near(column, self.columns)}")
            return self.columns.index(column)
        position = -1 if isinstance(column, bool) or not hasattr(column, "__index__") else operator.index(column)
        if not 0 <= position < len(self.columns):
            raise MmclError(f"score matrix: column {column!r} is neither a name nor within 0..{len(self.columns) - 1}")
        return position

    def lower_is_better(self, column: Column) -> bool:
        """Whether a smaller score of `column` is the better one (error rates, perplexity)."""
        return self.directions[self.index(column)] == "lower"

    def __getitem__(self, cell: tuple[int, Column]) -> float | None:
        """Score of (row 0..T, column); ``None`` where it was not measured."""
        row, column = cell
        if not 0 <= row <= len(self.tasks):
            raise MmclError(f"score matrix: row {row} is outside 0..{len(self.tasks)}")
        position = self.index(column)
        return self.values[row][position] if row < len(self.values) else None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ScoreMatrix) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"ScoreMatrix({len(self.values)} of {len(self.row_names)} rows, columns={list(self.columns)})"

    # -- growing and writing --------------------------------------------------------------------------------------

    def with_row(self, row: Row | Mapping[str, SupportsFloat | None] | None) -> ScoreMatrix:
        """A new matrix with the next row of a run in progress (numbers in column order, or by column name)."""
        if isinstance(row, Mapping):
            unknown = set(row) - set(self.columns)
            if unknown:
                raise MmclError(f"score matrix: unknown columns {sorted(unknown)}; known: {', '.join(self.columns)}")
            row = [row.get(name) for name in self.columns]
        return ScoreMatrix([*self.values, row], self.columns, self.tasks, self.directions, self.counts, self.task_names)

    def to_dict(self) -> dict[str, Any]:
        """The file's content as plain lists and numbers, ready to be put into a larger JSON document."""
        return {
            "format": FORMAT,
            "columns": list(self.columns),
            "tasks": [list(task) if isinstance(task, tuple) else task for task in self.tasks],
            "task_names": list(self.task_names),
            "directions": list(self.directions),
            "counts": list(self.counts),
            "values": [list(row) for row in self.values],
        }

    def to_json(self, path: str | Path | None = None) -> str:
        """The matrix as JSON text; also written to `path` if given (in full or not at all)."""
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        return _write(text, path)

    def to_csv(self, path: str | Path | None = None) -> str:
        """One line per measured row, first column ``row``, an empty field for a missing cell, full precision."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(["row", *self.columns])
        for name, row in zip(self.row_names, self.values, strict=False):
            writer.writerow([name, *("" if value is None else repr(value) for value in row)])
        return _write(buffer.getvalue(), path)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "score matrix") -> ScoreMatrix:
        """The inverse of `to_dict`; `where` names the source in errors."""
        found = data.get("format") if isinstance(data, Mapping) else None
        if found != FORMAT:
            raise MmclError(f"{where}: format is {found!r}, this version reads {FORMAT!r}")
        missing = [key for key in ("values", "columns", "tasks") if key not in data]
        if missing:
            raise MmclError(f"{where}: the key {missing[0]!r} is missing")
        optional = (data.get(key) for key in ("directions", "counts", "task_names"))
        try:
            return cls(data["values"], data["columns"], data["tasks"], *optional)
        except TypeError as error:
            raise MmclError(f"{where}: not a score matrix ({error})") from error

    @classmethod
    def from_json(cls, source: str | Path | Mapping[str, Any]) -> ScoreMatrix:
        """Read a file (path), JSON text (a string that begins with ``{``) or an already parsed object."""
        if isinstance(source, Mapping):
            return cls.from_dict(source)
        is_text = isinstance(source, str) and source.lstrip().startswith("{")
        where = "score matrix" if is_text else str(source)
        try:
            text = str(source) if is_text else Path(source).read_text(encoding="utf-8")
        except OSError as error:
            raise MmclError(f"{where}: cannot be read ({error.strerror})") from error
        try:
            return cls.from_dict(json.loads(text), where)
        except json.JSONDecodeError as error:
            raise MmclError(f"{where}: not valid JSON (line {error.lineno}: {error.msg})") from error

    # -- checking -------------------------------------------------------------------------------------------------

    def _task(self, position: int, task: TaskColumns) -> str | tuple[str, ...] | None:
        if task is None:
            return None
        single = isinstance(task, str) or not isinstance(task, Sequence)
        entries: Sequence[Column] = [task] if single else task  # type: ignore[assignment,list-item]
        try:
            names = tuple(self.columns[self.index(entry)] for entry in entries)
        except MmclError as error:
            raise MmclError(f"score matrix: task {position} trains an unknown column: {error}") from error
        if len(set(names)) < len(names):
            raise MmclError(f"score matrix: task {position} names a column twice")
        return names[0] if single else (names or None)

    def _names(self, names: Sequence[str] | None) -> tuple[str, ...]:
        if names is None:
            labels = [task if isinstance(task, str) else "" for task in self.tasks]
            return tuple(
                label if label and labels.count(label) == 1 else f"task-{k}" for k, label in enumerate(labels, 1)
            )
        if isinstance(names, str) or len(names) != len(self.tasks):
            raise MmclError(f"score matrix: {len(names)} task names for {len(self.tasks)} tasks")
        return tuple(_one_line(str(name)) for name in names)

    def _by_column(self, given: Sequence[Any] | Mapping[str, Any] | None, what: str) -> dict[str, Any]:
        if given is None:
            return dict.fromkeys(self.columns)
        if isinstance(given, Mapping):
            for name in given:
                self.index(name)
            return {name: given.get(name) for name in self.columns}
        if isinstance(given, str) or len(given) != len(self.columns):
            raise MmclError(f"score matrix: give one {what} per column: {len(self.columns)} columns, got {given!r}")
        return dict(zip(self.columns, given, strict=True))

    def _direction(self, name: str, direction: str) -> str:
        if direction not in DIRECTIONS:
            raise MmclError(f"score matrix: direction of column {name!r} is {direction!r}; use 'higher' or 'lower'")
        return direction

    def _row(self, index: int, row: Row | None) -> tuple[float | None, ...]:
        if row is None:
            return (None,) * len(self.columns)
        if len(row) != len(self.columns):
            raise MmclError(
                f"score matrix: row {index} ({self.row_names[index]!r}) has {len(row)} scores for "
                f"{len(self.columns)} columns"
            )
        return tuple(self._score(index, name, value) for name, value in zip(self.columns, row, strict=True))

    def _score(self, index: int, name: str, value: SupportsFloat | None) -> float | None:
        if value is None:
            return None
        try:
            score = math.nan if isinstance(value, (bool, str)) else float(value)
        except (TypeError, ValueError):
            score = math.nan
        if not math.isfinite(score):
            raise MmclError(
                f"score matrix: row {index} ({self.row_names[index]!r}), column {name!r} holds {value!r}, not a finite "
                "number; write None for a cell that was not measured"
            )
        return score


def _column_names(columns: Sequence[str]) -> tuple[str, ...]:
    if isinstance(columns, str) or not all(isinstance(name, str) and name for name in columns):
        raise MmclError("score matrix: columns must be a list of names that are not empty")
    for name in columns:
        _one_line(name)
    twice = [name for name in dict.fromkeys(columns) if list(columns).count(name) > 1]
    if twice:
        raise MmclError(f"score matrix: two columns are called {twice[0]!r}; rename one evaluation set")
    return tuple(columns)


def _one_line(name: str) -> str:
    """`name`, unless it would break a line of a table."""
    if any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in name):
        raise MmclError(f"score matrix: the name {name!r} holds a control character or a line break")
    return name


def _count(name: str, count: Any) -> int | None:
    if count is None:
        return None
    try:
        whole = int(count)
    except (TypeError, ValueError):
        whole = -1
    if whole < 0 or whole != count or isinstance(count, bool):
        raise MmclError(f"score matrix: count of column {name!r} is {count!r}, not a number of samples")
    return whole


def _write(text: str, path: str | Path | None) -> str:
    """Write through a temporary name, so that a reader never sees half a file."""
    if path is not None:
        target = Path(path)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, target)
    return text
