"""Every pair of strategies trains together on some kind of module, or is refused at start-up with a reason."""

from __future__ import annotations

import shutil
from itertools import permutations

import pytest
import settings
from pairing import Meeting, clash, decisive, meetings
from strategy_runs import SHORT, Runs, joined

from mmcl.errors import ConfigError

TABLE = settings.found()
NAMES = [name for name in TABLE if "/" not in name]


def sample() -> list[tuple[str, str]]:
    """Pairs in which every strategy stands, on a kind of module that the first rows of both serve."""
    pairs = [pair for pair in permutations(NAMES, 2) if set(TABLE[pair[0]].cases) & set(TABLE[pair[1]].cases)]
    free = [pair for pair in pairs if not clash(*(TABLE[name] for name in pair))]
    free.sort(key=lambda pair: ((NAMES.index(pair[1]) - NAMES.index(pair[0])) % len(NAMES), pair))
    chosen: list[tuple[str, str]] = []
    for pair in free:
        if not set(pair) <= {name for other in chosen for name in other}:
            chosen.append(pair)
    return chosen


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("pairs"), TABLE)


def together(runs: Runs, first: str, second: str) -> None:
    """Train the pair where it can be, or see it refused wherever they meet."""
    found = meetings(TABLE, first, second)
    if not found:
        claimed = clash(TABLE[first], TABLE[second])
        refused = train(runs, Meeting(first, second, TABLE[first].cases[0], False))
        assert refused is not None and "both claim" in refused, f"both claim {sorted(claimed)}: {refused}"
        return
    for meeting in decisive(found):
        refused = train(runs, meeting)
        if refused is None:
            return
        assert "both claim" not in refused, refused


def train(runs: Runs, meeting: Meeting) -> str | None:
    """None, or the words that refused two rows before anything was written."""
    builds = [TABLE[row].build for row in (meeting.first, meeting.second)]
    key = (meeting.first, meeting.case, SHORT, f"with-{meeting.second}")
    runner = runs.runner(key, lambda: joined(*builds))
    try:
        results = runner.fit()
    except ConfigError as error:
        assert not runner.folder.path.exists(), "refused after something was written"
        return str(error)
    values = [value for row in results["matrix"]["values"] for value in row]
    assert len(results["matrix"]["values"]) == 3 and all(abs(value) < float("inf") for value in values)
    shutil.rmtree(runner.folder.path)
    return None


@pytest.mark.parametrize(("first", "second"), sample())
def test_pairs_train_together(runs: Runs, first: str, second: str) -> None:
    together(runs, first, second)


@pytest.mark.slow
@pytest.mark.parametrize("first", NAMES)
def test_every_pair_trains_together_or_is_refused(runs: Runs, first: str) -> None:
    for second in (name for name in NAMES if name != first):
        try:
            together(runs, first, second)
        except Exception as error:
            error.add_note(f"{first} with {second}")
            raise
