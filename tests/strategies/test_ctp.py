"""CTP and its parts, against the formulas written out."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmcl.errors import ConfigError, RunError
from mmcl.functional import momentum_contrast_loss, topology_preservation_loss
from mmcl.functional.contrastive import random_queue
from mmcl.strategies import CTP, MomentumContrast, TopologyPreservation
from mmcl.strategy import Batches

NAMES = ("visual.weight", "visual.bias", "tok.weight", "tproj.weight")
TAU = 0.07


def embed(w: dict[str, Tensor], batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    texts = w["tok.weight"][batch["text"]].mean(dim=1) @ w["tproj.weight"].T
    return batch["image"] @ w["visual.weight"].T + w["visual.bias"], texts


def batches(data: Any, i: int) -> dict[str, Tensor]:
    """A batch of four pairs with class texts for the toy's own loss."""
    batch = data.batch(i)
    generator = torch.Generator().manual_seed(i)
    return {**batch, "text": torch.randint(20, (len(batch["image"]), 4), generator=generator)}


def by_formula(data: Any, alpha: float, flush: bool) -> tuple[list[Tensor], dict[str, Tensor], list[Tensor]]:
    """(losses, last weights, queues) of two tasks of five steps, momentum first as the published loop has it."""
    w = {n: data[f"prev.{n}"].clone().requires_grad_() for n in NAMES}
    generator = torch.Generator().manual_seed(0)
    queues = [random_queue(4, 10, generator).double() for _ in range(2)]
    pointer, filled, losses = 0, 0 if flush else 10, []
    for task in (0, 1):
        previous = {n: v.detach().clone() for n, v in w.items()}
        momentum = {n: v.clone() for n, v in previous.items()}
        if flush:
            pointer = filled = 0
        optimizer = torch.optim.AdamW(w.values(), weight_decay=0.0)
        for i in range(5):
            batch = batches(data, i)
            m, a = (0.9, alpha) if task else (0.995, 0.0)
            for n, value in momentum.items():
                value.copy_(m * value + (1 - m) * (a * previous[n] + (1 - a) * w[n].detach()))
            v, t = embed(w, batch)
            classes = w["tok.weight"][batch["class_text"]].mean(dim=1) @ w["tproj.weight"].T
            logits = 10 * F.normalize(v) @ F.normalize(classes).T
            total = F.cross_entropy(logits, batch["labels"], label_smoothing=0.2)
            vm, tm = embed(momentum, batch)
            total = total + momentum_contrast_loss(
                v, t, vm, tm, queues[0][:, :filled], queues[1][:, :filled], temperature=TAU
            )
            if task:
                cross, same = topology_preservation_loss(v, t, *embed(previous, batch), temperature=TAU)
                total = total + cross + same
            for row in range(len(vm)):
                for queue, features in zip(queues, (vm, tm), strict=True):
                    queue[:, pointer] = F.normalize(features[row], dim=0)
                pointer, filled = (pointer + 1) % 10, min(filled + 1, 10)
            losses.append(total.detach())
            optimizer.zero_grad()
            total.backward()
            optimizer.param_groups[0]["lr"] = data.lr(i)
            optimizer.step()
    return losses, {n: v.detach() for n, v in w.items()}, queues


@pytest.mark.parametrize(("alpha", "flush"), [(0.5, False), (0.5, True), (0.0, False)])
def test_by_formula(data: Any, alpha: float, flush: bool) -> None:
    losses, last, queues = by_formula(data, alpha, flush)
    run = data.run(CTP(queue_size=10, alpha=alpha, flush=flush))
    found = []
    for task in ("one", "two"):
        run.begin(task)
        found += [run.train_step(batches(data, i), lr=data.lr(i)) for i in range(5)]
    torch.testing.assert_close(torch.stack(found), torch.stack(losses), rtol=1e-9, atol=1e-12)
    for name in NAMES:
        torch.testing.assert_close(run.weights()[name], last[name], rtol=1e-9, atol=1e-12)
    contrast = run.strategies[0]
    for queue, wanted in zip((contrast.image_queue, contrast.text_queue), queues, strict=True):
        torch.testing.assert_close(queue, wanted, rtol=1e-9, atol=1e-12)
    assert set(run.losses[0]) == {"loss", "momentum_contrast"}
    assert set(run.losses[-1]) == {"loss", "momentum_contrast", "cross_modal", "same_modal"}


