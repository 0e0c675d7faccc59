"""What holds for every strategy: each row of ``tests/support/settings_*.py`` on the kinds of module that it serves.

A run is made once and shared by the properties that look at it. A class's first row on its first kind is tested with
every change; it is only trained on one more kind, and in its other rows on their first. The slow tests do the rest.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import cases
import pytest
import settings
import torch
from lightning.pytorch.plugins import MixedPrecision
from moments import Cut, CutAt, Moment, Overflow
from settings import Setting
from strategy_ranks import RANKS, SGD, file, launch
from strategy_runs import SHORT, WHOLE, Done, Runs, apart, changed, content, covering, different, parts

from mmcl import StepContext, Strategy, Stream, Task, plugins
from mmcl.errors import ConfigError
from mmcl.outputs import Weights
from mmcl.strategy import DataPass, overrides

TABLE = settings.found()
PLAIN = ""
"""The row without a strategy, which what is compared with plain training looks at."""


def skipped(name: str, what: str) -> str | None:
    """Why a row does not have a property."""
    return TABLE[name].skips.get(what) if name else None


def rows(among: Iterable[str] = cases.found(), more: bool = False) -> list[Any]:
    """Each row with its kinds of module `among` those given.

    All but a class's first row on its first kind are slow. With `more` so are not other rows on their first kind, and
    first rows on a second one, that which the fewest rows have had so far.
    """
    found = []
    taken: Counter[str] = Counter()
    for name, setting in TABLE.items():
        able = [case for case in setting.cases if case in among]
        fast = able[:1] if more or "/" not in name else []
        if more and "/" not in name and able[1:]:
            fast.append(min(able[1:], key=taken.__getitem__))
        taken.update(fast)
        found += [pytest.param(name, case, marks=[] if case in fast else [pytest.mark.slow]) for case in able]
    return found


def sample(among: Iterable[str]) -> list[Any]:
    """Each row and plain training on its kinds of module; slow but for a few that bring every hook and claim."""
    firsts = {name: next((c for c in setting.cases if c in among), None) for name, setting in TABLE.items()}
    able = {n: TABLE[n] for n, first in firsts.items() if first and not skipped(n, "two_processes_equal_one")}
    fast = {(name, firsts[name]) for name in covering(able)}
    found = [(name, case) for name, setting in TABLE.items() for case in setting.cases if case in among]
    found += [(PLAIN, case) for case in among]
    return [pytest.param(*row, marks=[] if row in fast else [pytest.mark.slow]) for row in found]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("strategies"), TABLE)


@pytest.fixture(scope="module")
def on_two(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Where the selected rows left what they found on two processes, and the rows that failed."""
    wanted = [item for item in request.session.items if item.name.startswith("test_two_processes_equal_one")]
    selected = [(item.callspec.params["name"], item.callspec.params["case"]) for item in wanted]  # type: ignore[attr-defined]
    folder = tmp_path_factory.mktemp("ranks")
    allowed = [row for row in selected if not skipped(row[0], "two_processes_equal_one")]
    yield folder / "out", launch(allowed, folder, folder / "out")


@pytest.fixture(autouse=True)
def _skip(request: pytest.FixtureRequest) -> None:
    given = getattr(request.node, "callspec", None)
    if given is not None and "name" in given.params:
        reason = skipped(given.params["name"], request.node.originalname.removeprefix("test_"))
        if reason:
            pytest.skip(reason)


def whole(runs: Runs, name: str, case: str, like: str = "") -> Done:
    """The run that most properties look at, of a row or of another one in its place.

    Kinds of module on which a row is only trained take fewer steps.
    """
    first = case == TABLE[like or name].cases[0]
    return runs.run(name, case, WHOLE if first else SHORT)


def equal(found: Any, wanted: Any, where: str = "") -> None:
    """Bit for bit."""
    names = different(found, wanted)
    assert not names, f"{where} {names}"


def equal_but_for_rounding(ends: Sequence[Weights], states: Sequence[Any], wanted: Done) -> None:
    """The weights after each task, and in the end what the strategies keep."""
    for task, (one, other) in enumerate(zip(ends, wanted.ends, strict=True)):
        names = apart(one, other, wanted.initial)
        assert not names, f"after task {task + 1}: {names}"
    names = apart(states[-1], wanted.states[-1], wanted.states[0])
    assert not names, f"in the strategies: {names}"


