"""Adapters in whole runs: what trains, what is merged, what is pruned, and where they may go."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cases
import pytest
import settings_adapters
import tiny
import torch
from torch import Tensor
from watching import FIRST_TASK, Cut, Watch, assert_close, changed

from mmcl import Strategy
from mmcl.functional import soft_threshold, threshold_schedule
from mmcl.strategies import (
    CoDyRA,
    DoRA,
    ExperienceReplay,
    LoRA,
    LwF,
    MomentumInterpolation,
    VeRA,
    WeightEnsemble,
)
from mmcl.strategy import StepContext
from mmcl.weights import canonical

SETTINGS = settings_adapters.SETTINGS
QUICK = ("LoRA/separate", "CoDyRA")
"""Rows that every run of the tests looks at; the others take longer together than they tell."""
ROWS = [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in SETTINGS]
MERGED = ["LoRA", "LoRA/orthogonal", "CoDyRA", "DoRA", "VeRA"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cases")


@pytest.fixture
def run(shards: Path, tmp_path: Path) -> Callable[..., Any]:
    """Train a case with strategies; gives what `cases.run` gives."""

    def train(case: str, strategies: Sequence[Strategy], name: str = "run", **more: Any) -> dict[str, Any]:
        return cases.run(case, shards / case, tmp_path / name, strategies, **more)

    return train


@pytest.mark.parametrize("name", ROWS)
def test_it_changes_its_own_weights_alone(run: Any, name: str) -> None:
    setting = SETTINGS[name]
    watch = Watch()
    run(setting.cases[0], [*setting.build(), watch])
    found = changed(watch.seen["initial"], watch.seen["last step"])
    assert found, "nothing was trained"
    assert not [n for n in found if not re.fullmatch(setting.changes, n)]
    head = [n for n in watch.trained if n.startswith("head.")]
    assert head == ["head.weight", "head.bias"]
    if name.partition("/")[0] not in ("BitFit", "LNFit"):
        assert watch.trained == head  # beside the adapters, which are no weights of the network


@pytest.mark.parametrize("name", MERGED)
def test_merging_keeps_what_the_network_computes(run: Any, tmp_path: Path, name: str) -> None:
    """The weights take the adapters when a task ends; the adapters then change nothing."""
    watch = Watch(*FIRST_TASK)
    (strategy,) = SETTINGS[name].build()
    with pytest.raises(Cut):
        run("clip", [watch, strategy])
    assert_close(watch.seen["end dots"], watch.seen["last step"])
    raw = {canonical(n): v for n, v in tiny.network(tmp_path / "run", "task-1").items()}
    assert_close(raw, watch.seen["end dots"], 0.0)
    for adapter in strategy.each().values():
        assert not adapter().any()


def test_continued_adapters_are_never_merged(run: Any, tmp_path: Path) -> None:
    strategy = LoRA(2, tasks="continue")
    watch = Watch()
    run("clip", [watch, strategy])
    raw = {canonical(n): v for n, v in tiny.network(tmp_path / "run").items()}
    assert_close(raw, watch.seen["initial"], 0.0)
    assert changed(watch.seen["end dots"], watch.seen["end stripes"])
    found = strategy.weights()
    assert changed(raw, found)


def test_the_start_is_the_pretrained_model(tmp_path: Path, run: Any) -> None:
    """Row 0, and the first task's first forward, once its factors are drawn."""
    builds = {"plain": [], "lora": [LoRA()], "codyra": [CoDyRA()], "dora": [DoRA()], "vera": [VeRA()]}
    builds |= {"separate": [LoRA(tasks="separate")]}
    rows = []
    for name, made in builds.items():
        watch = Watch("fit", 1)
        with pytest.raises(Cut):
            run("clip", [watch, *made], name)
        rows.append(tiny.results(tmp_path / name)["matrix"]["values"][0])
        assert_close(watch.seen["initial"], watch.weights(), 0.0)
    assert rows == rows[:1] * len(builds)


def test_thresholds_follow_the_schedule(run: Any) -> None:
    """Each step's gates are the optimizer's, thresholded by the paper's operator on the schedule of the task."""
    strategy = CoDyRA(4, kappa=0.5)
    seen: list[tuple[int, Tensor, Tensor]] = []
    plain = strategy.on_step_end

    def spy(context: StepContext) -> None:
        before = torch.cat([a.gate.detach().clone() for a in strategy.each().values()])
        plain(context)
        seen.append((context.task_step, before, torch.cat([a.gate.detach() for a in strategy.each().values()])))

    strategy.on_step_end = spy  # type: ignore[method-assign]
    run("clip", [strategy])
    kappa, applied = threshold_schedule(6, 0.5, 3, 0.5)  # as many notches as steps are left
    assert [step for step, _, _ in seen] == [*range(6), *range(6)]
    for step, before, after in seen:
        expected = soft_threshold(before, float(kappa[step])) if applied[step] else before
        torch.testing.assert_close(after, expected, rtol=0, atol=0)
    assert any(not torch.equal(before, after) for _, before, after in seen)


def test_ranks_are_kept_and_logged(run: Any, tmp_path: Path) -> None:
    strategy = CoDyRA(4, kappa=0.5)
    run("clip", [strategy])
    assert list(strategy.ranks) == ["dots", "stripes"]
    for task, ranks in strategy.ranks.items():
        assert len(ranks) == 10 and all("weight" in site for site in ranks)
        assert 0 < sum(ranks.values()) < 40, "some components are pruned and some are left"
        logged = [r for r in tiny.metrics(tmp_path / "run") if r.get("task") == task and "codyra/rank_total" in r]
        assert logged[-1]["task_step"] == 6 and logged[-1]["codyra/rank_total"] == sum(ranks.values())
        assert logged[-1]["codyra/rank_mean"] == pytest.approx(sum(ranks.values()) / 10)


