"""CoTTA: a weight-averaged teacher, averaged over views, and random restoration, while testing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mmcl import distributed
from mmcl.errors import ConfigError, near
from mmcl.functional.adaptation import consistency_loss, stochastic_restore, symmetric_cross_entropy
from mmcl.functional.averaging import ema
from mmcl.outputs import Batch, Forward, Outputs
from mmcl.strategies._test_time import Reset, _Adapter, _Descent
from mmcl.weights import exchanged

QUANTILE, MARGIN = 0.05, 0.05


@dataclass(frozen=True)
class _Preset:
    descent: _Descent
    threshold: float
    restore: float
    symmetric: bool


PRESETS = {
    "cifar10": _Preset(_Descent("adam", 1e-3), 0.92, 0.01, False),
    "cifar100": _Preset(_Descent("adam", 1e-3), 0.72, 0.01, False),
    "imagenet": _Preset(_Descent("sgd", 0.01, 0.9), 0.1, 0.001, True),
}


class CoTTA(_Adapter):
    """Continual test-time domain adaptation (Wang et al., CVPR 2022).

    For each batch x: the teacher's logits t are those on x, or their mean over `views` random views of x where the
    source model is unsure of x (mean over the batch of its largest probability below p_th). The student takes a
    gradient step on mean_b -sum_c softmax(t)_c log softmax(s)_c; the teacher becomes m x teacher + (1 - m) x student;
    each weight of the student goes back to its source value with probability p. The answer is t.

    Args:
        preset: values of the published code: ``cifar10``, ``cifar100`` (Adam, 1e-3, p 0.01, p_th 0.92 and 0.72),
            ``imagenet`` (SGD, 0.01, momentum 0.9, p 0.001, p_th 0.1, half of the loss the other way round).
        threshold: p_th, in place of the preset's. ``source`` is the authors' rule: the 5 % quantile of the source
            model's confidence on the tasks' own data, minus 0.05.
        restore: p, in place of the preset's.
        decay: m. The paper's is 0.999.
        views: the published code makes 32.
        symmetric: whether half of the loss is -sum_c softmax(s)_c log softmax(t)_c, in place of the preset's.
        optimizer: ``adam`` or ``sgd``, in place of the preset's.
        lr: in place of the preset's.
        momentum: of ``sgd``, in place of the preset's.
        reset: when weights, teacher and optimizer go back to the source: ``never``, at every evaluation ``set``, at
            every ``batch``.
        source_samples: of each task, for ``threshold: source``; None takes all.

    Raises:
        ConfigError: an argument that cannot be.
        RunError: views of a batch without pictures; `threshold: 0` makes none.

    Differences from the published code: every parameter adapts and is restored, also those that are neither a `weight`
    nor a `bias`. Views are computed only where they are used. The pictures of a batch share one draw of a view, its
    noise included. Views are made of pixels in 0..1 whatever the model's normalisation. Dropout stays off.
    """

    def __init__(
        self,
        preset: Literal["cifar10", "cifar100", "imagenet"] = "cifar10",
        threshold: float | Literal["source"] | None = None,
        restore: float | None = None,
        decay: float = 0.999,
        views: int = 32,
        symmetric: bool | None = None,
        optimizer: Literal["adam", "sgd"] | None = None,
        lr: float | None = None,
        momentum: float | None = None,
        reset: Reset = "never",
        source_samples: int | None = None,
    ) -> None:
        if preset not in PRESETS:
            raise ConfigError(f"CoTTA: preset '{preset}' is unknown; {near(preset, PRESETS)}")
        values = PRESETS[preset]
        restore = values.restore if restore is None else restore
        for name, value in (("restore", restore), ("decay", decay)):
            if not 0 <= value <= 1:
                raise ConfigError(f"CoTTA: {name} is {value}; it must be within 0..1")
        usable = threshold in (None, "source") if not isinstance(threshold, float | int) else 0 <= threshold < math.inf
        if views < 1 or not usable:
            raise ConfigError(
                f"CoTTA: views is {views}, threshold {threshold!r}; give 1 or more, and a number (0 or more) or source"
            )
        descent = values.descent.changed("CoTTA", optimizer=optimizer, lr=lr, momentum=momentum)
        super().__init__(descent, reset, source_samples)
        self.threshold = values.threshold if threshold is None else threshold
        self.name = "cotta"
        self.restore, self.decay, self.views = restore, decay, views
        self.symmetric = values.symmetric if symmetric is None else symmetric
        self.unsure_below = 0.0
        self.teacher: dict[str, Tensor] = {}

    def begin(self, next: Forward, batch: Batch) -> None:
        self.restarted()
        if isinstance(self.threshold, float | int):
            self.unsure_below = float(self.threshold)
            return
        assert self.source is not None
        found = []
        with torch.no_grad():
            for own in self.source.once(self.source_samples):
                answers = next(own).logits  # by running statistics: the order of the data is not a test's
                assert answers is not None
                found.append(_confidence(answers)[own["valid"]].float())
        self.unsure_below = float(distributed.gather(torch.cat(found)).quantile(QUANTILE)) - MARGIN

    def restarted(self) -> None:
        self.teacher = self.copies()

    def adapt(self, next: Forward, batch: Batch) -> Outputs:
        student = self.respond(next, batch)
        assert student.logits is not None
        answer = self._answer(next, batch)
        loss = symmetric_cross_entropy if self.symmetric else consistency_loss
        self.descend(self.mean(loss(student.logits, answer), batch["valid"]))
        with torch.no_grad():
            ema(self.teacher, {n: p.detach() for n, p in self.parameters_.items()}, decay=self.decay)
            device = str(answer.device)
            chance = self.chance("restore", device=device)
            for name, parameter in self.parameters_.items():
                mask = self.draw_mask(name, parameter, chance)
                parameter.copy_(stochastic_restore(parameter, self.kept[name], mask))
        student.logits = answer
        return student

    def draw_mask(self, name: str, parameter: nn.Parameter, chance: torch.Generator) -> Tensor:
        """Where a parameter goes back to its source value."""
        return torch.rand(parameter.shape, generator=chance, device=parameter.device) < self.restore

    @torch.no_grad()
    def _answer(self, next: Forward, batch: Batch) -> Tensor:
        """The teacher's logits, averaged over views where the source model is unsure."""
        network = self.module.network
        with exchanged(network, self.kept):
            sure = distributed.total(self.mean(_confidence(self.logits(next, batch)), batch["valid"]))
        with exchanged(network, self.teacher):
            if float(sure) >= self.unsure_below:
                return self.logits(next, batch)
            total = torch.zeros(())
            for number in range(self.views):
                total = self.logits(next, self.view(batch, self.chance("view", number))) + total
            return total / self.views


def _confidence(logits: Tensor) -> Tensor:
    return logits.softmax(dim=-1).amax(dim=-1)
