"""Every pair of strategies trains together on a module that both serve, or is refused at start-up with a reason."""

from __future__ import annotations

import shutil
from itertools import permutations

import pytest
import settings
from strategy_pages import clash, common
from strategy_runs import SHORT, Runs, joined

from mmcl.errors import ConfigError

TABLE = {name: setting for name, setting in settings.found().items() if "/" not in name}
PAIRS = [(a, b) for a, b in permutations(TABLE, 2) if common(TABLE[a], TABLE[b]) is not None]


def sample() -> list[tuple[str, str]]:
    """Pairs in which every strategy stands, where it has a partner without a clash."""
    names = list(TABLE)
    free = [pair for pair in PAIRS if not clash(*(TABLE[name] for name in pair))]
    free.sort(key=lambda pair: ((names.index(pair[1]) - names.index(pair[0])) % len(names), pair))
    chosen: list[tuple[str, str]] = []
    for pair in free:
        if not set(pair) <= {name for other in chosen for name in other}:
            chosen.append(pair)
    return chosen


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("pairs"), TABLE)


def together(runs: Runs, first: str, second: str) -> str | None:
    """Train the pair: None, or the words that refused it."""
    settings = TABLE[first], TABLE[second]
    case = common(*settings)
    assert case is not None
    builds = [setting.build for setting in settings]
    runner = runs.runner((first, case, SHORT, f"with-{second}"), lambda: joined(*builds))
    claimed = clash(*settings)
    try:
        results = runner.fit()
    except ConfigError as error:
        assert not runner.folder.path.exists(), "refused after something was written"
        assert not claimed or "both claim" in str(error), str(error)
        return str(error)
    assert not claimed, f"both claim {sorted(claimed)} and were not refused"
    values = [value for row in results["matrix"]["values"] for value in row]
    assert len(results["matrix"]["values"]) == 3 and all(abs(value) < float("inf") for value in values)
    shutil.rmtree(runner.folder.path)
    return None


@pytest.mark.parametrize(("first", "second"), sample())
def test_pairs_train_together(runs: Runs, first: str, second: str) -> None:
    together(runs, first, second)


@pytest.mark.slow
@pytest.mark.parametrize("first", TABLE)
def test_every_pair_trains_together_or_is_refused(runs: Runs, first: str) -> None:
    for _, second in (pair for pair in PAIRS if pair[0] == first):
        try:
            together(runs, first, second)
        except Exception as error:
            error.add_note(f"{first} with {second}")
            raise
