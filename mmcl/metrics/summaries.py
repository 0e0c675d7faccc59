"""Summaries of a score matrix, each as its paper defines it.

Rows count from 0 (before training) to T; a column is *trained* if some task trains it and *held out* otherwise. Where
a column is trained by several tasks, what happens before learning ends at the first of them and what happens after
learning begins at the last. Summaries that are means of scores keep the scores' unit and direction and are undefined
over columns of both directions; summaries that are differences turn the sign of lower-is-better columns, so that a
positive transfer is always an improvement and a positive forgetting always a loss.

Every function takes ``missing="error"`` (default: a needed cell that was not measured is an error) or ``"skip"``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, get_args

from mmcl.errors import MmclError
from mmcl.metrics._summary import Missing, Reader, Summary, difference, mean, mixed, row_after, sign, undefined
from mmcl.metrics.continual import minimum_accuracy, windowed_forgetting, windowed_plasticity, worst_case_accuracy
from mmcl.metrics.matrix import ScoreMatrix
from mmcl.metrics.tic import backward, forward, in_domain

__all__ = [
    "ForgettingVariant",
    "Summary",
    "average",
    "average_accuracy",
    "average_incremental_accuracy",
    "backward",
    "backward_transfer",
    "forgetting",
    "forward",
    "forward_transfer",
    "geometric_mean",
    "in_domain",
    "knowledge_accumulation",
    "last",
    "minimum_accuracy",
    "seen_average",
    "stepwise_forgetting",
    "summarize",
    "transfer",
    "windowed_forgetting",
    "windowed_plasticity",
    "worst_case_accuracy",
    "zero_shot_forgetting",
    "zero_shot_retention",
]

NO_COLUMN = "no task trains a column of the matrix"
NO_LATER = "no task trains its column after another task: at least two tasks are needed"
ForgettingVariant = Literal["chaudhry", "since_learned", "incl_last", "incl_last_lower_triangle_only", "initial"]


def _mean_of_scores(
    matrix: ScoreMatrix,
    rows: Mapping[str, Iterable[int]],
    definition: str,
    reason: str,
    missing: Missing,
) -> Summary:
    """Mean over columns of the mean over each column's rows."""
    clash = mixed(matrix, list(rows))
    if clash:
        return undefined(rows, definition, clash)
    reader = Reader(matrix, missing)
    shares = {column: mean(reader.cell(row, column) for row in its) for column, its in rows.items()}
    return reader.summary(shares, definition, reason)


# -- MTIL (Zheng et al., ICCV 2023) --------------------------------------------------------------------------------


def transfer(matrix: ScoreMatrix, *, missing: Missing = "error") -> Summary:
    """MTIL Transfer: each column's mean over rows 1..first-1 before its task, then the mean over columns. No row 0."""
    rows = {column: range(1, matrix.trained_by(column)[0]) for column in matrix.trained}
    definition = "mean score on each trained column after tasks 1.. until its own task begins, then mean over columns"
    return _mean_of_scores(matrix, rows, definition, NO_LATER if rows else NO_COLUMN, missing)


def average(matrix: ScoreMatrix, *, missing: Missing = "error") -> Summary:
    """MTIL Avg: mean over trained columns of the mean over rows 1..T."""
    rows = {column: range(1, len(matrix.tasks) + 1) for column in matrix.trained}
    return _mean_of_scores(
        matrix, rows, "mean over the trained columns of their mean score after tasks 1..T", NO_COLUMN, missing
    )


def seen_average(matrix: ScoreMatrix, *, missing: Missing = "error") -> Summary:
    """ODCL's seen average (CoLeCLIP): each column's mean over the rows from its own task's to T, then the mean."""
    rows = {column: range(matrix.trained_by(column)[0], len(matrix.tasks) + 1) for column in matrix.trained}
    definition = "mean score on each trained column after its own task and all later ones, then mean over columns"
    return _mean_of_scores(matrix, rows, definition, NO_COLUMN, missing)