def test_a_short_task_prunes_unless_the_published_schedule_is_asked_for() -> None:
    ours, published = CoDyRA(4), CoDyRA(4, published=True)
    assert not published.schedule(60).kappa.any()  # 30 steps are left for 50 notches
    assert float(ours.schedule(60).kappa[-1]) == pytest.approx(0.005)
    for steps in (100, 500, 1000):
        assert torch.equal(ours.schedule(steps).kappa, published.schedule(steps).kappa)
    for steps in range(6):
        assert len(ours.schedule(steps).kappa) == steps


def test_the_first_threshold_and_the_operator_are_those_that_are_asked_for() -> None:
    for dense, first in ((0.0, 1), (0.75, 16)):
        assert CoDyRA(4, dense=dense).schedule(20).applied.nonzero()[0] == first
    values = torch.tensor([1.5, 2.5])
    assert CoDyRA(4).threshold(values, 1.0).tolist() == [0.5, 1.5]
    assert CoDyRA(4, published=True).threshold(values, 1.0).tolist() == [0.0, 1.5]


def test_earlier_subspaces_are_kept_and_avoided(run: Any) -> None:
    """With a large weight the rows of A of the second task turn away from those of the first."""
    overlaps = {}
    for weight in (1e-9, 10.0):
        strategy = LoRA(2, orthogonality=weight)
        run("clip", [strategy], f"weight-{weight}")
        overlaps[weight] = sum(float((e[2:] @ e[:2].T).abs().sum()) for e in strategy.earlier.values())
        assert all(len(e) == 4 for e in strategy.earlier.values())  # two rows of each task
    assert overlaps[10.0] < 0.8 * overlaps[1e-9]


def test_each_domain_is_answered_by_its_own_adapter(run: Any, tmp_path: Path, shards: Path) -> None:
    """What a later task trains does not change the answers to rows of an earlier one, if they are told apart."""
    strategy = LoRA(2, tasks="separate", clusters=3)
    results = run("domains", [strategy])
    assert list(strategy.centres) == ["train", "held"] and len(strategy.centres["train"]) == 3
    assert strategy.variants == ("adapter=train", "adapter=held")
    heads = strategy.heads["train"]
    assert heads.keys() == {"head.weight", "head.bias"}
    assert changed(heads, strategy.heads["held"])
    module = strategy.module.eval()
    images = torch.rand(6, 3, 32, 32)
    plain = tiny.network(tmp_path / "run", "task-1"), tiny.network(tmp_path / "run", "task-2")
    frozen = [n for n in plain[0] if not n.startswith("head.")]
    assert all(torch.equal(plain[0][n], plain[1][n]) for n in frozen)
    before = strategy.weights(copy=True)
    strategy.choose = lambda features: torch.tensor([0, 1, 0, 1, 1, 0])  # type: ignore[method-assign]
    context: Any = SimpleNamespace(stage="test")
    with torch.no_grad():
        mixed = strategy.wrap_forward(module, {"image": images}, context).logits
        alone = []
        for variant in strategy.variants:
            with strategy.eval_weights(variant):
                alone.append(strategy.wrap_forward(module, {"image": images}, context).logits)
    assert not torch.equal(*alone)
    for row, domain in enumerate([0, 1, 0, 1, 1, 0]):
        assert torch.equal(mixed[row], alone[domain][row])
    assert not changed(before, strategy.weights())
    assert results["run"]["status"] == "finished"


def test_a_sample_goes_to_the_domain_with_the_nearest_centre() -> None:
    """By the direction of its feature; a domain's other centres do not count."""
    strategy = LoRA(2, tasks="separate")
    strategy.centres = {"one": torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), "two": torch.tensor([[0.0, 1.0], [0.0, -1.0]])}
    features = torch.tensor([[10.0, 6.0], [20.0, 1.0], [-0.1, 0.2], [-3.0, 1.0]])
    assert strategy.choose(features).tolist() == [0, 0, 1, 0]


@pytest.mark.parametrize("build", [lambda: LoRA(2), lambda: DoRA(2), lambda: CoDyRA(4, kappa=0.3), lambda: VeRA(4)])
def test_averages_see_effective_weights(run: Any, build: Any) -> None:
    """Whichever comes first in the list, the task ends with the average, and adapters that change nothing."""
    ends = []
    for order in (1, -1):
        strategy, watch = build(), Watch(*FIRST_TASK)
        with pytest.raises(Cut):
            run("clip", [*[WeightEnsemble(2), strategy][::order], watch], f"order{order}")
        ends.append(watch.seen["end dots"])
        assert all(not a().any() for a in strategy.each().values())
        assert changed(watch.seen["last step"], watch.seen["end dots"])
    assert_close(*ends)


def test_it_goes_with_distillation_replay_and_slow_weights(run: Any) -> None:
    results = run("domains", [LwF(), LoRA(2), ExperienceReplay(6), MomentumInterpolation(0.9)])
    assert bool(torch.tensor(results["matrix"]["values"], dtype=torch.float64).isfinite().all())


def test_merging_under_mixed_precision_loses_nothing(run: Any) -> None:
    watch = Watch(*FIRST_TASK)
    with pytest.raises(Cut):
        run("clip", [watch, LoRA(2)], precision="bf16-mixed")
    assert_close(watch.seen["end dots"], watch.seen["last step"])
    away = [(watch.seen["end dots"][n] - v).abs().max() for n, v in watch.seen["initial"].items() if "c_fc" in n]
    assert max(away) > 0
