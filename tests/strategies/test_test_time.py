"""TENT, CoTTA and RMT through their classes: the reference trajectories, padding, resets, batch norms."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bench import Bench, Classes, network
from torch import Tensor, nn
from torch.nn import functional as F

from mmcl.batch_norm import affine_parameters
from mmcl.errors import ConfigError, RunError
from mmcl.functional import consistency_loss, symmetric_cross_entropy, view_contrastive_loss
from mmcl.functional.augmentation import random_view
from mmcl.outputs import ANSWERS, Batch
from mmcl.strategies import RMT, TENT, BatchNormStatistics, CoTTA

PARITY = Path(__file__).resolve().parent.parent / "parity"
EXACT = {"rtol": 1e-9, "atol": 1e-11}


def arrays(name: str) -> dict[str, Tensor]:
    return {key: torch.from_numpy(v) for key, v in np.load(PARITY / name).items() if v.dtype.kind != "U"}


def part(data: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in data.items() if k.startswith(prefix)}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor], **tolerance: float) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, **(tolerance or EXACT), msg=lambda m, n=name: f"{n}: {m}")


def loaded(data: dict[str, Tensor]) -> nn.Sequential:
    net = network()
    net.load_state_dict(part(data, "param."))
    return net


def test_tent_walks_as_the_reference_code() -> None:
    data = arrays("tent/three_steps_sgd.npz")
    bench = Bench(TENT(optimizer="sgd", lr=float(data["lr"]), momentum=0.9, reset="set"), loaded(data))
    names = np.load(PARITY / "tent/three_steps_sgd.npz")["adapted_names"]
    assert sorted(affine_parameters(bench.network)) == sorted(names.tolist())
    for step in range(3):
        outputs = bench.step(data[f"step{step}.x"])
        torch.testing.assert_close(outputs, data[f"step{step}.outputs"], **EXACT)
        assert_same(bench.weights(), part(data, f"step{step}.after."))
    bench.next_set()  # the weights and the momentum go back
    assert_same(bench.weights(), part(data, "reset."), rtol=0, atol=0)
    torch.testing.assert_close(bench.step(data["step0.x"]), data["step0.outputs"], **EXACT)
    assert_same(bench.weights(), part(data, "step0.after."))


class GivenMasks(CoTTA):
    """CoTTA with the masks of the trajectory."""

    masks: dict[str, Tensor]

    def draw_mask(self, name: str, parameter: nn.Parameter, chance: torch.Generator) -> Tensor:
        return self.masks[f"step{self.step}.mask.{name}"]


def test_cotta_walks_as_the_reference_code() -> None:
    data = arrays("cotta/two_steps_cifar_noaug_sgd.npz")
    strategy = GivenMasks(
        threshold=float(data["threshold"]),
        restore=float(data["restore_prob"]),
        decay=float(data["teacher_momentum"]),
        optimizer="sgd",
        lr=float(data["lr"]),
        momentum=0.0,
    )
    strategy.masks = data
    bench = Bench(strategy, loaded(data))
    for step in range(2):
        output = bench.step(data[f"step{step}.x"])
        torch.testing.assert_close(output, data[f"step{step}.output"], **EXACT)
        assert_same(bench.weights(), part(data, f"step{step}.student_after_restore."))
        assert_same(strategy.teacher, part(data, f"step{step}.teacher_after_ema."))


class GivenViews(CoTTA):
    """CoTTA whose n-th view of a batch is the picture times 1 + n / 10."""

    def view(self, batch: Batch, generator: torch.Generator) -> Batch:
        self.made = getattr(self, "made", 0) + 1
        return {**batch, "image": batch["image"] * (1 + self.made / 10)}


def by_batch(net: nn.Sequential, image: Tensor) -> Tensor:
    """Logits with torch's own batch statistics."""
    alike = deepcopy(net).train()
    found: Tensor = torch.func.functional_call(alike, dict(net.named_parameters()), (image,))
    return found