def last(matrix: ScoreMatrix, *, missing: Missing = "error") -> Summary:
    """MTIL Last: mean over trained columns of row T."""
    rows = {column: [len(matrix.tasks)] for column in matrix.trained}
    return _mean_of_scores(matrix, rows, "mean score on the trained columns after the last task", NO_COLUMN, missing)


# -- GEM (Lopez-Paz and Ranzato, NeurIPS 2017), RWalk (Chaudhry et al., ECCV 2018) ---------------------------------


def average_accuracy(matrix: ScoreMatrix, *, after: int | None = None, missing: Missing = "error") -> Summary:
    """GEM ACC: mean of row `after` (default T) over the columns that tasks 1..`after` train."""
    row = row_after(matrix, after, first=1)
    rows = {column: [row] for column in matrix.trained if matrix.trained_by(column)[0] <= row}
    return _mean_of_scores(matrix, rows, "mean score on the columns trained so far", NO_COLUMN, missing)


def backward_transfer(matrix: ScoreMatrix, *, after: int | None = None, missing: Missing = "error") -> Summary:
    """GEM BWT after task k = `after` (default T): mean of A[k, j] - A[task of j, j] over the columns learned before k.

    Negative is forgetting. TRACE's BWT counts task k's own column as a 0: it is (k - 1) / k times this one.
    """
    k = row_after(matrix, after, first=1)
    reader = Reader(matrix, missing)
    shares: dict[str, float | None] = {}
    for column in matrix.trained:
        learned = [task for task in matrix.trained_by(column) if task <= k]
        if not learned:
            continue
        change = difference(reader.better(k, column), reader.better(learned[-1], column)) if learned[-1] < k else None
        shares[column] = change
    definition = (
        "mean over earlier columns of (score after the last task - score after their own task); positive: better"
    )
    return reader.summary(shares, definition, NO_LATER if shares else NO_COLUMN)


def forward_transfer(matrix: ScoreMatrix, *, missing: Missing = "error") -> Summary:
    """GEM FWT: mean of A[task of j - 1, j] - A[0, j] over the columns learned after task 1; b_j is row 0."""
    definition = (
        "mean over later columns of (score just before their own task - score before training); positive: better"
    )
    first = {column: matrix.trained_by(column)[0] for column in matrix.trained}
    later = [column for column, task in first.items() if task > 1]
    if later and all(matrix[0, column] is None for column in later):
        return undefined(first, definition, "row 0 (before training) was not measured")
    reader = Reader(matrix, missing)
    shares: dict[str, float | None] = dict.fromkeys(first)
    for column in later:
        shares[column] = difference(reader.better(first[column] - 1, column), reader.better(0, column))
    return reader.summary(shares, definition, NO_LATER if shares else NO_COLUMN)


def forgetting(
    matrix: ScoreMatrix,
    *,
    variant: ForgettingVariant = "chaudhry",
    after: int | None = None,
    missing: Missing = "error",
) -> Summary:
    """Forgetting after task k = `after` (default T): mean over the columns learned before k of (reference - A[k, j]).

    Args:
        matrix: the scores.
        variant: the reference. ``chaudhry``: best of rows 1..k-1 (the value may be negative). ``since_learned``: best
            of the rows from the column's task to k-1. ``incl_last``: best of rows 1..k, never negative.
            ``incl_last_lower_triangle_only``: best from the column's task to k. ``initial``: right after the column
            was trained, which is minus the term of `backward_transfer`.
        after: k, a task 1..T.
        missing: see the module.
    """
    if variant not in get_args(ForgettingVariant):
        raise MmclError(f"forgetting: unknown variant {variant!r}; known: {', '.join(get_args(ForgettingVariant))}")
    k = row_after(matrix, after, first=1)
    reader = Reader(matrix, missing)
    shares: dict[str, float | None] = {}
    for column in matrix.trained:
        learned = [task for task in matrix.trained_by(column) if task < k]
        if not learned:
            continue
        begin = {"chaudhry": 1, "incl_last": 1, "initial": learned[-1]}.get(variant, learned[0])
        end = {"chaudhry": k - 1, "since_learned": k - 1, "initial": learned[-1]}.get(variant, k)
        scores = [reader.better(row, column) for row in range(begin, end + 1)]
        best = max((score for score in scores if score is not None), default=None)
        shares[column] = difference(best, reader.better(k, column))
    return reader.summary(
        shares,
        f"mean over earlier columns of (reference - current score), reference {variant!r}; positive: lost",
        NO_LATER if matrix.trained else NO_COLUMN,
    )


