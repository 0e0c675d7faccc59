"""The tables in docs/strategies/ are those that the sources give."""

from __future__ import annotations

from pathlib import Path

import pytest
import strategy_pages as pages
from strategy_runs import Runs

STALE = "run python tests/support/strategy_pages.py"


def test_declarations_are_current() -> None:
    assert pages.read("index.md", "strategies") == pages.declarations(), STALE
    assert pages.read("compatibility.md", "claims") == pages.claims(), STALE


def test_every_strategy_stands_in_the_table_of_modules() -> None:
    lines = [line for line in pages.read("compatibility.md", "kinds").splitlines() if line.startswith("| `")]
    assert [line.split("`")[1] for line in lines] == list(pages.rows()), STALE
    cells = {line.split("`")[1]: [cell.strip() for cell in line.split("|")[2:-1]] for line in lines}
    assert {cell for row in cells.values() for cell in row} <= {pages.TRAINED, *pages.MARKS}
    kinds = pages.families()
    trained = {name: [pages.trained(name, members) for members in kinds.values()] for name in cells}
    assert {name: [cell == pages.TRAINED for cell in row] for name, row in cells.items()} == trained, STALE


@pytest.mark.slow
def test_start_ups_are_as_the_page_says(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    assert pages.read("compatibility.md", "kinds") == pages.kinds(runs), STALE
    assert (pages.read("compatibility.md", "pairs"), pages.read("compatibility.md", "apart")) == pages.pairs(runs), (
        STALE
    )
