"""TiC summaries (Garg et al., ICLR 2024): mean scores on the present, the past and the future of a stream.

They are means of scores over cells of rows 1..T, not differences, and every cell has equal weight. Without time stamps
a column's time is the first task that trains it, a task is in-domain on every column that it trains, and held-out
columns do not take part. With ``train_time`` (one stamp per task) and ``eval_time`` (one per column; a column left out
does not take part) cells are classified by comparing the stamps, so that evaluation times need not be training times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from mmcl.errors import MmclError
from mmcl.metrics._summary import Missing, Reader, Summary, mean, mixed, undefined
from mmcl.metrics.matrix import ScoreMatrix

Times = Sequence[float] | Mapping[str, float] | None


def _ages(matrix: ScoreMatrix, train_time: Sequence[float] | None, eval_time: Times) -> dict[str, list[float]]:
    """Per column the evaluation time minus the training time of tasks 1..T: 0 in-domain, below past, above future."""
    if train_time is None and eval_time is None:
        tasks = range(1, len(matrix.tasks) + 1)
        return {
            column: [0.0 if k in matrix.trained_by(column) else float(matrix.trained_by(column)[0] - k) for k in tasks]
            for column in matrix.trained
        }
    if train_time is None or eval_time is None:
        raise MmclError("give both train_time (one per task) and eval_time (one per column), or neither")
    if len(train_time) != len(matrix.tasks):
        raise MmclError(f"train_time has {len(train_time)} entries for {len(matrix.tasks)} tasks")
    if isinstance(eval_time, Mapping):
        stamps = {matrix.columns[matrix.index(column)]: stamp for column, stamp in eval_time.items()}
    elif len(eval_time) != len(matrix.columns):
        raise MmclError(f"eval_time has {len(eval_time)} entries for {len(matrix.columns)} columns")
    else:
        stamps = dict(zip(matrix.columns, eval_time, strict=True))
    return {column: [stamp - trained for trained in train_time] for column, stamp in stamps.items()}


def _cells(
    matrix: ScoreMatrix,
    ages: Mapping[str, Sequence[float]],
    chosen: Callable[[float], bool],
    definition: str,
    reason: str,
    missing: Missing,
) -> Summary:
    cells = {column: [k for k, age in enumerate(its, 1) if chosen(age)] for column, its in ages.items()}
    clash = mixed(matrix, [column for column, rows in cells.items() if rows])
    if clash:
        return undefined(cells, definition, clash)
    reader = Reader(matrix, missing)
    scores = {column: [reader.cell(row, column) for row in rows] for column, rows in cells.items()}
    flat = [score for its in scores.values() for score in its if score is not None]
    shares = {column: mean(its) for column, its in scores.items()}
    return reader.summary(shares, definition, reason, value=mean(flat), parts={"cells": float(len(flat))})


def in_domain(
    matrix: ScoreMatrix,
    *,
    train_time: Sequence[float] | None = None,
    eval_time: Times = None,
    missing: Missing = "error",
) -> Summary:
    """Mean of the diagonal: the score after a task on its own column. `parts` holds the number of cells."""
    definition = "mean over cells of the score on the columns of the task just trained"
    ages = _ages(matrix, train_time, eval_time)
    return _cells(matrix, ages, lambda age: age == 0, definition, "no column belongs to a task", missing)


def backward(
    matrix: ScoreMatrix,
    *,
    train_time: Sequence[float] | None = None,
    eval_time: Times = None,
    missing: Missing = "error",
) -> Summary:
    """Mean of the strict lower triangle: scores on columns of earlier tasks. `parts` holds the number of cells."""
    definition = "mean over cells of the score on columns of earlier tasks (scores, not differences)"
    ages = _ages(matrix, train_time, eval_time)
    return _cells(matrix, ages, lambda age: age < 0, definition, "no column is older than a task", missing)


def forward(
    matrix: ScoreMatrix,
    *,
    train_time: Sequence[float] | None = None,
    eval_time: Times = None,
    missing: Missing = "error",
) -> Summary:
    """Mean of the strict upper triangle: scores on columns of later tasks.

    `parts` holds the number of cells, and `next_domain` (CLEAR): the mean over tasks of the score on the next column.
    """
    definition = "mean over cells of the score on columns of later tasks (scores, not differences)"
    ages = _ages(matrix, train_time, eval_time)
    result = _cells(matrix, ages, lambda age: age > 0, definition, "no column is newer than a task", missing)
    upcoming = [min((its[k] for its in ages.values() if its[k] > 0), default=None) for k in range(len(matrix.tasks))]
    following = [
        matrix[k + 1, column]
        for column, its in ages.items()
        for k, age in enumerate(its)
        if age > 0 and age == upcoming[k]
    ]
    result.parts["next_domain"] = None if result.value is None else mean(following)
    return result