def stepwise_forgetting(matrix: ScoreMatrix, *, missing: Missing = "error") -> Summary:
    """CODA-Prompt's forgetting: mean over tasks t > 1 of the mean of A[t-1, j] - A[t, j] over columns learned before t.

    The drops of one task each: much smaller than what `forgetting` gives, and not comparable with it.
    """
    reader = Reader(matrix, missing)
    drops: dict[str, list[float | None]] = {column: [] for column in matrix.trained}
    steps: list[float | None] = []
    for t in range(2, len(matrix.tasks) + 1):
        earlier = [column for column in matrix.trained if matrix.trained_by(column)[0] < t]
        for column in earlier:
            drops[column].append(difference(reader.better(t - 1, column), reader.better(t, column)))
        steps.append(mean(drops[column][-1] for column in earlier))
    return reader.summary(
        {column: mean(its) for column, its in drops.items()},
        "mean over tasks of the mean drop on earlier columns in that task alone; positive: lost",
        NO_LATER if drops else NO_COLUMN,
        value=mean(steps),
    )


def average_incremental_accuracy(matrix: ScoreMatrix, *, missing: Missing = "error") -> Summary:
    """AIA: mean over tasks k of the mean of row k over the columns learned so far. `parts` holds A_k by task name."""
    definition = "mean over tasks of the mean score on the columns trained so far"
    clash = mixed(matrix, matrix.trained)
    if clash:
        return undefined(matrix.trained, definition, clash)
    reader = Reader(matrix, missing)
    steps: dict[str, float | None] = {}
    seen: dict[str, list[float | None]] = {column: [] for column in matrix.trained}
    for k, name in enumerate(matrix.task_names, 1):
        learned = [column for column in matrix.trained if matrix.trained_by(column)[0] <= k]
        for column in learned:
            seen[column].append(reader.cell(k, column))
        label = name if name not in steps else f"{name} ({k})"
        steps[label] = mean(seen[column][-1] for column in learned)
    shares = {column: mean(scores) for column, scores in seen.items()}
    return reader.summary(shares, definition, NO_COLUMN, value=mean(steps.values()), parts=steps)


# -- FoMo-in-Flux (Roth et al., NeurIPS 2024) and retention --------------------------------------------------------


def _group(
    matrix: ScoreMatrix, columns: Sequence[str], row: int, definition: str, reason: str, missing: Missing
) -> Summary:
    """Mean of one row over a group of columns, beside the same of row 0 where that was measured."""
    clash = mixed(matrix, columns)
    if clash:
        return undefined(columns, definition, clash)
    reader = Reader(matrix, missing)
    shares = {column: reader.cell(row, column) for column in columns}
    has_start = any(matrix[0, column] is not None for column in columns)
    start = {column: reader.cell(0, column) if has_start else None for column in columns}
    both = [column for column in columns if shares[column] is not None and start[column] is not None]
    final, initial = mean(shares[column] for column in both), mean(start[column] for column in both)
    change = ratio = None
    if final is not None and initial is not None:
        direction = sign(matrix, columns[0])
        change = direction * (final - initial)
        above, below = (final, initial) if direction > 0 else (initial, final)
        ratio = above / below if below else None
    parts = {"initial": mean(start.values()), "final": mean(shares.values()), "difference": change, "ratio": ratio}
    return reader.summary(shares, definition, reason, parts=parts)


