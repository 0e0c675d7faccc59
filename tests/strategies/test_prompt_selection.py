"""What prompt methods select: the query, the choice, and that no task is told in a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cases
import pytest
import tiny_classes
import torch
from prompt_runs import CLIP, VIT, Maker, answer, batch_of, shake
from torch import Tensor

from mmcl import Strategy
from mmcl.engine import Context
from mmcl.functional.prompts import key_similarities
from mmcl.outputs import Batch, Forward, Outputs
from mmcl.runner import Runner
from mmcl.strategies import L2P, CODAPrompt, DualPrompt, SPrompts
from mmcl.strategies._prompting import SELECTED
from mmcl.strategy import StepContext


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shards")


@pytest.fixture
def make(shards: Path, tmp_path: Path) -> Maker:
    return Maker(shards, tmp_path)


# -- the query and the choice -----------------------------------------------------------------------------------------


BUILDS: dict[str, Callable[[], Strategy]] = {
    "L2P": lambda: L2P(6, 2, 2),
    "DualPrompt": lambda: DualPrompt(),
    "CODAPrompt": lambda: CODAPrompt(pool_size=6, length=4, blocks=(0, 2)),
    "SPrompts": lambda: SPrompts(3, 2),
    "SPrompts/lora": lambda: SPrompts(centers=2, tune="lora", rank=2),
}


@pytest.mark.parametrize("name", BUILDS)
def test_no_task_is_told_and_each_sample_stands_alone(make: Maker, name: str) -> None:
    runner = make.entered([BUILDS[name]()])
    shake(runner)
    batch = batch_of(runner)
    wanted = answer(runner, batch)
    assert wanted.logits is not None
    for domain in (0, 1):
        found = answer(runner, {**batch, "domain": torch.full((6,), domain)})
        assert torch.equal(found.logits, wanted.logits)  # type: ignore[arg-type]
    for row in range(6):
        alone = {key: value[row : row + 1] for key, value in batch.items()}
        torch.testing.assert_close(answer(runner, alone).logits[0], wanted.logits[row], rtol=1e-4, atol=1e-5)  # type: ignore[index]


@pytest.mark.parametrize("case", [VIT, CLIP])
def test_the_bare_forward_gives_the_query(make: Maker, case: str) -> None:
    block = 0 if case == CLIP else 2
    runner = make.entered([DualPrompt(general_blocks=(), expert_blocks=(block,))], case=case)
    batch = batch_of(runner)
    with torch.no_grad():
        bare = runner.module(batch).features["image"]
    outputs = answer(runner, batch)
    torch.testing.assert_close(outputs.extra[SELECTED].query, bare)
    assert not torch.allclose(outputs.features["image"], bare)
    torch.testing.assert_close(answer_inside(runner, batch), bare)  # no prompt leaks into what is asked for within


def answer_inside(runner: Runner, batch: Batch) -> Tensor:
    """The bare forward as a strategy further in sees it."""
    seen: list[Tensor] = []

    class Asks(Strategy):
        def wrap_forward(self, next: Forward, batch: Batch, context: StepContext) -> Outputs:
            seen.append(context.forward(batch, bare=True).features["image"])
            return next(batch)

    runner.engine.composition._lists["wrap_forward"].append(Asks())
    answer(runner, batch)
    return seen[0]


def test_the_network_trains_beside_a_query_without_gradients(make: Maker) -> None:
    """A bare forward with gradients is another one than the query's, though both are of one batch and step."""
    runner = make.entered([DualPrompt()])
    runner.module.train()
    batch = batch_of(runner)
    context = Context(runner.engine, "fit", batch)
    outputs = context.forward(batch)
    assert not outputs.extra[SELECTED].query.requires_grad
    assert all(layer.training for layer in runner.module.network.modules())
    with torch.no_grad():
        assert not context.forward(batch, bare=True).logits.requires_grad  # type: ignore[union-attr]
    assert context.forward(batch, bare=True).logits.requires_grad  # type: ignore[union-attr]


def forwards(runner: Runner) -> list[int]:
    """Rows of each forward through the network, from now on."""
    seen: list[int] = []
    runner.module.network.register_forward_hook(lambda network, given, result: seen.append(len(given[0])))
    return seen


