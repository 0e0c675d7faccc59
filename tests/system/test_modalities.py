"""Every module with every strategy of the core: trained, interrupted, on two processes, exported."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import cases
import pytest
import tiny
import torch
from moments import Cut, CutAt, Moment
from torch.optim import SGD

from mmcl import Strategy
from mmcl.strategies import (
    Distillation,
    ExperienceReplay,
    LwF,
    MomentumInterpolation,
    WeightConsolidation,
    WeightEnsemble,
    WeightInterpolation,
)
from mmcl.strategy import StepContext


def slow(when: bool) -> list[pytest.MarkDecorator]:
    return [pytest.mark.slow] if when else []


CASES = sorted(cases.found())
SETS = ("ensemble", "momentum", "interpolation")
UNLIKE = ("asr-wav2vec2", "causal_lm", "classes-growing", "clip", "llava", "wav2vec2")
"""One of each kind."""
THINNED = [pytest.param(case, marks=slow(case not in UNLIKE)) for case in CASES]
"""For the tests that take longest."""


def strategies(name: str, case: str) -> list[Strategy]:
    """The strategies of part of the list that go together; three sets hold all of them."""
    module = cases.found()[case][0]()
    on = module.distillable[1] if module.fresh_head else None  # the initial head has learned nothing
    if name == "ensemble":
        return [LwF(), WeightEnsemble(2), WeightConsolidation(0.01)]
    if name == "momentum":
        return [Distillation("initial", None, on=on), MomentumInterpolation(0.9)]
    return [WeightInterpolation(0.5, alphas=(0.0, 1.0)), ExperienceReplay(6)]


class Leftovers(Strategy):
    """Looks whether a step's outputs outlive it, with the garbage collector off: on a GPU it runs too late."""

    def __init__(self) -> None:
        super().__init__()
        self.last: list[weakref.ref[torch.Tensor]] = []
        self.seen = self.steps = 0

    def losses(self, context: StepContext) -> dict[str, torch.Tensor]:
        assert [r() for r in self.last] == [None] * len(self.last), "a cycle holds the outputs of the last step"
        gc.disable()
        tensors = [v for v in vars(context.outputs).values() if isinstance(v, torch.Tensor) and v.requires_grad]
        self.seen += len(tensors)
        self.last = [weakref.ref(v) for v in tensors]
        self.steps += 1
        if self.steps == 3:
            raise Cut
        return {}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cases")


@pytest.mark.parametrize(
    ("chosen", "case"),  # each module with one set is fast, and each set with a third of the modules
    [
        pytest.param(chosen, case, marks=slow(i % len(SETS) != j))
        for j, chosen in enumerate(SETS)
        for i, case in enumerate(CASES)
    ],
)
def test_strategies_serve_every_module(case: str, chosen: str, shards: Path, tmp_path: Path) -> None:
    results = cases.run(case, shards / case, tmp_path / "run", strategies(chosen, case))
    assert results["run"]["status"] == "finished"
    values = torch.tensor(results["matrix"]["values"], dtype=torch.float64)
    assert values.shape[0] == 3 and bool(values.isfinite().all())
    assert all(task["steps"] > 0 for task in results["tasks"])
    start, end = tiny.network(tmp_path / "run", "task-1"), tiny.network(tmp_path / "run", "task-2")
    assert any(not torch.equal(start[k], end[k]) for k in start if start[k].shape == end[k].shape)