def _named(matrix: ScoreMatrix, columns: Sequence[str | int] | None, default: tuple[str, ...]) -> list[str]:
    return list(default) if columns is None else [matrix.columns[matrix.index(column)] for column in columns]


def knowledge_accumulation(
    matrix: ScoreMatrix,
    *,
    columns: Sequence[str | int] | None = None,
    after: int | None = None,
    missing: Missing = "error",
) -> Summary:
    """FoMo A_KA: mean of row `after` (0..T, default T) over the adaptation columns (default: all that a task trains).

    `parts` holds the same of row 0 (`initial`), `final`, their `difference` (positive: better) and `ratio`.
    """
    row = row_after(matrix, after)
    definition = "mean score on the trained columns, whether trained yet or not"
    return _group(matrix, _named(matrix, columns, matrix.trained), row, definition, NO_COLUMN, missing)


def zero_shot_retention(
    matrix: ScoreMatrix,
    *,
    columns: Sequence[str | int] | None = None,
    after: int | None = None,
    missing: Missing = "error",
) -> Summary:
    """A_ZS: mean of row `after` (0..T, default T) over the held-out columns (default: those that no task trains).

    `parts` holds A_ZS(0) as `initial`, `final`, their `difference` (positive: better) and `ratio` (final / initial;
    initial / final where lower is better, so that above 1 is better); ``None`` where row 0 was not measured.
    """
    row = row_after(matrix, after)
    definition = "mean score on the held-out columns; retention is its difference or ratio to row 0"
    reason = "no held-out columns: a task trains every column"
    return _group(matrix, _named(matrix, columns, matrix.held_out), row, definition, reason, missing)


def geometric_mean(
    matrix: ScoreMatrix,
    *,
    adaptation: Sequence[str | int] | None = None,
    held_out: Sequence[str | int] | None = None,
    after: int | None = None,
    missing: Missing = "error",
) -> Summary:
    """FoMo GM: sqrt(A_KA x A_ZS) of one row, taken on the two averages."""
    definition = "geometric mean of knowledge accumulation and zero-shot retention"
    gained = knowledge_accumulation(matrix, columns=adaptation, after=after, missing=missing)
    kept = zero_shot_retention(matrix, columns=held_out, after=after, missing=missing)
    columns = {**gained.per_column, **kept.per_column}
    parts = {"knowledge_accumulation": gained.value, "zero_shot_retention": kept.value}
    skipped = tuple(dict.fromkeys((*gained.skipped, *kept.skipped)))
    value, reason = None, gained.reason or kept.reason or mixed(matrix, list(columns))
    if reason is None and gained.value is not None and kept.value is not None:
        if gained.value * kept.value >= 0:
            value = math.sqrt(gained.value * kept.value)
        else:
            reason = "the product of the two averages is negative"
    return Summary(value, reason, columns, definition, skipped, parts)


def zero_shot_forgetting(
    matrix: ScoreMatrix, *, columns: Sequence[str | int] | None = None, missing: Missing = "error"
) -> Summary:
    """Mean over `columns` (default: all) of A[0, j] - A[T, j]. Positive is a loss, whatever the column's direction."""
    reader = Reader(matrix, missing)
    shares = {
        column: difference(reader.better(0, column), reader.better(len(matrix.tasks), column))
        for column in _named(matrix, columns, matrix.columns)
    }
    definition = "mean over columns of (score before training - score after the last task); positive: lost"
    return reader.summary(shares, definition, "the matrix has no columns")


def summarize(matrix: ScoreMatrix, *, missing: Missing = "error") -> dict[str, Summary]:
    """Every summary that needs the matrix alone, by name; those that do not apply hold their reason."""
    functions: tuple[Callable[..., Summary], ...] = (
        *(transfer, average, last),
        *(average_accuracy, backward_transfer, forward_transfer),
        *(forgetting, average_incremental_accuracy, worst_case_accuracy),
        *(knowledge_accumulation, zero_shot_retention, geometric_mean),
        *(in_domain, backward, forward),
    )
    return {function.__name__: function(matrix, missing=missing) for function in functions}
