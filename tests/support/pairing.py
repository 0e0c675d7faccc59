"""Where two strategies meet: rows of both in the table, and a kind of module on which they are tried together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import cases
from settings import Setting
from strategy_runs import joined, leaves

Table = Mapping[str, Setting]


@dataclass(frozen=True)
class Meeting:
    """Two rows on a kind of module."""

    first: str
    second: str
    case: str
    shared: bool
    """Whether the table trains both there, each on its own."""


def meetings(table: Table, one: str, other: str) -> list[Meeting]:
    """Where two strategies can be tried: what both are trained on, first rows first; else all that one is trained on.

    Empty where they claim the same in all their rows.
    """
    free = [(a, b) for a in own(table, one) for b in own(table, other) if not clash(table[a], table[b])]
    shared = [Meeting(a, b, case, True) for a, b in free for case in table[a].cases if case in table[b].cases]
    if shared:
        return shared
    places = dict.fromkeys(case for a, b in free for case in (*table[a].cases, *table[b].cases))
    return [Meeting(*fitting(table, free, case), case, False) for case in places]


def decisive(found: Sequence[Meeting]) -> Sequence[Meeting]:
    """The first meeting where the table trains both; all of them where it nowhere does."""
    return found[:1] if found[0].shared else found


def fitting(table: Table, rows: Sequence[tuple[str, str]], case: str) -> tuple[str, str]:
    """Of pairs of rows the one that stands closest to a kind of module: trained there, or on its class elsewhere."""

    def near(row: str) -> int:
        return 2 * (case in table[row].cases) + any(family(other) is family(case) for other in table[row].cases)

    return max(rows, key=lambda pair: sorted((near(row) for row in pair), reverse=True))


@cache
def family(case: str) -> type:
    """Class of a kind of module."""
    return type(cases.found()[case][0]())


def own(table: Table, name: str) -> list[str]:
    """All rows of a strategy, the first one first."""
    return sorted((row for row in table if row.partition("/")[0] == name), key=lambda row: "/" in row)


def clash(first: Setting, second: Setting) -> set[str]:
    """Resources that are claimed twice where two rows are joined."""
    counts = Counter(claim for s in leaves(joined(first.build, second.build)) for claim in s.claims)
    return {claim for claim, count in counts.items() if count > 1}