@pytest.mark.parametrize("symmetric", [False, True])
def test_cotta_averages_views_where_the_source_is_unsure(symmetric: bool) -> None:
    """Against a plain loop of the card: two steps, views always used, no restoration."""
    student, teacher = network(), network()
    strategy = GivenViews(
        threshold=1.1, views=3, restore=0.0, decay=0.8, optimizer="sgd", lr=0.05, momentum=0.0, symmetric=symmetric
    )
    bench = Bench(strategy)
    made = 0
    for seed in range(2):
        image = torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            answers = [by_batch(teacher, image * (1 + (made + n) / 10)) for n in (1, 2, 3)]
        made += 3
        answer = torch.stack(answers).mean(dim=0)
        logits = by_batch(student, image)
        rows = consistency_loss(logits, answer)
        if symmetric:
            rows = rows / 2 + consistency_loss(answer, logits) / 2
        grads = torch.autograd.grad(rows.mean(), list(student.parameters()))
        with torch.no_grad():
            for p, t, g in zip(student.parameters(), teacher.parameters(), grads, strict=True):
                p -= 0.05 * g
                t.copy_(0.8 * t + 0.2 * p)
        torch.testing.assert_close(bench.step(image), answer, **EXACT)
        assert_same(bench.weights(), dict(student.named_parameters()))
        assert_same(strategy.teacher, dict(teacher.named_parameters()))


def test_cotta_restores_about_the_share_that_it_says() -> None:
    strategy = CoTTA(threshold=1.1, views=2, restore=0.25, optimizer="sgd", lr=0.5, momentum=0.0)
    bench = Bench(strategy)
    before = bench.weights()
    bench.step(torch.randn(4, 3, 8, 8, dtype=torch.float64))
    same = torch.cat([(value == before[name]).flatten() for name, value in bench.weights().items()])
    assert 0.15 < float(same.double().mean()) < 0.35
    assert all(not torch.equal(strategy.teacher[name], before[name]) for name in ("0.weight", "8.weight"))


def test_cotta_asks_the_source_model_whether_it_is_sure() -> None:
    image = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    sure = float(by_batch(network(), image).detach().softmax(dim=1).amax(dim=1).mean())
    for threshold, made in ((sure - 1e-6, 0), (sure + 1e-6, 4)):
        strategy = GivenViews(threshold=threshold, views=2, lr=0.0, restore=0.0)
        bench = Bench(strategy)
        bench.step(image)
        with torch.no_grad():
            bench.network[-1].weight.mul_(0.0 if made == 0 else 100.0)  # what has become of the student
        bench.step(image)
        assert getattr(strategy, "made", 0) == made


def test_cotta_takes_its_threshold_from_the_source() -> None:
    pictures = torch.randn(12, 3, 8, 8, dtype=torch.float64)

    class Own:
        def once(self, limit: int | None = None) -> Iterator[Batch]:
            for rows in pictures.split(5):
                yield {"image": rows, "valid": torch.ones(len(rows), dtype=torch.bool), ANSWERS: Classes()}

    strategy = CoTTA(threshold="source")
    bench = Bench(strategy, source=Own())
    bench.step(torch.randn(4, 3, 8, 8, dtype=torch.float64))
    confidence = network()(pictures).softmax(dim=1).amax(dim=1)
    assert strategy.unsure_below == pytest.approx(confidence.quantile(0.05).item() - 0.05, abs=1e-6)


class Prototypes:
    """Source data of five classes for RMT."""

    def __init__(self) -> None:
        chance = torch.Generator().manual_seed(9)
        self.pictures = torch.randn(10, 3, 8, 8, dtype=torch.float64, generator=chance)
        self.labels = torch.arange(10) % 5

    def once(self, limit: int | None = None) -> Iterator[Batch]:
        yield self._batch(slice(0, 10))

    def shuffled(self) -> Iterator[Batch]:
        while True:
            yield self._batch(slice(0, 4))
            yield self._batch(slice(4, 8))

    def _batch(self, rows: slice) -> Batch:
        labels = self.labels[rows]
        valid = torch.ones(len(labels), dtype=torch.bool)
        domain = torch.zeros_like(labels)
        return {"image": self.pictures[rows], "labels": labels, "valid": valid, "domain": domain, ANSWERS: Classes()}


class Doubled(RMT):
    """RMT whose view of a batch is twice its pictures, and whose projector is given."""

    given: nn.Module

    def view(self, batch: Batch, generator: torch.Generator) -> Batch:
        return {**batch, "image": 2 * batch["image"]}

    def make_projector(self, size: int) -> nn.Module:
        return deepcopy(self.given)