def same_scores(found: torch.Tensor, plain: torch.Tensor) -> bool:
    """Of the sets that both measured."""
    return torch.equal(found[:, -plain.shape[1] :], plain)


def of(plain: Weights, weights: Weights) -> dict[str, Any]:
    """Those of the weights that plain training has too: adapters bring their own."""
    return {name: weights.get(name) for name in plain}


# -- the table -------------------------------------------------------------------------------------------------------


def test_every_strategy_has_a_row() -> None:
    rowed = {name.partition("/")[0] for name in TABLE}
    listed = set(plugins.listing("strategies"))
    assert listed <= rowed, f"add a row to tests/support/settings_*.py: {sorted(listed - rowed)}"
    assert rowed <= listed, f"rows of no strategy: {sorted(rowed - listed)}"


@pytest.mark.parametrize("name", TABLE)
def test_a_row_says_what_it_tests(name: str) -> None:
    setting = TABLE[name]
    made = list(setting.build())
    assert name.partition("/")[0] in {type(s).__name__ for s in made}
    assert setting.build()[0] is not made[0], "build makes new instances"
    known = cases.found().keys()
    assert setting.cases and set(setting.cases) <= known, f"unknown kinds of module; there are {sorted(known)}"
    assert set(setting.refuses) <= known - set(setting.cases)
    re.compile(setting.changes)
    properties = {p.removeprefix("test_") for p, f in globals().items() if p.startswith("test_") and callable(f)}
    for what, reason in setting.skips.items():
        assert what in properties, f"'{what}' is no property; there are {sorted(properties)}"
        assert len(reason.split()) > 3, f"'{what}' is skipped without a reason"


# -- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "case"), rows(more=True))
def test_trains(runs: Runs, name: str, case: str) -> None:
    """It ends with finite scores and has changed what it should, and nothing else."""
    done, setting = whole(runs, name, case), TABLE[name]
    assert done.results["run"]["status"] == "finished"
    assert done.matrix.shape[0] == 3 and bool(done.matrix.isfinite().all())
    moved: set[str] = set()
    for before, after in zip([done.initial, *done.ends], done.ends, strict=False):
        moved |= set(changed(before, after))
    outside = sorted(weight for weight in moved if not re.fullmatch(setting.changes, weight))
    assert not outside, f"weights outside '{setting.changes}' changed: {outside}"
    keeps = any(kept["parameters"] or kept["state"] for kept in done.states[-1].values())
    if setting.changes or keeps:
        assert moved or different(done.states[0], done.states[-1]), "nothing changed"


@pytest.mark.parametrize(("name", "case"), rows(more=True))
def test_leaves_a_mark(runs: Runs, name: str, case: str) -> None:
    """Training with it is not training without it."""
    done, plain = whole(runs, name, case), whole(runs, PLAIN, case, like=name)
    assert different(of(plain.last, done.last), plain.last) or not same_scores(done.matrix, plain.matrix)


@pytest.mark.parametrize(("name", "case"), rows())
def test_starts_as_the_pretrained_model(runs: Runs, name: str, case: str) -> None:
    """Bit for bit: weights and row 0; evaluation weights before the first step are the live ones."""
    done, plain = whole(runs, name, case), whole(runs, PLAIN, case, like=name)
    equal(of(plain.initial, done.initial), plain.initial)
    live = done.evaluated["live"]
    for variant, evaluated in done.evaluated.items():
        equal(evaluated, live, f"evaluation weights '{variant}'")
    if TABLE[name].same_start:
        assert same_scores(done.matrix[:1], plain.matrix[:1])


@pytest.mark.parametrize("name", [name for name, setting in TABLE.items() if setting.off is not None])
def test_off_does_nothing(runs: Runs, name: str) -> None:
    case = TABLE[name].cases[0]
    off, plain = runs.run(name, case, WHOLE, "off", TABLE[name].off), runs.run(PLAIN, case, WHOLE)
    for found, wanted in (
        (off.initial, plain.initial),
        *zip(off.ends, plain.ends, strict=True),
        (off.last, plain.last),
    ):
        equal(of(wanted, found), wanted)
    assert same_scores(off.matrix, plain.matrix)


