"""The tables of docs/strategies/, made from declarations and from start-ups: python tests/support/strategy_pages.py

They stand between marks; the rest of the pages is written by hand. With ``--declarations`` only what needs no start-up.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import cases
import settings
from strategy_runs import SHORT, Runs, parts

from mmcl import Strategy, plugins
from mmcl.errors import ConfigError
from mmcl.strategy import CLAIMS

DOCS = Path(__file__).resolve().parents[2] / "docs" / "strategies"
TRAINED, STARTS, REFUSED = "✓", "○", "–"


def rows() -> dict[str, settings.Setting]:
    """mmcl's own strategies with their first rows."""
    table = settings.found()
    return {n: table[n] for n in plugins.listing("strategies") if n in table and _own(n)}


def _own(name: str) -> bool:
    return plugins.class_path("strategies", name).startswith("mmcl.strategies.")


# -- from declarations -----------------------------------------------------------------------------------------------


def declarations() -> str:
    """One line for each strategy, at its defaults where it has them."""
    lines = []
    for name, setting in rows().items():
        declared = declared_by(name, setting)
        phases = sorted({s.gradients for s in declared if s.gradients is not None})
        cells = [
            f"`{name}`",
            plugins.listing("strategies")[name].replace("|", "\\|"),
            *(_union(getattr(s, what) for s in declared) for what in ("claims", "needs")),
            _list(phases),
            *(_union(getattr(s, what) for s in declared) for what in ("snapshots", "unsupported")),
        ]
        lines.append(cells)
    header = ["strategy", "what it does", "claims", "needs", "gradient phase", "snapshots kept", "not with"]
    return table(header, lines)


def declared_by(name: str, setting: settings.Setting) -> Sequence[Strategy]:
    """A strategy's parts, at its defaults or as it is tested."""
    kind = plugins.load("strategies", name)
    try:
        made: Strategy = kind()
    except TypeError:  # it has arguments without defaults
        made = next(s for s in setting.build() if type(s) is kind)
    return made.parts()


def claims() -> str:
    """Each resource that more than one strategy may want, and who claims it."""
    lines = []
    for claim in sorted(CLAIMS):
        owners = [name for name, setting in rows().items() if any(claim in s.claims for s in parts(setting))]
        lines.append([f"`{claim}`", _list(owners) or "nobody"])
    return table(["resource", "claimed by"], lines)


def _union(sets: Iterable[Iterable[str]]) -> str:
    return _list(sorted(set(itertools.chain.from_iterable(sets))))


def _list(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


# -- from start-ups ----------------------------------------------------------------------------------------------------


def kinds(runs: Runs) -> str:
    """Which modules each strategy serves, and why it refuses the others."""
    groups: dict[str, list[str]] = {}
    for case, (module, _) in cases.found().items():
        groups.setdefault(type(module()).__name__.removesuffix("Module"), []).append(case)
    lines, reasons = [], []
    for name, setting in rows().items():
        cells = [f"`{name}`"]
        for group, members in sorted(groups.items()):
            found = {case: refusal(runs, case, [name]) for case in members if case not in setting.cases}
            if len(found) < len(members):
                cells.append(TRAINED)
            elif None in found.values():
                cells.append(STARTS)
            else:
                cells.append(REFUSED)
                reasons.append(f"- `{name}`, {group}: {next(iter(found.values()))}")
        lines.append(cells)
    shown = table(["strategy", *sorted(groups)], lines)
    return "\n".join([shown, "", "Refused, as the error says it:", "", *reasons]) if reasons else shown


def pairs(runs: Runs) -> str:
    """Pairs that are refused although they claim different things."""
    found = []
    for (one, first), (other, second) in itertools.combinations(rows().items(), 2):
        case = common(first, second)
        if case is None or clash(first, second):
            continue
        reason = refusal(runs, case, [one, other])
        if reason is not None:
            found.append(f"- `{one}` and `{other}`: {reason}")
    return "\n".join(found or ["There are none."])


def common(first: settings.Setting, second: settings.Setting) -> str | None:
    """The first kind of module that both serve."""
    return next((case for case in first.cases if case in second.cases), None)


def clash(first: settings.Setting, second: settings.Setting) -> set[str]:
    """Resources that both claim."""
    one, other = ({claim for s in parts(setting) for claim in s.claims} for setting in (first, second))
    return one & other


def refusal(runs: Runs, case: str, names: Sequence[str]) -> str | None:
    """What the start-up of strategies together on a kind of module says against it."""
    built = [runs.table[name].build for name in names]
    runner = runs.runner((names[0], case, SHORT, "start"), lambda: [s for build in built for s in build()])
    try:
        runner.check()
        runner.build()
    except ConfigError as error:
        return str(error)
    return None


# -- pages -----------------------------------------------------------------------------------------------------------


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *lines))


def read(page: str, part: str) -> str:
    """What stands between a part's marks."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return text.partition(f"<!-- {part}: begin -->\n")[2].partition(f"\n<!-- {part}: end -->")[0]


def write(page: str, part: str, text: str) -> None:
    """Put it there."""
    head, begin, rest = (DOCS / page).read_text(encoding="utf-8").partition(f"<!-- {part}: begin -->\n")
    _, end, tail = rest.partition(f"\n<!-- {part}: end -->")
    assert begin and end, f"{page} has no marks for '{part}'"
    (DOCS / page).write_text(f"{head}{begin}{text}{end}{tail}", encoding="utf-8")


def main() -> None:
    """Write the tables into the pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--declarations", action="store_true", help="only what needs no start-up")
    given = parser.parse_args()
    write("index.md", "strategies", declarations())
    write("compatibility.md", "claims", claims())
    if given.declarations:
        return
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(Path(folder))
        write("compatibility.md", "kinds", kinds(runs))
        write("compatibility.md", "pairs", pairs(runs))


if __name__ == "__main__":
    main()