def test_rmt_steps_as_its_formula_says() -> None:
    """Warm-up over two batches and two steps, against a plain loop of the card."""
    source = Prototypes()
    projector = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 4)).double()
    factors = {"target": 0.7, "contrastive": 1.3, "source": 0.6, "alpha": 0.4, "temperature": 0.2}
    strategy = Doubled(decay=0.8, warmup=8, optimizer="sgd", lr=0.1, momentum=0.0, **factors)
    strategy.given = projector
    bench = Bench(strategy, source=source)
    student, teacher = network(), network()
    with torch.no_grad():
        features = student[:-1](source.pictures)
        prototypes = torch.stack([features[source.labels == label].mean(dim=0) for label in range(5)])
    own = source.shuffled()
    mine = deepcopy(projector)

    def descend(loss: Tensor, lr: float) -> None:
        trained = [*student.parameters(), *mine.parameters()]
        grads = torch.autograd.grad(loss, trained, allow_unused=True)
        with torch.no_grad():
            for p, g in zip(trained, grads, strict=True):
                p -= 0.0 if g is None else lr * g
            for p, t in zip(student.parameters(), teacher.parameters(), strict=True):
                t.copy_(0.8 * t + 0.2 * p)

    for i in range(2):
        batch = next(own)
        with torch.no_grad():
            target = by_batch(teacher, batch["image"])
        descend(symmetric_cross_entropy(by_batch(student, batch["image"]), target, 0.4).mean(), 0.1 * (i + 1) / 2)
    for seed in range(2):
        image = torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            answer = by_batch(teacher, image)
        seen, seen_view = (by_batch(nn.Sequential(*student[:-1]), x) for x in (image, 2 * image))
        logits, view_logits = student[-1](seen), student[-1](seen_view)
        rows = [symmetric_cross_entropy(x, answer, 0.4) for x in (logits, view_logits)]
        cosine = F.normalize(seen.detach(), dim=1) @ F.normalize(prototypes, dim=1).T
        triple = torch.stack([prototypes[cosine.argmax(dim=1)], seen, seen_view], dim=1)
        batch = next(own)
        replay = F.cross_entropy(by_batch(student, batch["image"]), batch["labels"])
        contrast = view_contrastive_loss(mine(triple), temperature=0.2)
        loss = 0.7 * (rows[0] / 2 + rows[1] / 2).mean() + 1.3 * contrast + 0.6 * replay
        wanted = logits.detach() + answer
        descend(loss, 0.1)
        torch.testing.assert_close(bench.step(image), wanted, **EXACT)
        assert_same(bench.weights(), dict(student.named_parameters()))


BUILDS: list[Any] = [
    lambda: TENT(optimizer="sgd", lr=0.1),
    lambda: CoTTA(threshold=1.1, views=2, optimizer="sgd", lr=0.1, restore=0.2),
    lambda: RMT(optimizer="sgd", lr=0.1, warmup=8),
    BatchNormStatistics,
]


