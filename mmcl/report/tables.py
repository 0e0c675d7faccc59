"""The tables of the page: summaries, evaluation sets, costs, configurations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mmcl.report.formats import MINUS, MISSING, duration, memory, number, plain
from mmcl.report.groups import Group
from mmcl.report.measures import MAIN, wilson


@dataclass(frozen=True)
class Value:
    """A number in the summary table: text, spread over seeds, difference to the baseline and whether that is good."""

    text: str
    spread: str = ""
    difference: str = ""
    tone: str = ""
    title: str = ""


@dataclass(frozen=True)
class Line:
    """A row of the summary table."""

    label: str
    unit: str
    definition: str
    values: tuple[Value, ...]
    reasons: tuple[str, ...]


def summary_lines(groups: Sequence[Group], main: bool) -> list[Line]:
    """The summaries of all runs: the few that a decision needs, or all others."""
    keys = [key for key in groups[0].measures[0] if (key in MAIN) == main]
    return [_line(groups, key) for key in keys]


def _line(groups: Sequence[Group], key: str) -> Line:
    measure, baseline = groups[0].measure(key), groups[0]
    values, reasons = [], []
    for group in groups:
        stat = group.stat(key)
        skipped = max(each[key].skipped for each in group.measures)
        title = f"{skipped} cells were not measured and are left out" if skipped and stat.mean is not None else ""
        text = number(stat.mean, measure.unit) + (" †" if title else "")
        spread = "" if stat.sd is None else f"± {number(stat.sd, _plain_unit(measure.unit))}"
        difference, tone = _difference(group, baseline, key) if group is not baseline else ("", "")
        values.append(Value(text, spread, difference, tone, title or stat.reason or ""))
        if stat.reason:
            reasons.append(f"{group.label}: {stat.reason}" if len(groups) > 1 else stat.reason)
    # One reason that holds for all runs is said once.
    plain_reasons = {group.stat(key).reason for group in groups}
    if len(groups) > 1 and len(plain_reasons) == 1 and None not in plain_reasons:
        reasons = [str(plain_reasons.pop())]
    unit = {"percent": "%", "points": "points"}.get(measure.unit, "")
    return Line(measure.label, unit, measure.definition, tuple(values), tuple(reasons))


def _plain_unit(unit: str) -> str:
    return {"points": "percent", "change": "score"}.get(unit, unit)


def _difference(group: Group, baseline: Group, key: str) -> tuple[str, str]:
    measure, stat = group.measure(key), group.difference(key, baseline)
    if stat.mean is None:
        return "", ""
    if measure.unit == "seconds":
        base = baseline.stat(key).mean
        return (f"× {(base + stat.mean) / base:.2f}", "") if base else ("", "")
    text = number(stat.mean, measure.unit, signed=True)
    if stat.sd is not None:
        text += f" ± {number(stat.sd, _plain_unit(measure.unit))}"
    if not text.startswith(("+", MINUS)):
        return text, ""
    good = text.startswith("+") == (measure.better == "higher")
    return text, "good" if good else "bad"


@dataclass(frozen=True)
class EvalRow:
    """An evaluation set: what it is, and each run's first and last score with its interval."""

    name: str
    role: str
    metric: str
    direction: str
    count: str
    protocol: str
    start: Value
    ends: tuple[Value, ...]


def eval_rows(groups: Sequence[Group], layout: Iterable[tuple[str, tuple[str, ...]]]) -> list[EvalRow]:
    """One row per evaluation set, in the order of the heat maps. Row 0 is the baseline's."""
    first = groups[0].first
    rows = []
    for role, names in layout:
        for name in names:
            record = first.eval(name)
            given = (results.eval(name).count for group in groups for results in group.runs)
            counts = sorted({count for count in given if count is not None})
            rows.append(
                EvalRow(
                    name=name,
                    role=role,
                    metric=record.metric,
                    direction="lower is better ↓" if record.direction == "lower" else "higher is better",
                    count=" to ".join(map(str, dict.fromkeys((counts[0], counts[-1])))) if counts else MISSING,
                    protocol=record.protocol,
                    start=_score(groups[0], 0, name),
                    ends=tuple(_score(group, group.done, name) for group in groups),
                )
            )
    return rows