@pytest.mark.parametrize("case", THINNED)
def test_an_interrupted_run_ends_with_the_same_weights(case: str, shards: Path, tmp_path: Path) -> None:
    """Cut in the first task, in the evaluation after it and in the second task, and continued from the disk."""

    def with_cut(moment: Moment | None = None) -> list[Strategy]:
        return [LwF(), MomentumInterpolation(0.9), ExperienceReplay(6), CutAt(moment)]

    whole = cases.run(case, shards / case, tmp_path / "whole", with_cut())
    cut = tmp_path / "cut"
    moments: list[Moment] = [("fit", 0, 3), ("test", 0, 0), ("fit", 1, 2)]
    for moment in moments:
        with pytest.raises(Cut):
            cases.run(case, shards / case, cut, with_cut(moment))
    again = cases.run(case, shards / case, cut, with_cut())
    assert again["matrix"] == whole["matrix"]
    for name in ("last", "task-1", "task-2"):
        a, b = tiny.network(tmp_path / "whole", name), tiny.network(cut, name)
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("case", THINNED)
def test_mixed_precision_trains_every_module(case: str, shards: Path, tmp_path: Path) -> None:
    results = cases.run(case, shards / case, tmp_path / "run", precision="bf16-mixed")
    assert bool(torch.tensor(results["matrix"]["values"], dtype=torch.float64).isfinite().all())
    trained = tiny.network(tmp_path / "run", "task-2")
    assert all(value.dtype != torch.bfloat16 for value in trained.values())
    start = tiny.network(tmp_path / "run", "task-1")
    assert any(not torch.equal(start[k], trained[k]) for k in start if start[k].shape == trained[k].shape)


@pytest.mark.parametrize("case", ["causal_lm", "asr-whisper", "asr-wav2vec2", "smolvlm"])
def test_accumulated_batches_weigh_by_their_targets(case: str, shards: Path, tmp_path: Path) -> None:
    """Rows hold different numbers of targets; cut into four batches, a step's gradient stays what it was."""

    def trained(parts: int) -> dict[str, torch.Tensor]:
        run = tmp_path / str(parts)
        cases.run(case, shards / case, run, optimizer=partial(SGD, lr=1e-2), accumulate_grad_batches=parts)
        return tiny.network(run, "task-1")

    whole, cut = trained(1), trained(4)
    for name, value in whole.items():
        torch.testing.assert_close(cut[name], value, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("case", CASES)
def test_a_step_leaves_nothing_to_the_garbage_collector(case: str, shards: Path, tmp_path: Path) -> None:
    leftovers = Leftovers()
    try:
        with pytest.raises(Cut):
            cases.run(case, shards / case, tmp_path / "run", [leftovers])
    finally:
        gc.enable()
    assert leftovers.seen


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_killed_processes_end_with_the_same_weights(case: str, shards: Path, tmp_path: Path) -> None:
    """SIGKILL at three moments."""
    assert script(case, shards / case, tmp_path / "whole").returncode == 0
    for i, (stage, count) in enumerate((("fit", 4), ("fit", 8), ("test", 2))):
        ran = script(case, shards / case, tmp_path / "cut", "--kill", stage, str(count), str(tmp_path / f"done-{i}"))
        assert ran.returncode == -9, ran.stderr
    ran = script(case, shards / case, tmp_path / "cut")
    assert ran.returncode == 0, ran.stderr
    assert tiny.results(tmp_path / "cut")["matrix"] == tiny.results(tmp_path / "whole")["matrix"]
    for name in ("task-1", "task-2"):
        a, b = tiny.network(tmp_path / "whole", name), tiny.network(tmp_path / "cut", name)
        assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_see_what_one_sees(case: str, shards: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert script(case, shards / case, one).returncode == 0
    ran = script(case, shards / case, two, "--devices", "2")
    assert ran.returncode == 0, ran.stderr
    a, b = tiny.results(one), tiny.results(two)
    assert a["matrix"]["counts"] == b["matrix"]["counts"]
    assert [t["samples"] for t in a["stream"]["tasks"]] == [t["samples"] for t in b["stream"]["tasks"]]
    first = [torch.tensor(r["matrix"]["values"][0], dtype=torch.float64) for r in (a, b)]
    torch.testing.assert_close(*first, rtol=1e-5, atol=1e-6)  # row 0: the same model on one process and on two


def script(case: str, shards: Path, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    file = Path(cases.__file__)
    command: list[Any] = [sys.executable, file, case, shards, folder, *more]
    return subprocess.run(command, env=tiny.environment(), text=True, capture_output=True, timeout=300)


def test_cases_cover_every_module() -> None:
    from mmcl import plugins

    made = {type(make()).__name__ for make, _ in cases.found().values()}
    assert made == set(plugins.listing("modules")), "add a case to tests/support/tiny_*.py"
