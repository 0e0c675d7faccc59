"""The tables of docs/strategies/, made from declarations and from start-ups: python tests/support/strategy_pages.py

They stand between marks; the rest of the pages is written by hand. With ``--declarations`` only what needs no start-up.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import re
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import cases
import pairing
import settings
from strategy_runs import SHORT, WHOLE, Runs, joined, leaves

from mmcl import Strategy, plugins
from mmcl.errors import ConfigError
from mmcl.metrics.probes import build
from mmcl.strategy import CLAIMS, overrides

DOCS = Path(__file__).resolve().parents[2] / "docs" / "strategies"
TRAINED, STARTS, REFUSED, OPEN = "✓", "○", "–", "?"
MARKS = {STARTS: "", REFUSED: "Refused, as the error says it", OPEN: "Open; the error in the tests says"}
"""What a start-up can tell, with the words above the errors."""
NAMES_STREAM = re.compile(r"\b(stream|task|evaluation set) '")


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
        owners = [name for name, setting in rows().items() if claim in claimed(name, setting)]
        lines.append([f"`{claim}`", _list(owners) or "nobody"])
    return table(["resource", "claimed by"], lines)


def claimed(name: str, setting: settings.Setting) -> set[str]:
    """What a strategy claims itself, whatever stands beside it in the tests."""
    return {claim for strategy in declared_by(name, setting) for claim in strategy.claims}


def _union(sets: Iterable[Iterable[str]]) -> str:
    return _list(sorted(set(itertools.chain.from_iterable(sets))))


def _list(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


# -- from start-ups ----------------------------------------------------------------------------------------------------


@cache
def families() -> dict[str, list[str]]:
    """Kind of module -> its cases."""
    found: dict[str, list[str]] = {}
    for case, (module, _) in cases.found().items():
        found.setdefault(type(module()).__name__.removesuffix("Module"), []).append(case)
    return dict(sorted(found.items()))


def tested(name: str) -> dict[str, settings.Setting]:
    """All rows of a strategy, the first one first."""
    return {row: settings.found()[row] for row in pairing.own(settings.found(), name)}


def trained(name: str, members: Iterable[str]) -> bool:
    """Whether some row of a strategy trains on one of these cases."""
    return any(case in setting.cases for setting in tested(name).values() for case in members)


def kinds(runs: Runs) -> str:
    """Which modules each strategy serves, and why it refuses the others."""
    lines = []
    reasons: dict[str, list[str]] = {mark: [] for mark in MARKS}
    for name in rows():
        cells = [f"`{name}`"]
        for kind, members in families().items():
            if trained(name, members):
                cells.append(TRAINED)
                continue
            mark, reason = verdict(runs, tested(name), f"{kind}Module", members)
            cells.append(mark)
            reasons[mark].append(f"- `{name}`, {kind}: {reason}")
        lines.append(cells)
    blocks = [table(["strategy", *families()], lines)]
    for mark, words in MARKS.items():
        if words and reasons[mark]:
            blocks += [f"{words}:", "\n".join(reasons[mark])]
    return "\n\n".join(blocks)


def verdict(runs: Runs, rows: Mapping[str, settings.Setting], kind: str, members: Sequence[str]) -> tuple[str, str]:
    """How the start-ups of a strategy's rows on a kind of module end, with the reason where all are refused.

    An error that names the module's class is about the module. Any other one may be about the tests' stream, network or
    arguments. Where it names the stream, those on which the strategy trains elsewhere are tried: what can start on one
    is served, and a strategy that reads scores is refused by what can measure none of them.
    """
    found = {}
    for row, case in itertools.product(rows, members):
        reason = refusal(runs, case, [row])
        if reason is None:
            return STARTS, ""
        found[row, case] = reason
    doubtful = {start: reason for start, reason in found.items() if kind not in reason}
    if not doubtful:
        return REFUSED, next(iter(found.values()))
    of_stream = [start for start, reason in doubtful.items() if NAMES_STREAM.search(reason)]
    elsewhere = [(row, case, other) for row, case in of_stream for other in rows[row].cases]
    if any(refusal(runs, case, [row], other) is None for row, case, other in elsewhere):
        return STARTS, ""
    if len(of_stream) == len(doubtful) and all(reads_scores(setting) for setting in rows.values()):
        unmeasured = [probeless(runs, case, other) for _, case, other in elsewhere]
        if all(unmeasured):
            return REFUSED, str(unmeasured[0])
    return OPEN, next(iter(doubtful.values()))


def reads_scores(setting: settings.Setting) -> bool:
    """Whether a part of a row takes what evaluations measure."""
    return any(overrides(part, "on_scores") for part in leaves(setting.build()))


def probeless(runs: Runs, case: str, other: str) -> str | None:
    """What is said where a module measures nothing of another case's stream; None where it measures a set."""
    module = cases.found()[case][0]()
    errors = []
    for evalset in runs.stream(other, WHOLE).evals:
        try:
            build(evalset, module)
        except ConfigError as error:
            errors.append(str(error))
        else:
            return None
    return errors[0]


def pairs(runs: Runs) -> tuple[str, str]:
    """Pairs that claim different things and are refused: for what both do, and as no module serves both."""
    refused, apart = [], []
    for one, other in itertools.combinations(rows(), 2):
        meetings = pairing.meetings(runs.table, one, other)
        if not meetings:
            continue
        reasons = [(m, refusal(runs, m.case, [m.first, m.second])) for m in pairing.decisive(meetings)]
        if any(reason is None for _, reason in reasons):
            continue
        of_both = [r for m, r in reasons if m.shared or all(serves(runs, m.case, row) for row in (m.first, m.second))]
        if of_both:
            refused.append(f"- `{one}` and `{other}`: {of_both[0]}")
        else:
            apart.append((one, other))
    return "\n".join(refused or ["There are none."]), grouped(apart)


@cache
def serves(runs: Runs, case: str, row: str) -> bool:
    """Whether a row alone starts on a kind of module."""
    return refusal(runs, case, [row]) is None


def grouped(pairs: Iterable[tuple[str, str]]) -> str:
    """In few lines: the one with most partners names them all."""
    partners: dict[str, list[str]] = {}
    for one, other in pairs:
        partners.setdefault(one, []).append(other)
        partners.setdefault(other, []).append(one)
    lines = []
    while partners:
        one = max(sorted(partners), key=lambda name: len(partners[name]))
        lines.append(f"- `{one}` with {_list(partners[one])}")
        for other in partners.pop(one):
            partners[other].remove(one)
        partners = {name: others for name, others in partners.items() if others}
    return "\n".join(lines or ["There are none."])


def refusal(runs: Runs, case: str, names: Sequence[str], of: str = "") -> str | None:
    """What the start-up of strategies together on a kind of module, or with another one's stream, says against it."""
    builds = [runs.table[name].build for name in names]
    runner = runs.runner((names[0], case, SHORT, "start"), lambda: joined(*builds), of)
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
        for part, text in zip(("pairs", "apart"), pairs(runs), strict=True):
            write("compatibility.md", part, text)


if __name__ == "__main__":
    main()