@pytest.mark.parametrize(("name", "case"), rows())
def test_mixed_precision_stays_finite(runs: Runs, name: str, case: str) -> None:
    done = runs.run(name, case, SHORT, "bf16", precision="bf16-mixed")
    assert bool(done.matrix.isfinite().all())
    for weights in (done.last, *done.ends):
        for weight, value in weights.items():
            assert value.dtype != torch.bfloat16, f"{weight} lost its precision"
            assert not value.is_floating_point() or bool(value.isfinite().all()), weight


REFUSED = [(name, case) for name, setting in TABLE.items() for case in setting.refuses]


@pytest.mark.parametrize(("name", "case"), REFUSED)
def test_refuses(runs: Runs, name: str, case: str) -> None:
    """At start-up, in words that say why; nothing is written."""
    runner = runs.runner((name, case, SHORT, "refused"))
    with pytest.raises(ConfigError) as error:
        runner.fit()
    assert TABLE[name].refuses[case] in str(error.value)
    assert not runner.folder.path.exists()


# -- one run in other pieces ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "case"), rows())
def test_resumed_equals_uninterrupted(runs: Runs, name: str, case: str) -> None:
    """Cut in the first task, at its end, in the evaluation after it and in the second task; bit for bit."""
    done = runs.run(name, case, WHOLE)
    trained = [task["steps"] > 0 for task in done.results["tasks"]]
    moments: list[Moment | None] = [("end", 0, 0), ("test", 0, 1), None]
    if trained[0]:
        moments.insert(0, ("fit", 0, 3))
    if trained[1]:
        moments.insert(-1, ("fit", 1, 3))
    for moment in moments:
        cut = runs.runner((name, case, WHOLE, "cut"), lambda m=moment: [*TABLE[name].build(), CutAt(m)])  # type: ignore[misc]
        if moment is None:
            results = cut.fit()
        else:
            with pytest.raises(Cut):
                cut.fit()
    assert results["matrix"] == done.results["matrix"]
    for checkpoint in ("task-1", "task-2", "last"):
        found, wanted = content(cut.folder.path, checkpoint), content(done.folder, checkpoint)
        del found["strategies"]["cut_at"]
        for part in ("network", "strategies"):
            equal(found[part], wanted[part], f"{checkpoint}: {part}")


COUNTING = [row for row in rows() if any(overrides(part, "on_step_end") for part in parts(TABLE[row.values[0]]))]


@pytest.mark.parametrize(("name", "case"), COUNTING)
def test_a_skipped_step_leaves_nothing(runs: Runs, name: str, case: str) -> None:
    """A step of half precision that overflowed is saved, and what it left in memory alone is missed by nobody."""

    def run(what: str, cut: bool, batch: int = 2) -> Any:
        plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=64.0))
        build = lambda: [*TABLE[name].build(), Overflow(batch, cut)]  # noqa: E731
        return runs.runner((name, case, WHOLE, what), build, plugins=[plugin])

    whole, part = run("skipped", cut=False), run("skipped-cut", cut=True)
    results = whole.fit()
    assert [task["steps"] for task in results["tasks"]] == [WHOLE - 1] * 2
    with pytest.raises(Cut):
        part.fit()
    part = run("skipped-cut", cut=False, batch=WHOLE)
    part.fit()
    for kept in ("network", "strategies"):
        equal(content(part.folder.path)[kept], content(whole.folder.path)[kept], kept)


@pytest.mark.parametrize(("name", "case"), rows())
def test_state_survives(runs: Runs, name: str, case: str) -> None:
    """Through a file without pickled objects into new instances, which measure what the run measured last."""
    done = runs.run(name, case, WHOLE)
    again = runs.runner((name, case, WHOLE, ""))
    cells = again.test("last", variants=False)[""]
    for strategy in again.composition.strategies:
        buffer = io.BytesIO()
        torch.save(strategy.export_state(), buffer)
        buffer.seek(0)
        strategy.import_state(torch.load(buffer, weights_only=True))
    if any(s.adapts_at_test for s in again.composition.strategies):
        return  # measuring has gone on with it
    found = {s.name: {"parameters": s.state_dict(), "state": s.export_state()} for s in again.composition.strategies}
    equal(found, done.states[-1])
    assert [cell.result.value for cell in cells] == done.matrix[-1].tolist()


