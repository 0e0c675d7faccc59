"""RMT: a mean teacher with symmetric cross-entropy and source prototypes, while testing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import deepcopy
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmcl import distributed, seeds
from mmcl.errors import ConfigError, near
from mmcl.functional.adaptation import nearest_prototypes, symmetric_cross_entropy, view_contrastive_loss
from mmcl.functional.averaging import ema
from mmcl.outputs import ANSWERS, Batch, Forward, Outputs
from mmcl.strategies._test_time import Reset, _Adapter, _Descent
from mmcl.weights import exchanged

PRESETS = {"cifar": _Descent("adam", 1e-3), "imagenet": _Descent("sgd", 0.01, 0.9)}


class RMT(_Adapter):
    """Robust mean teacher (Doebler, Marsden and Yang, CVPR 2023).

    For each batch x with a random view x': loss = target x mean_b [SCE(s(x), t(x)) / 2 + SCE(s(x'), t(x)) / 2] +
    contrastive x L(nearest source prototype, feature of x, feature of x') + source x CE(s(x_src), y_src); the teacher t
    becomes m x t + (1 - m) x s. SCE is the cross-entropy both ways, L contrasts the three projected vectors of each row
    with all others. The answer is s(x) + t(x), both from before the step. Before the first batch student and teacher
    are warmed up on source data by SCE at a linearly rising rate.

    Args:
        preset: values of the published code: ``cifar`` (Adam, 1e-3), ``imagenet`` (SGD, 0.01, momentum 0.9).
        decay: m. The paper's is 0.999.
        alpha: weight of the reverse term of SCE. The published code uses 0.5.
        temperature: of the contrast. The published code uses 0.1.
        projection: size of the projected vectors; the projector's layers are trained by the test data alone.
        target: weight of the self-training.
        contrastive: weight of the contrast.
        source: weight of the replay of source data; 0 replays none.
        warmup: source samples of the warm-up; the published code takes 50,000. 0: none.
        optimizer: ``adam`` or ``sgd``, in place of the preset's.
        lr: in place of the preset's.
        momentum: of ``sgd``, in place of the preset's.
        reset: when weights, teacher, projector and optimizer go back to where the warm-up left them: ``never``, at
            every evaluation ``set``, at every ``batch``.
        source_samples: of each task, for the prototypes; None takes all.

    Raises:
        ConfigError: an argument that cannot be, or tasks without class names.
        RunError: a batch without pictures.

    Differences from the published code: source data are the own data of the tasks so far, read with the training
    transform, and a prototype is the mean feature of one class in one task, under running statistics. The pictures of
    a batch share one draw of a view. Dropout stays off.
    """

    needs = frozenset({"features"})

    def __init__(
        self,
        preset: Literal["cifar", "imagenet"] = "cifar",
        decay: float = 0.999,
        alpha: float = 0.5,
        temperature: float = 0.1,
        projection: int = 128,
        target: float = 1.0,
        contrastive: float = 1.0,
        source: float = 1.0,
        warmup: int = 50_000,
        optimizer: Literal["adam", "sgd"] | None = None,
        lr: float | None = None,
        momentum: float | None = None,
        reset: Reset = "never",
        source_samples: int | None = None,
    ) -> None:
        if preset not in PRESETS:
            raise ConfigError(f"RMT: preset '{preset}' is unknown; {near(preset, PRESETS)}")
        for name, value in (("decay", decay), ("alpha", alpha)):
            if not 0 <= value <= 1:
                raise ConfigError(f"RMT: {name} is {value}; it must be within 0..1")
        for name, value in (("target", target), ("contrastive", contrastive), ("source", source), ("warmup", warmup)):
            if not 0 <= value < math.inf:
                raise ConfigError(f"RMT: {name} is {value}; it must be 0 or more")
        if not 0 < temperature < math.inf or projection < 1:
            raise ConfigError(f"RMT: temperature is {temperature}, projection {projection}; both must be positive")
        descent = PRESETS[preset].changed("RMT", optimizer=optimizer, lr=lr, momentum=momentum)
        super().__init__(descent, reset, source_samples)
        self.decay, self.alpha, self.temperature, self.projection = decay, alpha, temperature, projection
        self.weights_, self.warmup = {"target": target, "contrastive": contrastive, "source": source}, warmup
        self.teacher: dict[str, Tensor] = {}
        self._begun: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})

    def begin(self, next: Forward, batch: Batch) -> None:
        assert self.source is not None and self.optimizer is not None
        self.teacher = self.copies()
        self.prototypes = self._prototypes(next)
        self._projector = [self.make_projector(self.prototypes.shape[1]).to(self.prototypes)]
        self.optimizer.add_param_group({"params": list(self._projector[0].parameters())})
        self._own: Iterator[Batch] = self.source.shuffled()
        self._warm_up(next)
        if self.reset != "never":
            kept = {name: value.clone() for name, value in self.teacher.items()}
            self._begun = kept, deepcopy(self._projector[0].state_dict())

    def restarted(self) -> None:
        self.teacher = {name: value.clone() for name, value in self._begun[0].items()}
        self._projector[0].load_state_dict(self._begun[1])

    def adapt(self, next: Forward, batch: Batch) -> Outputs:
        outputs, valid = self.respond(next, batch), batch["valid"]
        viewed = self.respond(next, self.view(batch, self.chance("view")))
        answers, view_answers = outputs.logits, viewed.logits
        assert answers is not None and view_answers is not None
        teacher = self._taught(next, batch)
        rows = symmetric_cross_entropy(answers, teacher, self.alpha)
        rows = rows / 2 + symmetric_cross_entropy(view_answers, teacher, self.alpha) / 2
        loss = self.weights_["target"] * self.mean(rows, valid)
        if self.weights_["contrastive"]:
            loss = loss + self.weights_["contrastive"] * self._contrast(outputs, viewed, valid)
        if self.weights_["source"]:
            loss = loss + self.weights_["source"] * self._replayed(next)
        self.descend(loss, list(self._projector[0].parameters()))
        ema(self.teacher, {n: p.detach() for n, p in self.parameters_.items()}, decay=self.decay)
        outputs.logits = answers.detach() + teacher
        return outputs

    def make_projector(self, size: int) -> nn.Module:
        """Two layers, random: a function of the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seeds.mix(self.reach.seed, "projector", self.name))
            layers = nn.Linear(size, self.projection), nn.ReLU(), nn.Linear(self.projection, self.projection)
        return nn.Sequential(*layers)

    @torch.no_grad()
    def _taught(self, next: Forward, batch: Batch) -> Tensor:
        with exchanged(self.module.network, self.teacher):
            return self.logits(next, batch)

    def _contrast(self, outputs: Outputs, viewed: Outputs, valid: Tensor) -> Tensor:
        """This process's part of the contrast among the rows of all."""
        found = [self._feature(outputs), self._feature(viewed)]
        found = [feature.to(self.prototypes.dtype) for feature in found]
        views = torch.stack([nearest_prototypes(found[0], self.prototypes), *found], dim=1)
        views = distributed.gather(self._projector[0](views))
        loss = view_contrastive_loss(views, valid=distributed.gather(valid), temperature=self.temperature)
        return loss / distributed.world_size()

    def _replayed(self, next: Forward) -> Tensor:
        batch = self._batch()
        logits = self.logits(next, batch)
        places = batch[ANSWERS].places(batch["labels"])
        rows = F.cross_entropy(_wide(logits), places.clamp(min=0), reduction="none")
        return self.mean(rows, batch["valid"] & (places >= 0))

    def _warm_up(self, next: Forward) -> None:
        assert self.optimizer is not None
        done, begun = 0, [group["lr"] for group in self.optimizer.param_groups]
        while done < self.warmup:
            batch = self._batch()
            done += len(batch["valid"]) * distributed.world_size()
            for group, lr in zip(self.optimizer.param_groups, begun, strict=True):
                group["lr"] = lr * min(done / self.warmup, 1.0)
            rows = symmetric_cross_entropy(self.logits(next, batch), self._taught(next, batch), self.alpha)
            self.descend(self.mean(rows, batch["valid"]))
            ema(self.teacher, {n: p.detach() for n, p in self.parameters_.items()}, decay=self.decay)
        for group, lr in zip(self.optimizer.param_groups, begun, strict=True):
            group["lr"] = lr

    @torch.no_grad()
    def _prototypes(self, next: Forward) -> Tensor:
        """(P, D) mean features of the classes of each task, in their order."""
        assert self.source is not None
        sums: dict[int, Tensor] = {}
        counts: dict[int, Tensor] = {}
        for batch in self.source.once(self.source_samples):
            features = _wide(self._feature(next(batch)))
            task = int(batch["domain"][0])
            classes = len(self.stream.tasks[task].class_names or ())
            sums.setdefault(task, features.new_zeros(classes, features.shape[1]))
            counts.setdefault(task, features.new_zeros(classes))
            labels, valid = batch["labels"], batch["valid"] & (batch["labels"] >= 0)
            sums[task].index_add_(0, labels[valid], features[valid])
            counts[task] += torch.bincount(labels[valid], minlength=classes)
        total = [(distributed.total(sums[task]), distributed.total(counts[task])[:, None]) for task in sorted(sums)]
        return torch.cat([(sum_ / count)[count[:, 0] > 0] for sum_, count in total])

    def _batch(self) -> Batch:
        return next(self._own)

    def _feature(self, outputs: Outputs) -> Tensor:
        pair = self.module.pair
        return outputs.features[pair[0]] if pair else next(iter(outputs.features.values()))


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