def test_queries_of_an_evaluation_set_are_computed_once(make: Maker) -> None:
    runner = make([L2P(6, 2, 2)])
    seen = forwards(runner)
    make.enter(runner, 0)
    first = runner._measure("test")
    rows = sum(seen)
    seen.clear()
    runner.module.network.head.weight.data.mul_(2)
    again = runner._measure("test")
    assert sum(seen) == rows / 2, "half of the forwards were the query's"
    assert [cell.result.value for cell in first] == [cell.result.value for cell in again]
    seen.clear()
    with torch.no_grad():
        next(runner.module.network.backbone.parameters()).mul_(1.1)
    runner._measure("test")
    assert sum(seen) == rows, "another backbone, another query"


def test_row_0_takes_no_query(make: Maker) -> None:
    runner = make([L2P(6, 2, 2)])
    seen = forwards(runner)
    runner.check()
    runner.build()
    runner._measure("test")
    assert max(seen) <= 5 and sum(seen) == sum(len(b["image"]) for e in sets(runner) for b in e)


def sets(runner: Runner) -> Iterator[Any]:
    for evalset in runner.stream.evals:
        yield runner.data.eval_loader(evalset.source)


def l2p(make: Maker, position: int = 1, **settings: Any) -> tuple[Any, Runner]:
    runner = make.entered([L2P(6, 2, 2, **settings)], position)
    return runner.composition.strategies[0], runner


def test_l2p_selects_by_cosine(make: Maker) -> None:
    strategy, runner = l2p(make)
    selected = answer(runner, batch_of(runner)).extra[SELECTED]
    similarity = key_similarities(selected.query, strategy.keys)
    assert torch.equal(selected.indices, similarity.topk(2).indices)
    assert torch.equal(selected.keys, strategy.keys[selected.indices])


@pytest.mark.parametrize("build", [lambda: L2P(6, 2, 2, pull=0.3), lambda: DualPrompt(pull=0.3)])
def test_keys_are_pulled_towards_the_query(make: Maker, build: Callable[[], Strategy]) -> None:
    runner = make.entered([build()])
    batch = batch_of(runner)
    context = Context(runner.engine, "fit", batch)
    context.outputs = context.forward(batch)
    chosen = context.outputs.extra[SELECTED]
    cosines = torch.nn.functional.cosine_similarity(chosen.query[:, None], chosen.keys, dim=-1)
    (found,) = runner.composition.strategies[0].losses(context).values()
    torch.testing.assert_close(found, -0.3 * cosines.sum(1).mean())


def test_l2p_s_prompts_stand_at_the_class_token_s_place_and_answer(make: Maker) -> None:
    found = [l2p(make), l2p(make, positions=False), l2p(make, pool="tower")]
    (placed, _), (plain, _), _ = found
    assert placed.place.abs().sum() > 0
    with torch.no_grad():
        plain.prompts.add_(placed.place)
    first, second, pooled = (answer(runner, batch_of(runner)).features["image"] for _, runner in found)
    torch.testing.assert_close(first, second)
    assert not torch.allclose(first, pooled, atol=1e-3)


def test_l2p_votes_only_where_it_is_asked_to(make: Maker) -> None:
    for vote, fit, test in (("never", False, False), ("train", True, False), ("always", True, True)):
        strategy, runner = l2p(make, vote=vote)
        query = torch.randn(8, 64, generator=torch.Generator().manual_seed(2))
        for stage, joint in ((True, fit), (False, test)):
            indices = strategy.choose(query, batch_of(runner), stage)
            assert (len({*map(tuple, indices.tolist())}) == 1) == joint
        assert strategy.unsupported == (frozenset() if vote == "never" else {"accumulation"})


def test_l2p_prefers_what_earlier_tasks_left(make: Maker) -> None:
    strategy, runner = l2p(make, diversity=True)
    query = torch.randn(8, 64, generator=torch.Generator().manual_seed(2))
    plain = strategy.choose(query, batch_of(runner), False)
    strategy.selected = {"task-0": torch.tensor([5.0, 5.0, 5.0, 5.0, 0.0, 0.0])}
    assert set(strategy.choose(query, batch_of(runner), True).flatten().tolist()) == {4, 5}
    assert torch.equal(strategy.choose(query, batch_of(runner), False), plain), "training only"


