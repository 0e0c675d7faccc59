"""Velocitune and MER: the formulas in whole runs, and what they refuse."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cases
import pytest
import tiny_text
import torch
from strategy_runs import content
from torch import Tensor

from mmcl import Source, Strategy, Stream, weights
from mmcl.errors import ConfigError, RunError
from mmcl.functional import velocity_weights
from mmcl.strategies import MER, LoRA, MomentumContrast, Velocitune, WeightEnsemble
from mmcl.strategies.velocitune import raised
from mmcl.strategy import Batches, StepContext

TARGETS = {"weather": 1.0, "plain": 2.0}


def velocitune(**changes: Any) -> Velocitune:
    return Velocitune(**{"targets": TARGETS, "sources": {"weather": "weather", "plain": "numbers"}, **changes})


class Watch(Strategy):
    """Counts where the rows of each step come from."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[Counter[str]] = []

    def losses(self, context: StepContext) -> dict[str, Tensor]:
        self.rows.append(Counter(int(domain) for domain in context.batch["domain"]))
        return {}


def segmented(folder: Path) -> Stream:
    """The texts, each task cut every three steps."""
    stream = tiny_text.stream(folder)
    return stream.with_tasks([replace(task, segment=3) for task in stream.tasks])


def test_shares_follow_the_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "found", lambda: {"texts": (tiny_text.causal, segmented)})
    strategy, watch = velocitune(least=0.1), Watch()
    results = cases.run("texts", tmp_path / "shards", tmp_path / "run", [strategy, watch])
    columns = results["matrix"]["columns"]
    rows = [dict(zip(columns, row, strict=True)) for row in results["matrix"]["values"]]
    cuts = [entry["scores"] for entry in results["segments"]]
    assert len(cuts) == 2

    def losses(scores: dict[str, float]) -> list[float]:
        return [float(torch.tensor(scores[name], dtype=torch.float64).log()) for name in TARGETS]

    weights: Any = [0.5, 0.5]
    history = [weights]
    for scores in (cuts[0], rows[1], cuts[1], rows[2]):
        weights = velocity_weights(weights, losses(scores), losses(rows[0]), list(TARGETS.values()))
        history.append(weights.tolist())
    torch.testing.assert_close(torch.tensor(list(strategy.weights_of.values())), torch.tensor(history[-1]))
    assert history[-1] != [0.5, 0.5] and len(watch.rows) == 12
    first = strategy.sources(strategy.stream.tasks[0])
    assert [s.name for s in first] == ["velocitune/plain"]  # the task's own data are the other domain
    assert first[0].share == pytest.approx(0.1 + 0.8 * history[-1][1])
    second = strategy.sources(strategy.stream.tasks[1])
    assert sum(s.share or 0 for s in second) == pytest.approx(0.5)
    assert watch.rows[0] == {0: 4, 1: 4} and watch.rows[6][0] < watch.rows[6][1]  # where the rows' data belong


