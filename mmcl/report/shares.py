"""What strategies shared out in each task, such as the prompts that samples selected, as tables with colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmcl.report.formats import MISSING, number
from mmcl.report.groups import Group
from mmcl.report.heatmap import STRONGEST, HeatCell, HeatColumn, HeatMap


@dataclass(frozen=True)
class Shares:
    """A strategy's table, a row for each task; of several seeds the first one's."""

    strategy: str
    map: HeatMap


def share_maps(groups: Sequence[Group]) -> list[Shares]:
    """Of every run and strategy that shared something out, in the order of the page."""
    found = []
    for index, group in enumerate(groups):
        costs = group.first.costs
        for strategy in dict.fromkeys(name for cost in costs for name in cost.shares):
            rows = [(cost.name, cost.shares.get(strategy, {})) for cost in costs]
            found.append(Shares(strategy, _map(group, index, strategy, rows)))
    return found


def _map(group: Group, index: int, strategy: str, rows: Sequence[tuple[str, Mapping[str, float]]]) -> HeatMap:
    names = list(dict.fromkeys(name for _, parts in rows for name in parts))
    most = max((part for _, parts in rows for part in parts.values()), default=0.0) or 1.0
    cells = tuple((task, tuple(_cell(task, name, parts.get(name), most) for name in names)) for task, parts in rows)
    columns = tuple(HeatColumn(name, "%", first=name == names[0]) for name in names)
    return HeatMap(group.label, index, ((strategy, len(names)),), columns, cells, group.unfinished)


def _cell(task: str, name: str, part: float | None, most: float) -> HeatCell:
    if part is None:
        return HeatCell(MISSING, f"{name}, {task}: not there", "missing", 0)
    strength = round(STRONGEST * part / most)
    return HeatCell(
        number(part, "percent"), f"{name}, {task}: {100 * part:.2f} %", "gain" if strength else "none", strength
    )
