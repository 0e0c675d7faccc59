"""The verdict in a sentence or two, made from the numbers."""

from __future__ import annotations

from collections.abc import Sequence

from mmcl.report.formats import MINUS, number
from mmcl.report.groups import Group
from mmcl.report.results import Results

ACCURACIES = ("accuracy", "acc", "acc1", "top1")


def metric_name(results: Results, columns: Sequence[str]) -> str:
    """What the scores of these columns are called in a sentence."""
    metrics = {results.eval(name).metric for name in columns}
    if len(metrics) != 1:
        return "score"
    (metric,) = metrics
    return "accuracy" if metric.lower() in ACCURACIES else metric or "score"


def headline(groups: Sequence[Group]) -> str:
    """What the runs kept of their held-out scores: the baseline first, then the others (the best one, if many).

    Without held-out columns it is what they forgot of what they had learned.
    """
    baseline, others = groups[0], list(groups[1:])
    kept = baseline.stat("retention_difference").mean is not None
    if len(others) > 3:
        key = "retention_difference" if kept else "backward_transfer"
        best = max(others, key=lambda group: _or(group.stat(key).mean, float("-inf")))
        others = [best]
    first = _kept(baseline, whole=True) if kept else _learned(baseline)
    rest = [_kept(group, whole=False) if kept else _learned(group) for group in others]
    if len(groups) > 4:
        rest = [f"the best of the other {len(groups) - 1}, {rest[0]}"]
    sizes = {len(group.runs) for group in (baseline, *others)}
    seeds = f"; means of {sizes.pop()} seeds" if len(sizes) == 1 and 1 not in sizes else ""
    return "; ".join([first, *rest]) + f"{seeds}."


def learned_line(groups: Sequence[Group]) -> str | None:
    """What the runs score on the columns of their tasks in the end, or None where that is undefined."""
    baseline = groups[0]
    first = baseline.stat("last").mean
    if first is None:
        return None
    name, unit = metric_name(baseline.first, baseline.first.matrix.trained), baseline.measure("last").unit
    verb = "stands" if any(group.unfinished for group in groups) else "ends"
    percent = " %" if unit == "percent" else ""
    text = f"On the columns of all tasks {baseline.label} {verb} at {number(first, unit)}{percent} {name}"
    ends = []
    for group in groups[1:4] if len(groups) <= 4 else []:
        value = group.stat("last").mean
        if value is not None:
            share = f" ({100 * value / first:.0f} % of that)" if unit == "percent" and first else ""
            ends.append(f"{group.label} at {number(value, unit)}{share}")
    return ", ".join([text, *ends]) + "."


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _kept(group: Group, *, whole: bool) -> str:
    measure = group.measure("retention_difference")
    change = group.stat("retention_difference").mean
    if change is None:
        return f"{_who(group)} has no held-out scores yet"
    start, end = (group.stat(f"retention_{part}").mean for part in ("initial", "final"))
    unit = group.measure("retention_final").unit
    what = f"held-out {metric_name(group.first, group.first.held_out)}"
    size = number(abs(change), "percent" if unit == "percent" else "score")
    span = f"({number(start, unit)} → {number(end, unit)})"
    if not size.strip("0."):
        return f"{_who(group)} kept its {what} {span}" if whole else f"{_who(group)} lost none {span}"
    if measure.unit == "points":
        verb = "lost" if change < 0 else "gained"
        return (
            f"{_who(group)} {verb} {size} points of {what} {span}" if whole else f"{_who(group)} {verb} {size} {span}"
        )
    verb = "worsened" if change < 0 else "improved"
    return f"{_who(group)} {verb} its {what} by {size} {span}" if whole else f"{_who(group)} {verb} it by {size} {span}"


def _learned(group: Group) -> str:
    measure, change = group.measure("backward_transfer"), group.stat("backward_transfer").mean
    end = group.stat("last").mean
    if change is None or end is None:
        return f"{_who(group)}: {measure.reason or 'nothing to compare yet'}"
    text = number(change, measure.unit)
    lost = "forgot" if text.startswith(MINUS) else "improved by"
    size = text.lstrip(f"{MINUS}+")
    points = " points" if measure.unit == "points" else ""
    final = number(end, group.measure("last").unit)
    return f"{_who(group)} {lost} {size}{points} of what earlier tasks had learned (final mean {final})"


def _who(group: Group) -> str:
    if not group.unfinished:
        return group.label
    return f"{group.label} (unfinished, {max(group.done, 0)} of {len(group.first.tasks)} tasks)"
