"""Continual evaluation (De Lange et al., ICLR 2023): what happens between the ends of the tasks.

Each function takes the score matrix and, for a stream that is evaluated within tasks, ``steps`` and ``ends``: the
scores of all evaluations in order, by column, and for each task the 0-based position of its last evaluation. Without
them the evaluations are the rows of the matrix. Where lower is better, the worst score is the largest and a drop is a
rise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmcl.errors import MmclError
from mmcl.metrics._summary import Missing, Reader, Summary, mean, mixed, row_after, sign, undefined
from mmcl.metrics.matrix import ScoreMatrix

Steps = Mapping[str, Sequence[float | None]] | None


def _curves(matrix: ScoreMatrix, steps: Steps, missing: Missing) -> Reader:
    """A reader whose rows are the evaluations: those of `steps`, or the rows of the matrix."""
    if steps is None:
        return Reader(matrix, missing)
    lengths = {len(scores) for scores in steps.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise MmclError(f"steps: every column needs the same number of evaluations, got {sorted(lengths)}")
    absent = [column for column in matrix.trained if column not in steps]
    if absent:
        raise MmclError(f"steps: no scores for column {absent[0]!r}")
    (count,) = lengths
    curves = ScoreMatrix(
        [[scores[n] for scores in steps.values()] for n in range(count)],
        list(steps),
        [None] * (count - 1),
        {column: "lower" for column in steps if matrix.lower_is_better(column)},
        task_names=[f"evaluation {n}" for n in range(1, count)],
    )
    return Reader(curves, missing)


def _ends(matrix: ScoreMatrix, steps: Steps, ends: Sequence[int] | None, count: int) -> list[int]:
    """The evaluation in which each task ends."""
    if (steps is None) != (ends is None):
        raise MmclError("steps and ends belong together: give both or neither")
    if ends is None:
        return list(range(1, len(matrix.tasks) + 1))
    if len(ends) != len(matrix.tasks) or list(ends) != sorted(set(ends)):
        raise MmclError(
            f"ends: give each task's last evaluation, ascending: {len(matrix.tasks)} tasks, got {list(ends)}"
        )
    if ends and not 0 <= ends[0] <= ends[-1] < count:
        raise MmclError(f"ends: positions {list(ends)} are not within 0..{count - 1}")
    return list(ends)


def _worst_of_past(matrix: ScoreMatrix, reader: Reader, ends: list[int], k: int) -> dict[str, float | None]:
    """By column that was learned before task k and is not trained by it: its worst score since then."""
    worst: dict[str, float | None] = {}
    for column in matrix.trained:
        learned = [task for task in matrix.trained_by(column) if task <= k]
        if not learned or learned[-1] == k:
            continue
        scores = [reader.better(n, column) for n in range(ends[learned[-1] - 1] + 1, ends[k - 1] + 1)]
        present = [score for score in scores if score is not None]
        worst[column] = sign(matrix, column) * min(present) if present else None
    return worst


def minimum_accuracy(
    matrix: ScoreMatrix,
    *,
    steps: Steps = None,
    ends: Sequence[int] | None = None,
    after: int | None = None,
    missing: Missing = "error",
) -> Summary:
    """min-ACC after task k = `after` (default T): mean over past columns of the worst score since their task ended."""
    k = row_after(matrix, after, first=1)
    definition = "mean over the columns of past tasks of their worst score since their task ended"
    clash = mixed(matrix, matrix.trained)
    if clash:
        return undefined(matrix.trained, definition, clash)
    reader = _curves(matrix, steps, missing)
    positions = _ends(matrix, steps, ends, len(reader.matrix.row_names))
    return reader.summary(_worst_of_past(matrix, reader, positions, k), definition, "no task ended before this one")


def worst_case_accuracy(
    matrix: ScoreMatrix,
    *,
    steps: Steps = None,
    ends: Sequence[int] | None = None,
    after: int | None = None,
    missing: Missing = "error",
) -> Summary:
    """WC-ACC after task k = `after` (default T): acc_k / k + (1 - 1/k) min-ACC_k; with k = 1 it is acc_1.

    `parts` holds ``current`` (acc_k, the mean over the columns of task k) and ``minimum`` (min-ACC_k).
    """
    k = row_after(matrix, after, first=1)
    definition = "score of the current task / k + (1 - 1/k) x the mean worst score of past tasks since they ended"
    clash = mixed(matrix, matrix.trained)
    if clash or k == 0 or not matrix.columns_of(k):
        return undefined(matrix.trained, definition, clash or "the current task trains no column")
    reader = _curves(matrix, steps, missing)
    positions = _ends(matrix, steps, ends, len(reader.matrix.row_names))
    shares = _worst_of_past(matrix, reader, positions, k)
    now = {column: reader.cell(positions[k - 1], column) for column in matrix.columns_of(k)}
    current, minimum = mean(now.values()), mean(shares.values())
    parts = {"current": current, "minimum": minimum}
    if current is None or (k > 1 and minimum is None):
        reason = "no column belongs to a past task" if current is not None else "the current task was not measured"
        checked = reader.summary({}, definition, reason)
        return Summary(None, checked.reason, {**shares, **now}, definition, checked.skipped, parts)
    value = current if minimum is None else current / k + (1 - 1 / k) * minimum
    return reader.summary({**shares, **now}, definition, "", value=value, parts=parts)


def windowed_forgetting(
    matrix: ScoreMatrix, *, window: int, steps: Steps = None, missing: Missing = "error"
) -> Summary:
    """WF: mean over trained columns of the largest drop within `window` consecutive evaluations (0 if none)."""
    definition = f"mean over columns of the largest drop within {window} consecutive evaluations"
    return _windowed(matrix, -1.0, window, steps, definition, missing)


def windowed_plasticity(
    matrix: ScoreMatrix, *, window: int, steps: Steps = None, missing: Missing = "error"
) -> Summary:
    """WP: mean over trained columns of the largest rise within `window` consecutive evaluations (0 if none)."""
    definition = f"mean over columns of the largest rise within {window} consecutive evaluations"
    return _windowed(matrix, 1.0, window, steps, definition, missing)


def _windowed(
    matrix: ScoreMatrix, direction: float, window: int, steps: Steps, definition: str, missing: Missing
) -> Summary:
    if window < 2:
        raise MmclError(f"window={window}: a change needs at least 2 evaluations")
    reader = _curves(matrix, steps, missing)
    shares: dict[str, float | None] = {}
    for column in matrix.trained:
        scores = [reader.better(n, column) for n in range(len(reader.matrix.row_names))]
        changes = [
            direction * (later - earlier)
            for b, later in enumerate(scores)
            for earlier in scores[max(0, b - window + 1) : b]
            if later is not None and earlier is not None
        ]
        shares[column] = max(0.0, *changes) if changes else None
    return reader.summary(shares, definition, "no column was evaluated twice within the window")