@pytest.mark.parametrize("build", BUILDS)
def test_padding_adapts_nothing(build: Any) -> None:
    image = torch.rand(5, 3, 8, 8, dtype=torch.float64)
    filled = torch.cat([image, 9 * torch.rand(3, 3, 8, 8, dtype=torch.float64)])
    valid = torch.tensor([True] * 5 + [False] * 3)
    plain, padded = Bench(build(), source=Prototypes()), Bench(build(), source=Prototypes())
    for _ in range(2):
        torch.testing.assert_close(padded.step(filled, valid)[:5], plain.step(image), rtol=1e-7, atol=1e-9)
    assert_same(padded.weights(), plain.weights(), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("build", BUILDS[:3])
@pytest.mark.parametrize("reset", ["never", "set", "batch"])
def test_resets_bring_back_where_it_began(build: Any, reset: str) -> None:
    images = torch.rand(3, 6, 3, 8, 8, dtype=torch.float64)
    strategy = build()
    strategy.reset = reset
    bench = Bench(strategy, source=Prototypes())
    first = bench.step(images[0])
    bench.step(images[1])
    bench.next_set()
    strategy.position = 0  # the same random numbers as for the first set
    again = bench.step(images[0])
    if isinstance(strategy, RMT) and reset == "never":
        assert not torch.allclose(first, again)
        return
    assert torch.equal(first, again) == (reset != "never")


def test_a_reset_between_batches_makes_them_independent() -> None:
    images = torch.rand(2, 6, 3, 8, 8, dtype=torch.float64)
    alone = Bench(TENT(lr=0.1, steps=2, reset="batch")).step(images[1])
    bench = Bench(TENT(lr=0.1, steps=2, reset="batch"))
    bench.step(images[0])
    assert torch.equal(bench.step(images[1]), alone)


def test_tent_takes_as_many_steps_as_it_is_told() -> None:
    image = torch.randn(6, 3, 8, 8, dtype=torch.float64)
    twice, once = (Bench(TENT(optimizer="sgd", lr=0.1, steps=steps)) for steps in (2, 1))
    once.step(image)
    assert torch.equal(twice.step(image), once.step(image))
    assert_same(twice.weights(), once.weights(), rtol=0, atol=0)


def test_views_are_of_pixels_whatever_the_normalisation() -> None:
    bench, pixels = Bench(CoTTA()), torch.rand(2, 3, 8, 8)
    bench.strategy.module.pixel_statistics = ((0.5,) * 3, (0.25,) * 3)
    found = bench.strategy.view({"image": (pixels - 0.5) / 0.25}, torch.Generator().manual_seed(1))["image"]
    wanted = (random_view(pixels, torch.Generator().manual_seed(1)) - 0.5) / 0.25
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_each_batch_of_each_set_has_random_numbers_of_its_own() -> None:
    strategy, places = CoTTA(), [(0, 0), (0, 1), (1, 0), (0, 0)]
    Bench(strategy)
    drawn = []
    for strategy.position, strategy.step in places:
        drawn.append(float(torch.rand((), generator=strategy.chance("restore"))))
    assert len(set(drawn[:3])) == 3 and drawn[3] == drawn[0]


def test_source_statistics_count_as_many_samples_as_they_are_told() -> None:
    image = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    for prior, wanted in ((1e12, network()(image)), (0.0, by_batch(network(), image))):
        torch.testing.assert_close(Bench(BatchNormStatistics(prior)).step(image), wanted.detach(), rtol=1e-6, atol=1e-9)


def test_layer_norms_adapt_too() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)).double()
    bench = Bench(TENT(optimizer="sgd", lr=0.5), net)
    before = bench.weights()
    bench.step(torch.randn(5, 4, dtype=torch.float64))
    moved = {name for name, value in bench.weights().items() if not torch.equal(value, before[name])}
    assert moved == {"1.weight", "1.bias"}


def test_what_cannot_be_is_refused() -> None:
    bare = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).double()
    for build, words in (
        (lambda: TENT(preset="cifr"), "preset 'cifr' is unknown; did you mean cifar"),  # type: ignore[arg-type]
        (lambda: TENT(reset="sometimes"), "reset 'sometimes' is unknown"),  # type: ignore[arg-type]
        (lambda: TENT(steps=0), "steps is 0"),
        (lambda: TENT(optimizer="lion"), "optimizer 'lion' is unknown"),  # type: ignore[arg-type]
        (lambda: CoTTA(restore=2.0), "restore is 2.0"),
        (lambda: CoTTA(threshold="data"), "threshold 'data'"),  # type: ignore[arg-type]
        (lambda: RMT(alpha=-1.0), "alpha is -1.0"),
        (lambda: RMT(temperature=0.0), "temperature"),
        (lambda: BatchNormStatistics(-1.0), "prior is -1.0"),
        (lambda: Bench(TENT(), bare), "the network has none"),
        (lambda: Bench(BatchNormStatistics(), bare), "no batch norms"),
    ):
        with pytest.raises(ConfigError, match=words):
            build()


def test_a_loss_that_is_not_finite_stops_the_test() -> None:
    bench = Bench(TENT())
    with pytest.raises(RunError, match="the loss is nan at batch 0 of evaluation set 0"):
        bench.step(torch.full((4, 3, 8, 8), torch.nan, dtype=torch.float64))
