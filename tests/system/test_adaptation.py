"""Adaptation in `mmcl test`: what it may touch, what stays, resets, the unadapted row beside it, two processes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import adapt
import cases
import pytest
import tiny
import torch

from mmcl import EvalSet, StepContext, Strategy, Stream
from mmcl.errors import ConfigError
from mmcl.evaluate import Cell
from mmcl.functional import softmax_entropy
from mmcl.outputs import Batch, Forward, Outputs
from mmcl.strategies import TENT
from mmcl.test_time import restored

CASES = ("classes", "classes-growing")
"""Batch norms and layer norms."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards and a finished run of each case."""
    folder = tmp_path_factory.mktemp("adaptation")
    for case in CASES:
        cases.run(case, folder / "shards" / case, folder / case)
    return folder


Test = Callable[..., tuple[dict[str, list[Cell]], Any]]


@pytest.fixture
def run(place: Path) -> Test:
    def call(case: str, strategies: Sequence[Strategy], **more: Any) -> tuple[dict[str, list[Cell]], Any]:
        made = adapt.runner(case, place / "shards" / case, place / case, strategies, **more)
        return made.test("last"), made

    return call


def values(row: Sequence[Cell]) -> list[float]:
    return [cell.result.value for cell in row]


def metrics(row: Sequence[Cell]) -> Mapping[str, Mapping[str, float]]:
    return {cell.evalset: cell.result.metrics for cell in row}


@pytest.mark.parametrize("case", CASES)
def test_every_adapter_adapts_and_leaves_the_trained_weights(case: str, run: Test, place: Path) -> None:
    files = {p: p.stat().st_mtime_ns for p in (place / case).rglob("*") if p.is_file()}
    given = adapt.adapters(case == "classes")
    cells, made = run(case, given)
    first, *others = [s.name for s in given]
    assert list(cells) == ["", "source", *others] and first not in cells
    assert values(cells["source"]) == tiny.results(place / case)["matrix"]["values"][-1]
    entropies = [[cell.result.metrics["entropy"] for cell in row] for row in cells.values()]
    assert len({tuple(row) for row in entropies}) == len(entropies)  # each did something of its own
    saved, live = tiny.network(place / case), made.module.network.state_dict()
    assert saved.keys() == live.keys() and all(torch.equal(saved[name], live[name]) for name in saved)
    assert all(p.requires_grad and p.grad is None for p in made.module.network.parameters())
    assert {p: p.stat().st_mtime_ns for p in (place / case).rglob("*") if p.is_file()} == files


def test_training_with_adapters_in_the_list_is_training_without(place: Path, tmp_path: Path) -> None:
    """Neither the steps nor the rows of the score matrix adapt."""
    cases.run("classes", place / "shards" / "classes", tmp_path / "run", adapt.adapters())
    assert tiny.results(tmp_path / "run")["matrix"] == tiny.results(place / "classes")["matrix"]
    for name in ("task-1", "task-2"):
        one, other = tiny.network(place / "classes", name), tiny.network(tmp_path / "run", name)
        assert all(torch.equal(one[k], other[k]) for k in one)


def test_each_adapter_begins_from_the_trained_weights(run: Test) -> None:
    """So its row does not depend on which others there are."""
    together, _ = run("classes", adapt.adapters()[1:3])
    alone, _ = run("classes", adapt.adapters()[2:3])
    assert metrics(alone[""]) == metrics(together["cotta"])


def only(stream: Stream, *names: str) -> Stream:
    """The stream with some of its evaluation sets, in this order."""
    found = {e.name: e for e in stream.evals}
    tasks = [replace(task, evaluates=None) for task in stream.tasks]
    return Stream(stream.name, tasks, [found[name] for name in names])


@pytest.mark.parametrize(("reset", "equal"), [("never", False), ("set", True)])
def test_sets_are_measured_in_order_and_carry_on(run: Test, place: Path, reset: Any, equal: bool) -> None:
    stream = cases.found()["classes"][1](place / "shards" / "classes")

    def of(*names: str) -> Mapping[str, Mapping[str, float]]:
        cells, _ = run("classes", [TENT(lr=0.02, reset=reset)], stream=only(stream, *names))
        return metrics(cells[""])

    alone, after = of("held"), of("set-0", "set-1", "held")
    assert (after["held"] == alone["held"]) == equal