@pytest.mark.parametrize("least", [0.0, 0.05])
def test_no_domain_is_without_a_sample(least: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where one is learned long before the other: the default `least` of a batch of 8 is 0.4 samples."""
    monkeypatch.setattr(cases, "found", lambda: {"texts": (tiny_text.causal, segmented)})
    strategy, watch = velocitune(least=least, share=1.0), Watch()
    slow = {"weather": 0.001, "plain": 0.999}
    monkeypatch.setattr(strategy, "on_scores", lambda scores, context: setattr(strategy, "weights_of", slow))
    cases.run("texts", tmp_path / "shards", tmp_path / "run", [strategy, watch])
    assert watch.rows == [{0: 1, 1: 7}] * 12


def test_raised_parts() -> None:
    assert raised({"a": 0.2, "b": 0.8}, 0.1) == {"a": 0.2, "b": 0.8}
    found = raised({"a": 0.05, "b": 0.15, "c": 0.8}, 0.1)
    assert found["a"] == 0.1 and sum(found.values()) == pytest.approx(1.0)
    assert (found["b"] - 0.1) / (found["c"] - 0.1) == pytest.approx(0.05 / 0.7)
    assert raised({"a": 0.5 - 1e-17, "b": 0.5 - 1e-16}, 0.5) == {"a": 0.5, "b": 0.5}


def test_a_batch_that_is_too_small_is_refused(tmp_path: Path) -> None:
    stream = tiny_text.stream(tmp_path)
    strategy = velocitune(share=0.25)
    strategy.attach_reach(SimpleNamespace(stream=stream))
    with pytest.raises(ConfigError, match=r"0\.25 of a batch of 4 has not a sample for each of 2 domains in task 'n"):
        strategy.foresee(stream.tasks[1], Batches(4, 4, 1))
    (plain,) = strategy.foresee(stream.tasks[0], Batches(16, 16, 1))
    assert plain.share == pytest.approx(15 / 16)  # at most: the task's own domain keeps a sample
    assert [s.share for s in strategy.foresee(stream.tasks[1], Batches(16, 16, 1))] == [0.125, 0.125]


def test_a_named_source_of_the_stream(tmp_path: Path) -> None:
    stream = tiny_text.stream(tmp_path)
    extra = Source([str(tmp_path / "plain.tar")], role="side", batch_size=3)
    stream = Stream(stream.name, stream.tasks, stream.evals, {"more": extra})
    strategy = velocitune(sources={"weather": "weather", "plain": "more"}, share=0.4)
    strategy.attach_reach(SimpleNamespace(stream=stream))
    strategy.setup(stream)
    weather, plain = strategy.sources(stream.tasks[1])
    assert (plain.role, plain.batch_size, plain.shards) == ("mixed", None, extra.shards)
    assert weather.share == plain.share == pytest.approx(0.2) and weather.task == "weather"


def test_a_domain_is_all_that_its_task_trains_on(tmp_path: Path) -> None:
    stream = tiny_text.stream(tmp_path)
    weather, numbers = stream.tasks
    more = replace(weather.train[0], name="more")
    stream = stream.with_tasks([replace(weather, train=[*weather.train, more]), numbers])
    strategy = velocitune()
    strategy.attach_reach(SimpleNamespace(stream=stream))
    strategy.setup(stream)
    found = {source.name: len(source.all) for source in strategy.sources(stream.tasks[1])}  # type: ignore[attr-defined]
    assert found == {"velocitune/weather": 2, "velocitune/plain": 1}


def test_what_the_stream_lacks_is_refused(tmp_path: Path) -> None:
    stream = tiny_text.stream(tmp_path)
    for changes, words in (
        (
            {"sources": {"weather": "whether", "plain": "numbers"}},
            "no source and no task 'whether'; did you mean weather",
        ),
        ({"sources": {"plain": "numbers"}}, "'weather' needs a source"),
        ({"targets": {"weather": 1.0, "plane": 1.0}, "sources": {"weather": "weather"}}, "no evaluation set 'plane'"),
        ({"scores": "loss"}, "set 'weather' is measured by 'perplexity', and scores 'loss' are those of 'objective'"),
    ):
        with pytest.raises(ConfigError, match=words):
            velocitune(**changes).setup(stream)
    bits = [replace(evalset, options={"metric": "bits_per_byte"}) for evalset in stream.evals]
    with pytest.raises(ConfigError, match="set 'weather' scores 'bits_per_byte'; take its option metric away"):
        velocitune().setup(Stream("bits", stream.tasks, bits))
    with pytest.raises(RunError, match="is no perplexity"):
        velocitune().on_scores({"weather": 0.0, "plain": 1.0}, None)


BAD: list[tuple[Callable[[], Any], str]] = [
    (lambda: velocitune(share=0.0), "share is 0"),
    (lambda: velocitune(scores="los"), "scores 'los' is unknown; did you mean loss"),
    (lambda: velocitune(targets={"weather": 1.0}), "two domains or more"),
    (lambda: velocitune(least=0.6), "least is 0.6; 2 domains have at most 0.5"),
    (lambda: velocitune(sources={"wether": "weather"}), "did you mean weather"),
    (lambda: MER(0), "interval is 0"),
    (lambda: MER(rate=1.1), "rate is 1.1"),
]


@pytest.mark.parametrize(("build", "message"), BAD)
def test_bad_arguments_are_refused(build: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()


def test_mer_goes_a_part_of_the_way(data: Any) -> None:
    """Against the loop written out: the same optimizer, and weights set back after every third step."""
    run, plain = data.run(MER(3, 0.25)), data.run()
    for each in (run, plain):
        each.begin()
    anchor = plain.weights(copy=True)
    for i in range(8):
        for each in (run, plain):
            each.train_step(data.batch(i), data.side(i), data.lr(i))
        if i in (2, 5):
            anchor = {
                n: anchor[n] + 0.25 * (v - anchor[n]) if v.is_floating_point() else v
                for n, v in plain.weights(copy=True).items()
            }
            plain.load(anchor)
        for name, value in plain.weights().items():
            torch.testing.assert_close(run.weights()[name], value, rtol=1e-9, atol=1e-12)
    trained = [p for p in run.module.network.parameters() if p.requires_grad]
    assert len(run.strategies[0].anchor) == len(trained) < len(list(run.module.network.parameters()))


def test_mer_holds_adapters_too(tmp_path: Path) -> None:
    """At rate 0 all that trains goes back after every window."""
    (tmp_path / "shards").mkdir()
    stream = cases.found()["clip"][1](tmp_path / "shards")
    runner = cases.runner("clip", stream, tmp_path / "run", [LoRA(2), MER(2, 0.0)])
    initial = weights.read(runner.module.network, copy=True)
    runner.fit()
    for name, value in weights.read(runner.module.network).items():
        assert torch.equal(value, initial[name]), name


def test_copies_of_the_weights_end_with_their_task(tmp_path: Path) -> None:
    """The next task makes its own; evaluations and the checkpoints that are kept would carry them for nothing."""
    cases.run("clip", tmp_path / "shards", tmp_path / "run", [MER(2), MomentumContrast(queue_size=8)])
    for name in ("task-1", "last"):
        state = content(tmp_path / "run", name)["strategies"]
        assert not state["mer"]["state"]["anchor"] and not state["momentum_contrast"]["state"]["slow"]


def test_an_interval_longer_than_a_task_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cases.run("clip", tmp_path / "shards", tmp_path / "run", [MER(), WeightEnsemble()])
    assert "MER: task 'dots' has 6 steps, fewer than the interval of 100: it does nothing there" in caplog.text
    assert "WeightEnsemble: task 'dots' has 6 steps and its weights are averaged every 100" in caplog.text


def test_mer_without_a_part_to_leave_out_does_nothing(data: Any, toolbox: SimpleNamespace) -> None:
    run, plain = data.run(MER(1, 1.0)), data.run()
    for each in (run, plain):
        each.begin()
        data.train(each)
    toolbox.assert_same(run.weights(), plain.weights())
