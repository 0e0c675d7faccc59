"""The numbers of a run that reports show, each with its unit, direction and definition."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from mmcl.metrics.matrix import ScoreMatrix
from mmcl.metrics.summaries import (
    forgetting,
    geometric_mean,
    knowledge_accumulation,
    summarize,
    zero_shot_retention,
)
from mmcl.report.results import Results

Unit = Literal["percent", "points", "score", "change", "ratio", "seconds"]

Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution

LABELS = {
    "retention_initial": "Held out, before training",
    "retention_final": "Held out, at the end",
    "retention_difference": "Held out, change",
    "retention_ratio": "Held out, ratio",
    "last": "Learned (MTIL Last)",
    "transfer": "Transfer (MTIL)",
    "average": "Average (MTIL)",
    "forgetting": "Forgetting",
    "backward_transfer": "Backward transfer",
    "train_seconds": "Training time",
    "eval_seconds": "Evaluation time",
    "average_accuracy": "Average accuracy (GEM)",
    "forward_transfer": "Forward transfer (GEM)",
    "average_incremental_accuracy": "Average incremental accuracy",
    "worst_case_accuracy": "Worst-case accuracy",
    "knowledge_accumulation": "Knowledge accumulation (FoMo)",
    "zero_shot_retention": "Zero-shot retention (FoMo)",
    "geometric_mean": "Geometric mean (FoMo)",
    "in_domain": "In-domain (TiC)",
    "backward": "Backward (TiC)",
    "forward": "Forward (TiC)",
}
MAIN = tuple(LABELS)[: tuple(LABELS).index("average_accuracy")]
DIFFERENCES = {"retention_difference", "forgetting", "backward_transfer", "forward_transfer"}
LOWER_IS_BETTER = {"forgetting", "train_seconds", "eval_seconds"}


@dataclass(frozen=True)
class Measure:
    """A number, or the reason why there is none.

    Attributes:
        key: short name, as in ``comparison.csv``.
        label: what tables call it.
        value: in the unit of the scores (fractions where `unit` is percent or points), or None.
        reason: why `value` is None.
        unit: how it is shown; percent and points are shown times 100.
        better: which way is better, or None where neither is.
        definition: the formula in words.
        skipped: number of unmeasured cells that were left out.
    """

    key: str
    label: str
    value: float | None
    reason: str | None
    unit: Unit
    better: Literal["higher", "lower"] | None
    definition: str
    skipped: int = 0


def core_matrix(results: Results) -> ScoreMatrix:
    """The matrix without columns that are neither trained by a task nor held out for retention."""
    matrix = results.matrix
    names = [name for name in matrix.columns if name in matrix.trained or name in results.held_out]
    picked = [matrix.index(name) for name in names]
    return ScoreMatrix(
        [[row[index] for index in picked] for row in matrix.values],
        names,
        matrix.tasks,
        [matrix.directions[index] for index in picked],
        [matrix.counts[index] for index in picked],
        matrix.task_names,
    )


def clash(results: Results, columns: Sequence[str]) -> str | None:
    """Why a mean of these columns' scores would say nothing, or None where it says something."""
    if not columns:
        return "there is no such column"
    directions = {results.eval(name).direction for name in columns}
    if len(directions) > 1:
        return "the columns mix directions"
    shares = [name in results.fractions for name in columns]
    if any(shares) and not all(shares):
        return "the columns mix units"
    return None


def mean_score(results: Results, row: int, columns: Sequence[str]) -> float | None:
    """Mean of one row over columns of one unit and direction; None where a cell is missing or the units differ."""
    scores = [results.matrix[row, name] for name in columns]
    if clash(results, columns) or any(score is None for score in scores):
        return None
    return math.fsum(score for score in scores if score is not None) / len(scores)


def measures(results: Results) -> dict[str, Measure]:
    """All measures of a run by key, those of `MAIN` first. An undefined one holds its reason."""
    found = {measure.key: measure for measure in (*_retention(results), *_summaries(results), *_times(results))}
    return {key: found[key] for key in LABELS if key in found} | found