def test_one_set_and_its_twin_over_one_source_are_two_passes(run: Test, place: Path) -> None:
    """In other evaluations sets over one source share a pass; where a set adapts each has its own."""
    stream = cases.found()["classes"][1](place / "shards" / "classes")
    held = next(e for e in stream.evals if e.name == "held")
    twins = Stream("twins", [replace(t, evaluates=None) for t in stream.tasks], [held, replace(held, name="again")])
    cells, _ = run("classes", [TENT(lr=0.02)], stream=twins)
    found = metrics(cells[""])
    assert found["again"]["entropy"] < found["held"]["entropy"]
    assert metrics(cells["source"])["again"] == metrics(cells["source"])["held"]


def test_collapse_shows(run: Test) -> None:
    """At a rate that is far too large TENT ends by giving one answer, and is sure of it."""
    cells, _ = run("classes-growing", [TENT(optimizer="sgd", lr=200.0)], rows=4)
    last = cells[""][-1].result.metrics
    assert last["top_answer_share"] == 1.0 and last["entropy"] < 0.1
    assert cells["source"][-1].result.metrics["entropy"] > 1.0


class Plain(Strategy):
    """What somebody who reads the contract alone would write."""

    adapts_at_test = True

    def __init__(self) -> None:
        super().__init__()
        self.stages: list[str] = []
        self.sets: list[tuple[str, int]] = []

    def on_evalset_start(self, evalset: EvalSet, position: int, source: Any) -> None:
        self.sets.append((evalset.name, position))

    def wrap_forward(self, next: Forward, batch: Batch, context: StepContext) -> Outputs:
        self.stages.append(context.stage)
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        outputs = next(batch)
        assert outputs.logits is not None
        softmax_entropy(outputs.logits).mean().backward()
        with torch.no_grad():
            for parameter in self.module.network.parameters():
                parameter.sub_(parameter.grad)
                parameter.grad = None
        return outputs


def test_a_strategy_of_its_own_adapts(run: Test, place: Path) -> None:
    strategy = Plain()
    cells, made = run("classes", [strategy])
    assert set(strategy.stages) == {"test"}
    assert strategy.sets == [("set-0", 0), ("set-1", 1), ("held", 2)]
    assert metrics(cells[""]) != metrics(cells["source"])
    saved = tiny.network(place / "classes")
    assert all(torch.equal(saved[name], value) for name, value in made.module.network.state_dict().items())


def test_weights_come_back_after_a_fault() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    memory = network[0].weight.data_ptr()
    with pytest.raises(RuntimeError, match="stop"), restored(network):
        network.requires_grad_(False)
        network(torch.randn(5, 3))
        network[0].weight.data = torch.zeros(2, 3)
        raise RuntimeError("stop")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network[0].weight.requires_grad and network[0].weight.data_ptr() == memory


def test_mixed_precision_sees_the_weights_of_the_last_step(run: Test) -> None:
    """An autocast that keeps casts of weights would go on with those from before a step."""
    cells, _ = run("classes-growing", [Plain()], rows=4, precision="bf16-mixed")
    plain, _ = run("classes-growing", [Plain()], rows=4)
    found = [row[-1].result.metrics["entropy"] for row in (cells[""], plain[""], plain["source"])]
    assert found[0] == pytest.approx(found[1], rel=0.05) and abs(found[1] - found[2]) > 0.1 * found[2]


def test_validate_does_not_adapt(place: Path) -> None:
    made = adapt.runner("classes", place / "shards" / "classes", place / "classes", [TENT()])
    assert list(made.test("last", "validate", variants=False)) == [""]


def test_what_cannot_adapt_is_refused(place: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    cases.run("clip", shards, tmp_path / "run")
    with pytest.raises(ConfigError, match="no evaluation set of this stream chooses among classes"):
        adapt.runner("clip", shards, tmp_path / "run", [TENT()]).test("last")
    for name in ("initial", "task-0"):
        with pytest.raises(ConfigError, match="no checkpoint"):
            adapt.runner("classes", place / "shards" / "classes", place / "classes", [TENT()]).test(name)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_adapt_as_one(case: str, place: Path) -> None:
    """The same batches cut in two: every metric of every row, the last batches with their padding included."""
    found = []
    for devices, rows in ((1, 6), (2, 3)):
        command: list[Any] = [sys.executable, adapt.__file__, case, place / "shards" / case, place / case, str(rows)]
        command += ["--devices", str(devices)]
        ran = subprocess.run(command, env=tiny.environment(), text=True, capture_output=True, timeout=600)
        assert ran.returncode == 0, ran.stderr
        found.append(json.loads(next(line for line in ran.stdout.splitlines() if line.startswith("{"))))
    one, two = found
    assert one.keys() == two.keys()
    for row, cells in one.items():
        for name, wanted in cells.items():
            assert two[row][name] == pytest.approx(wanted, rel=1e-3), (row, name)