@pytest.mark.parametrize(("name", "case"), rows(among=cases.ROWS_SUM))
def test_accumulation_equals_the_large_batch(runs: Runs, name: str, case: str) -> None:
    """Where the module's own loss allows it; who does not support it says so at start-up."""
    if any("accumulation" in s.unsupported for s in parts(TABLE[name])):
        with pytest.raises(ConfigError, match="does not support accumulation"):
            runs.runner((name, case, SHORT, "parts"), accumulate_grad_batches=2).fit()
        return
    one = runs.run(name, case, SHORT, "sgd", optimizer=SGD)
    two = runs.run(name, case, SHORT, "parts", optimizer=SGD, accumulate_grad_batches=2)
    equal_but_for_rounding(two.ends, two.states, one)


@pytest.mark.parametrize(("name", "case"), sample(cases.ROWS_ALONE))
def test_two_processes_equal_one(runs: Runs, on_two: Any, name: str, case: str) -> None:
    """The ranks agree bit for bit, and with a single process but for rounding."""
    folder, failed = on_two
    assert (name, case) not in failed, failed[name, case]
    first, *others = (torch.load(file(folder, (name, case), rank), weights_only=True) for rank in range(RANKS))
    for other in others:
        equal(other["ends"], first["ends"], "ranks hold different weights")
        equal(other["states"], first["states"], "ranks hold different state")
    one = runs.run(name, case, SHORT, "sgd", optimizer=SGD)
    assert first["matrix"]["counts"] == one.results["matrix"]["counts"]
    equal_but_for_rounding(first["ends"], first["states"], one)


# -- the tester itself ------------------------------------------------------------------------------------------------


class Touches(Strategy):
    """Multiplies the weights at a moment, by 1.5 to the power of how often it has."""

    writes = frozenset({"on_task_start", "on_task_end"})

    def __init__(self, moment: str, declared: bool = True) -> None:
        super().__init__()
        self.moment = moment
        self.times = 0
        if declared:
            del self.times
            self.add_state("times", 0)

    def _touch(self, moment: str) -> None:
        if moment == self.moment:
            self.times += 1
            self.load({k: v * 1.5**self.times for k, v in self.weights(copy=True).items() if v.is_floating_point()})

    def setup(self, stream: Stream) -> None:
        self._touch("setup")

    def on_task_end(self, task: Task, data: DataPass) -> None:
        self._touch("end")

    def eval_weights(self, variant: str = "") -> AbstractContextManager[None]:
        doubled = {k: 2 * v for k, v in self.weights(copy=True).items() if v.is_floating_point()}
        return self.swap(doubled) if self.moment == "evaluation" else nullcontext()


class Halves(Strategy):
    """A penalty that a process takes for its own rows alone: of the sum over the batch."""

    def losses(self, context: StepContext) -> dict[str, torch.Tensor]:
        assert context.outputs.logits is not None
        return {"size": context.outputs.logits.square().sum() / 100}


class Idle(Strategy):
    """Does nothing at all."""


WRONG = {
    "test_trains": Setting(lambda: [Touches("end")], ("classes-growing",), changes="head.*"),
    "test_leaves_a_mark": Setting(lambda: [Idle()], ("classes-growing",)),
    "test_starts_as_the_pretrained_model": Setting(lambda: [Touches("setup")], ("classes-growing",)),
    "test_starts_as_the_pretrained_model/2": Setting(lambda: [Touches("evaluation")], ("classes-growing",)),
    "test_off_does_nothing": Setting(tuple, ("classes-growing",), off=lambda: [Touches("end")]),
    "test_resumed_equals_uninterrupted": Setting(lambda: [Touches("end", declared=False)], ("classes-growing",)),
    "test_accumulation_equals_the_large_batch": Setting(lambda: [Halves()], ("classes-growing",)),
}
"""Property -> a row that lacks it."""


@pytest.mark.parametrize("wrong", WRONG)
def test_the_tester_finds_what_is_wrong(runs: Runs, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    monkeypatch.setitem(TABLE, wrong, WRONG[wrong])
    arguments = {"runs": runs, "name": wrong}
    if wrong != "test_off_does_nothing":
        arguments["case"] = WRONG[wrong].cases[0]
    with pytest.raises(AssertionError):
        globals()[wrong.partition("/")[0]](**arguments)