def _retention(results: Results) -> Iterable[Measure]:
    row = max(results.done, 0)
    summary = zero_shot_retention(core_matrix(results), columns=results.held_out, after=row, missing="skip")
    reason = summary.reason or clash(results, results.held_out)
    end = "the last task" if not results.unfinished else f"task {row}"
    definitions = {
        "initial": "mean score on the held-out columns (no task trains them) before any training",
        "final": f"the same after {end}",
        "difference": "final - initial; the sign is turned where lower is better, so that positive is better",
        "ratio": "final / initial (initial / final where lower is better); above 1 is better",
    }
    for part, definition in definitions.items():
        key = f"retention_{part}"
        why = reason or ("no task is measured yet" if row == 0 and part != "initial" else None)
        value = None if why else summary.parts.get(part)
        if value is None:
            why = why or "row 0 (before training) was not measured"
        yield Measure(
            key=key,
            label=LABELS[key],
            value=value,
            reason=why,
            unit="ratio" if part == "ratio" else _unit(results, results.held_out, key),
            better="higher" if part in ("difference", "ratio") else _better(results, results.held_out),
            definition=definition,
            skipped=len(summary.skipped),
        )


def _summaries(results: Results) -> Iterable[Measure]:
    """Every summary of the matrix. An unfinished run has those that one row defines, the others wait."""
    matrix = core_matrix(results)
    row = max(results.done, 0)
    found = summarize(matrix, missing="skip")
    if results.unfinished:
        found["knowledge_accumulation"] = knowledge_accumulation(matrix, after=row, missing="skip")
        found["zero_shot_retention"] = zero_shot_retention(matrix, after=row, missing="skip")
        found["last"] = found["knowledge_accumulation"]
        if row >= 1:
            found["forgetting"] = forgetting(matrix, after=row, missing="skip")
    if not matrix.trained:  # as in FoMo-in-Flux, whose tasks have parts of all columns of one group
        whole, taught, held = results.matrix, results.adapted, results.held_out
        found["knowledge_accumulation"] = knowledge_accumulation(whole, columns=taught, after=row, missing="skip")
        found["geometric_mean"] = geometric_mean(whole, adaptation=taught, held_out=held, after=row, missing="skip")
    early = {"knowledge_accumulation", "zero_shot_retention", "last", *(["forgetting"] if row else [])}
    for key, summary in found.items():
        columns = _columns(results, key)
        wait = results.unfinished and key not in early
        reason = "the run is unfinished" if wait else summary.reason or clash(results, columns)
        definition = summary.definition
        yield Measure(
            key=key,
            label=LABELS.get(key, key.replace("_", " ").capitalize()),
            value=None if reason else summary.value,
            reason=reason,
            unit=_unit(results, columns, key),
            better=_better(results, columns, key),
            definition=f"{definition} (so far: after task {row})" if results.unfinished and not wait else definition,
            skipped=len(summary.skipped),
        )


def _times(results: Results) -> Iterable[Measure]:
    for key, what in (("train_seconds", "training"), ("eval_seconds", "evaluation")):
        seconds = [getattr(cost, key) for cost in results.costs]
        known = bool(seconds) and None not in seconds
        yield Measure(
            key=key,
            label=LABELS[key],
            value=math.fsum(seconds) if known else None,
            reason=None if known else "no time was recorded",
            unit="seconds",
            better="lower",
            definition=f"wall-clock time of {what}, summed over the tasks done",
        )


def _columns(results: Results, key: str) -> tuple[str, ...]:
    if key == "zero_shot_retention":
        return results.held_out
    if key == "geometric_mean":
        return results.adapted + results.held_out
    return results.adapted if key == "knowledge_accumulation" else results.matrix.trained


def _unit(results: Results, columns: Sequence[str], key: str) -> Unit:
    percent = bool(columns) and all(name in results.fractions for name in columns)
    if key in DIFFERENCES:
        return "points" if percent else "change"
    return "percent" if percent else "score"


def _better(results: Results, columns: Sequence[str], key: str = "") -> Literal["higher", "lower"]:
    if key in LOWER_IS_BETTER:
        return "lower"
    lower = bool(columns) and all(results.eval(name).direction == "lower" for name in columns)
    return "lower" if lower and key not in DIFFERENCES else "higher"


def wilson(correct: int, count: int) -> tuple[float, float]:
    """95 % Wilson score interval of a proportion, as two fractions.

    >>> [round(bound, 4) for bound in wilson(5, 10)]
    [0.2366, 0.7634]
    """
    share = correct / count
    scale = 1.0 + Z95**2 / count
    centre = (share + Z95**2 / (2 * count)) / scale
    half = Z95 / scale * math.sqrt(share * (1.0 - share) / count + Z95**2 / (4 * count**2))
    return max(0.0, centre - half), min(1.0, centre + half)