def _score(group: Group, row: int, name: str) -> Value:
    percent = name in group.first.fractions
    unit = "percent" if percent else "score"
    score = group.matrix[row, name] if row >= 0 else None
    pooled = group.correct(row, name) if percent and score is not None else None
    if not pooled:
        return Value(number(score, unit))
    low, high = wilson(*pooled)
    return Value(
        number(score, unit), f"{number(low, unit)} – {number(high, unit)}", title=f"{pooled[0]} of {pooled[1]}"
    )


@dataclass(frozen=True)
class CostRow:
    """What a run took over all its tasks; the tasks one by one in `tasks`."""

    label: str
    series: int
    train: str
    eval: str
    rate: str
    memory: str
    tasks: tuple[tuple[str, ...], ...]


def cost_rows(groups: Sequence[Group]) -> list[CostRow]:
    """Times are means over the seeds; the rate is the mean over tasks and seeds; the peak is the largest of all."""
    rows = []
    for index, group in enumerate(groups):
        costs = [cost for results in group.runs for cost in results.costs]
        rates = [cost.samples_per_second for cost in costs if cost.samples_per_second is not None]
        peaks = [cost.peak_memory_bytes for cost in costs if cost.peak_memory_bytes is not None]
        rows.append(
            CostRow(
                label=group.label,
                series=index,
                train=number(group.stat("train_seconds").mean, "seconds"),
                eval=number(group.stat("eval_seconds").mean, "seconds"),
                rate=f"{sum(rates) / len(rates):.0f}" if rates else MISSING,
                memory=memory(max(peaks, default=None)),
                tasks=tuple(
                    (
                        cost.name,
                        MISSING if cost.steps is None else str(cost.steps),
                        number(cost.final_loss, "score"),
                        MISSING if cost.train_seconds is None else duration(cost.train_seconds),
                        MISSING if cost.eval_seconds is None else duration(cost.eval_seconds),
                        MISSING if cost.samples_per_second is None else f"{cost.samples_per_second:.0f}",
                        memory(cost.peak_memory_bytes),
                    )
                    for cost in group.first.costs
                ),
            )
        )
    return rows


@dataclass(frozen=True)
class RunCard:
    """The configuration of a run: facts in order, strategies with their arguments, and the author's notes."""

    label: str
    series: int
    strategies: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...]
    facts: tuple[tuple[str, str], ...]
    commands: tuple[str, ...]
    notes: tuple[str, ...]


def run_cards(groups: Sequence[Group]) -> list[RunCard]:
    """One card per group; what differs between its seeds is listed."""
    cards = []
    for index, group in enumerate(groups):
        runs = [results.run for results in group.runs]
        first = runs[0]
        facts = {
            "seed": ", ".join(dict.fromkeys(plain(run.seed) for run in runs)),
            "status": ", ".join(dict.fromkeys(run.status for run in runs)),
            "started": first.created,
            "finished": first.finished or "",
            "device": first.device,
            "processes": plain(first.world_size) if first.world_size is not None else "",
            "precision": first.precision,
            "versions": ", ".join(f"{name} {version}" for name, version in first.versions.items()),
            "config hash": ", ".join(dict.fromkeys(run.config_hash for run in runs)),
        }
        cards.append(
            RunCard(
                label=group.label,
                series=index,
                strategies=tuple(
                    (item.name, item.class_path, tuple((key, plain(value)) for key, value in item.arguments.items()))
                    for item in group.first.strategies
                ),
                facts=tuple((key, value) for key, value in facts.items() if value),
                commands=tuple(dict.fromkeys(run.command for run in runs if run.command)),
                notes=tuple(dict.fromkeys(note for results in group.runs for note in results.notes)),
            )
        )
    return cards
