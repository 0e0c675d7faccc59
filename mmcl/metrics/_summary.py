"""What a summary of a score matrix returns, and how summaries read cells."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

from mmcl.errors import MmclError
from mmcl.metrics.matrix import ScoreMatrix

Missing: TypeAlias = Literal["error", "skip"]


@dataclass(frozen=True)
class Summary:
    """One number made of a score matrix, with what it is made of.

    Attributes:
        value: the number in the unit of the scores, or ``None`` where it is undefined (never 0 instead).
        reason: why `value` is ``None``.
        per_column: the column's own share of the number; ``None`` where the column has none.
        definition: the formula in words, with the sign convention.
        skipped: (row, column) of the cells that were not measured and left out (``missing="skip"`` only).
        parts: further numbers that belong to this one, by name.
    """

    value: float | None
    reason: str | None
    per_column: dict[str, float | None]
    definition: str
    skipped: tuple[tuple[int, str], ...] = ()
    parts: dict[str, float | None] = field(default_factory=dict)

    def __float__(self) -> float:
        """The value; an undefined one is an error that says why."""
        if self.value is None:
            raise MmclError(f"undefined summary: {self.reason}")
        return self.value

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON."""
        return {**asdict(self), "skipped": [list(cell) for cell in self.skipped]}


class Reader:
    """Reads the cells of one summary and remembers which of them are missing."""

    def __init__(self, matrix: ScoreMatrix, missing: Missing) -> None:
        if missing not in ("error", "skip"):
            raise MmclError(f"missing={missing!r}: use 'error' or 'skip'")
        self.matrix = matrix
        self.missing = missing
        self.absent: dict[tuple[int, str], None] = {}

    def cell(self, row: int, column: str) -> float | None:
        """The score, or ``None`` and a note that it is missing."""
        score = self.matrix[row, column]
        if score is None:
            self.absent[row, column] = None
        return score

    def better(self, row: int, column: str) -> float | None:
        """The score with its sign turned where lower is better, so that more is always better."""
        score = self.cell(row, column)
        return None if score is None else sign(self.matrix, column) * score

    def summary(
        self,
        per_column: dict[str, float | None],
        definition: str,
        reason: str,
        *,
        value: float | None = None,
        parts: dict[str, float | None] | None = None,
    ) -> Summary:
        """The result: `value`, by default the mean over the columns that have a share.

        Raises:
            MmclError: a cell is missing and the caller did not say ``missing="skip"``; the error names all of them.
        """
        if self.absent and self.missing == "error":
            names = self.matrix.row_names
            cells = ", ".join(
                f"({row},{self.matrix.index(column) + 1}) row {names[row]!r} column {column!r}"
                for row, column in self.absent
            )
            raise MmclError(f"score matrix: cells not measured: {cells}; measure them or pass missing='skip'")
        if value is None:
            value = mean(per_column.values())
        if value is None and self.absent:
            reason = "the cells it needs were not measured"
        return Summary(
            value, None if value is not None else reason, per_column, definition, tuple(self.absent), parts or {}
        )


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of what is there; ``None`` of nothing."""
    present = [value for value in values if value is not None]
    return math.fsum(present) / len(present) if present else None


def difference(after: float | None, before: float | None) -> float | None:
    """`after` - `before`, ``None`` where one is missing."""
    return None if after is None or before is None else after - before


def sign(matrix: ScoreMatrix, column: str) -> float:
    """-1 where lower is better, else 1."""
    return -1.0 if matrix.lower_is_better(column) else 1.0


def mixed(matrix: ScoreMatrix, columns: Sequence[str]) -> str | None:
    """Why a mean of these columns' scores would say nothing, or ``None`` if it does."""
    lower = [name for name in columns if matrix.lower_is_better(name)]
    if lower and len(lower) < len(columns):
        return (
            f"the columns mix directions (lower is better for {', '.join(lower)}): a mean of their scores says nothing"
        )
    return None


def undefined(columns: Iterable[str], definition: str, reason: str) -> Summary:
    """A summary without a value."""
    return Summary(None, reason, dict.fromkeys(columns), definition)


def row_after(matrix: ScoreMatrix, after: int | None, first: int = 0) -> int:
    """The row meant by `after`: the last one of the stream by default."""
    tasks = len(matrix.tasks)
    row = tasks if after is None else after
    if isinstance(row, bool) or not min(first, tasks) <= row <= tasks:
        raise MmclError(f"after={after!r}: use a row from {first} to {tasks}, the number of tasks")
    return row