def test_l2p_gives_tasks_their_own_prompts_where_it_is_asked_to(make: Maker) -> None:
    strategy, runner = l2p(make, 1, task_slots=True, copy_slots=True)
    batch = batch_of(runner)
    query = torch.randn(6, 64)
    assert strategy.choose(query, batch, True).tolist() == [[2, 3]] * 6
    replayed = {**batch, "domain": torch.tensor([0, 0, 1, 1, -1, -1])}
    assert strategy.choose(query, replayed, True)[:, 0].tolist() == [0, 0, 2, 2, 2, 2]
    assert torch.equal(strategy.prompts[2:4], strategy.prompts[:2]) and torch.equal(
        strategy.keys[2:4], strategy.keys[:2]
    )


@pytest.mark.parametrize("query", ["mean", "max", "mean_max"])
def test_l2p_asks_with_patches(make: Maker, query: str) -> None:
    strategy, runner = l2p(make, query=query, own_keys=False)
    selected = answer(runner, batch_of(runner)).extra[SELECTED]
    assert selected.query.shape == (6, 64)
    torch.testing.assert_close(strategy.keys, strategy.prompts.mean(1))


def test_a_new_slot_starts_where_the_last_one_ended(make: Maker) -> None:
    for copies in (True, False):
        runner = make.entered([DualPrompt(copy_slots=copies)])
        slots: Any = runner.composition.strategies[0].slots
        assert torch.equal(slots[0], slots[1]) == copies


def test_replayed_rows_take_the_slot_of_their_task(make: Maker) -> None:
    runner = make.entered([DualPrompt()])
    batch = {**batch_of(runner), "domain": torch.tensor([0, 1, 0, 1, -1, -1])}
    assert answer(runner, batch, "fit").extra[SELECTED].indices.tolist() == [[0], [1], [0], [1], [1], [1]]


def test_components_start_orthogonal(make: Maker) -> None:
    runner = make.entered([CODAPrompt(pool_size=6, length=4, blocks=(0, 2))])
    strategy: Any = runner.composition.strategies[0]
    for components in (strategy.keys, strategy.attention, strategy.prompts):
        for rows in strategy.used(components):
            torch.testing.assert_close(rows.flatten(1) @ rows.flatten(1).T, torch.eye(6), rtol=0, atol=1e-5)
    again = make.entered([CODAPrompt(pool_size=6, length=4, blocks=(0, 2))])
    assert torch.equal(again.composition.strategies[0].keys[1], strategy.keys[1])  # type: ignore[index, union-attr]


def test_a_domain_answers_for_its_own_classes(make: Maker) -> None:
    runner = make.entered([SPrompts(3, 2)])
    shake(runner)
    strategy: Any = runner.composition.strategies[0]
    batch = batch_of(runner)
    domains = strategy.nearest(answer_bare(runner, batch))
    logits = answer(runner, batch).logits
    assert logits is not None
    smallest = torch.finfo(logits.dtype).min
    for domain, row in zip(domains.tolist(), logits, strict=True):
        assert ((row == smallest) == torch.tensor([domain == 1] * 2 + [domain == 0] * 2)).all()
    trained = answer(runner, batch, "fit").logits
    assert trained is not None and bool((trained != smallest).all()), "the module's own masks hold in training"


def test_the_nearest_centre_s_domain_is_chosen(make: Maker) -> None:
    runner = make.entered([SPrompts(3, 2)])
    strategy: Any = runner.composition.strategies[0]
    directions = torch.eye(strategy.features)
    tasks = runner.stream.tasks
    strategy.centres = {task.name: directions[[2 * i, 2 * i + 1]] for i, task in enumerate(tasks)}
    assert strategy.nearest(5 * directions[:4] + 0.1).tolist() == [0, 0, 1, 1]


def answer_bare(runner: Runner, batch: Batch) -> Tensor:
    with runner.engine.evaluation_mode(), torch.no_grad():
        found: Tensor = runner.module(batch).features["image"]
    return found


@pytest.mark.parametrize("bad", [4, 29])
def test_centres_of_a_domain_are_those_of_the_pictures_that_can_be_decoded(bad: int, tmp_path: Path) -> None:
    """Sample 29 is the last one of its task, which has 15 others."""
    strategy = SPrompts(3, 15)
    stream = tiny_classes.stream(tmp_path / "shards", broken=[bad])
    runner = cases.runner("classes-growing", stream, tmp_path / "run", [strategy])
    runner.data.bad.max_bad = 0.3
    runner.fit()
    torch.testing.assert_close(strategy.centres["task-0"].norm(dim=1), torch.ones(15))