def test_the_momentum_model_is_one_copy(data: Any) -> None:
    """Neither trained nor saved twice: its tensors are the state's, and it answers in eval mode."""
    run = data.run(MomentumContrast(queue_size=10))
    run.begin()
    run.train_step(batches(data, 0))
    (strategy,) = run.strategies
    assert not list(strategy.parameters()) and not list(strategy.modules())[1:]
    network = strategy._network()
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    assert strategy.slow["visual.weight"].data_ptr() == network.visual.weight.data_ptr()
    before = network.visual.weight.clone()
    strategy.import_state(strategy.export_state() | {"slow": {n: v * 2 for n, v in strategy.slow.items()}})
    assert torch.equal(strategy._network().visual.weight, 2 * before)


def test_the_published_momentum_model_trains_on(data: Any) -> None:
    run = data.run(MomentumContrast(queue_size=10, train_mode=True))
    run.begin()
    assert run.strategies[0]._network().training


def test_topology_of_the_first_task_is_free_unless_asked_for(data: Any) -> None:
    run = data.run(TopologyPreservation(same=0.0), TopologyPreservation(first_task=True))
    run.begin()
    run.train_step(batches(data, 0))
    assert set(run.losses[0]) == {"loss", "cross_modal", "same_modal"}
    run.begin("two")
    run.train_step(batches(data, 0))
    assert len(run.losses[1]) == 3  # of one name: the second strategy's; both count for themselves in a run


def test_presets_are_made_of_parts() -> None:
    contrast, topology = CTP(2.0, 3.0, 4.0, temperature=0.1, queue_size=7).parts()
    assert isinstance(contrast, MomentumContrast) and isinstance(topology, TopologyPreservation)
    assert (contrast.weight, contrast.queue_size, contrast.temperature) == (2.0, 7, 0.1)
    assert topology.parts_of == {"cross_modal": 3.0, "same_modal": 4.0}
    assert topology.temperature == 0.1 and contrast.snapshots == topology.snapshots == {"start"}
    off = [*CTP(0.0, 0.0, 0.0).parts()]
    assert not any(part.snapshots or part.needs for part in off)


BAD: list[tuple[Callable[[], Any], str]] = [
    (lambda: MomentumContrast(decay=1.5), "decay is 1.5"),
    (lambda: MomentumContrast(alpha=-0.1), "alpha is -0.1"),
    (lambda: MomentumContrast(weight=-1), "weight -1"),
    (lambda: MomentumContrast(temperature=0), "temperature 0"),
    (lambda: MomentumContrast(queue_size=0), "queue_size is 0"),
    (lambda: TopologyPreservation(cross=-1), "cross is -1"),
    (lambda: TopologyPreservation(temperature=0), "temperature is 0"),
]


@pytest.mark.parametrize(("build", "message"), BAD)
def test_bad_arguments_are_refused(build: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()


@pytest.mark.parametrize("build", [MomentumContrast, TopologyPreservation])
def test_a_module_without_a_pair_is_refused(build: Any, toolbox: SimpleNamespace) -> None:
    strategy = build()
    strategy.attach_reach(SimpleNamespace(module=SimpleNamespace(pair=None)))
    with pytest.raises(ConfigError, match="compares no pair of features"):
        strategy.setup(None)


def test_what_a_batch_lacks_is_named(data: Any) -> None:
    for strategy in (MomentumContrast(queue_size=10), TopologyPreservation(first_task=True)):
        run = data.run(strategy)
        run.begin()
        with pytest.raises(RunError, match="the batch has no text to"):
            run.train_step(data.batch(0))


def test_a_batch_fits_into_the_queue(toolbox: SimpleNamespace) -> None:
    """Of accumulated batches each goes into it by itself."""
    contrast, _ = CTP(queue_size=16).parts()
    task = toolbox.task("one")
    assert not contrast.foresee(task, Batches(64, 16, 2)) and not MomentumContrast(0.0).foresee(
        task, Batches(2048, 2048, 1)
    )
    with pytest.raises(
        ConfigError, match="a batch of 32 pairs does not fit into queues of 16; make `queue_size` larger"
    ):
        contrast.foresee(task, Batches(64, 32, 2))
