"""What strategies that adapt at test share: resets, the optimizer, gradients over all processes, views of pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from mmcl import distributed, seeds
from mmcl.batch_norm import batch_statistics
from mmcl.errors import ConfigError, RunError, near
from mmcl.functional.augmentation import random_view
from mmcl.outputs import ANSWERS, Batch, Forward, Outputs, SourcePass
from mmcl.strategy import StepContext, Strategy
from mmcl.stream import EvalSet

Reset = Literal["never", "set", "batch"]


@dataclass(frozen=True)
class _Descent:
    """An optimizer of its own: ``adam`` with betas 0.9 and 0.999, or ``sgd``; no weight decay."""

    optimizer: Literal["adam", "sgd"]
    lr: float
    momentum: float = 0.0

    def changed(self, where: str, **given: Any) -> _Descent:
        """With other values where they are not None.

        Raises:
            ConfigError: a value that cannot be.
        """
        found = _Descent(**{**vars(self), **{name: value for name, value in given.items() if value is not None}})
        if found.optimizer not in ("adam", "sgd"):
            raise ConfigError(f"{where}: optimizer '{found.optimizer}' is unknown; {near('', ('adam', 'sgd'))}")
        if not (0 <= found.lr < math.inf and 0 <= found.momentum < 1):
            raise ConfigError(f"{where}: lr is {found.lr}, momentum {found.momentum}; lr is 0 or more, momentum 0..1")
        return found

    def build(self, parameters: list[nn.Parameter]) -> Optimizer:
        """Over the parameters."""
        return Adam(parameters, self.lr) if self.optimizer == "adam" else SGD(parameters, self.lr, self.momentum)


class _Adapter(Strategy):
    """Base class: a subclass says what adapts (`chosen`) and what a batch does (`adapt`).

    All of it lives from the start of a test to its end; nothing is saved, and the runner puts the trained weights back.
    """

    adapts_at_test = True

    def __init__(self, descent: _Descent, reset: Reset, source_samples: int | None = None) -> None:
        super().__init__()
        if source_samples is not None and source_samples < 1:
            raise ConfigError(f"{type(self).__name__}: source_samples is {source_samples}; it must be 1 or more")
        if reset not in get_args(Reset):
            raise ConfigError(f"{type(self).__name__}: reset '{reset}' is unknown; {near(reset, get_args(Reset))}")
        self.descent, self.reset, self.source_samples = descent, reset, source_samples
        self.position = self.step = 0
        self.parameters_: dict[str, nn.Parameter] = {}
        self.kept: dict[str, Tensor] = {}
        self.source: SourcePass | None = None
        self.optimizer: Optimizer | None = None
        self._fresh = True

    # -- what a subclass brings -------------------------------------------------------------------------------------

    def chosen(self, network: nn.Module) -> Mapping[str, nn.Parameter]:
        """The parameters that adapt, by their raw names: all of them."""
        return dict(network.named_parameters())

    def adapt(self, next: Forward, batch: Batch) -> Outputs:
        """Answer a batch and learn of it."""
        raise NotImplementedError

    def begin(self, next: Forward, batch: Batch) -> None:
        """At the first batch of a test, with the trained weights in place."""

    def restarted(self) -> None:
        """After the weights went back to where they began."""

    # -- hooks ------------------------------------------------------------------------------------------------------

    def on_evalset_start(self, evalset: EvalSet, position: int, source: SourcePass) -> None:
        self.position, self.step = position, 0
        if position == 0:
            self.source = source
            network = self.module.network
            self.parameters_ = dict(self.chosen(network))
            network.requires_grad_(False)
            for parameter in self.parameters_.values():
                parameter.requires_grad_(True)
            self.optimizer = self.descent.build(list(self.parameters_.values())) if self.parameters_ else None
            self._fresh = True
        elif self.reset == "set":
            self._restart()

    def wrap_forward(self, next: Forward, batch: Batch, context: StepContext) -> Outputs:
        if ANSWERS not in batch:
            return next(batch)
        with torch.enable_grad():
            if self._fresh:
                self._fresh = False
                self.begin(next, batch)
                self._keep()
            elif self.reset == "batch":
                self._restart()
            outputs = self.adapt(next, batch)
        self.step += 1
        return outputs

    # -- tools ------------------------------------------------------------------------------------------------------

    def respond(self, next: Forward, batch: Batch) -> Outputs:
        """Outputs with batch norms that go by this batch."""
        with batch_statistics(self.module.network, batch["valid"]):
            return next(batch)

    def logits(self, next: Forward, batch: Batch) -> Tensor:
        """Answers with batch norms that go by this batch."""
        found = self.respond(next, batch).logits
        assert found is not None
        return found

    def mean(self, rows: Tensor, valid: Tensor) -> Tensor:
        """This process's part of the mean over the valid rows of all; the parts add up to it."""
        count = distributed.total(valid.sum().to(rows.dtype))
        return rows.masked_fill(~valid, 0.0).sum() / count.clamp(min=1)

    def descend(self, loss: Tensor, others: list[nn.Parameter] | None = None) -> None:
        """One step of the optimizer on the sum of all processes' losses.

        Raises:
            RunError: the loss is not finite.
        """
        assert self.optimizer is not None
        whole = float(distributed.total(loss.detach().float()))
        if not torch.isfinite(torch.tensor(whole)):
            raise RunError(
                f"{type(self).__name__}: the loss is {whole} at batch {self.step} of evaluation set {self.position}; "
                "take a lower lr, or reset: set"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        grads = [p.grad for p in [*self.parameters_.values(), *(others or [])] if p.grad is not None]
        if distributed.world_size() > 1 and grads:
            flat = distributed.total(torch.cat([grad.flatten() for grad in grads]))
            for grad, part in zip(grads, torch.split(flat, [grad.numel() for grad in grads]), strict=True):
                grad.copy_(part.view_as(grad))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def copies(self) -> dict[str, Tensor]:
        """Copies of what adapts, in float32 or wider."""
        return {n: p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True) for n, p in self._named()}

    def chance(self, *place: Any, device: str = "cpu") -> torch.Generator:
        """Random numbers that are a function of the seed, the evaluation set and the batch, equal on all processes."""
        return seeds.generator(self.reach.seed, "adapt", self.name, self.position, self.step, *place, device=device)

    def view(self, batch: Batch, generator: torch.Generator) -> Batch:
        """A batch with one random view of its pictures.

        Raises:
            RunError: it has no pictures.
        """
        statistics = self.module.pixel_statistics
        if statistics is None or "image" not in batch:
            raise RunError(f"{type(self).__name__} makes views of pictures, and the batch has none")
        image: Tensor = batch["image"]
        mean, std = (torch.tensor(list(s), device=image.device).to(image).reshape(1, -1, 1, 1) for s in statistics)
        return {**batch, "image": (random_view(image * std + mean, generator) - mean) / std}

    def _named(self) -> list[tuple[str, nn.Parameter]]:
        return list(self.parameters_.items())

    def _keep(self) -> None:
        self.kept = {name: parameter.detach().clone() for name, parameter in self._named()}
        self._state = None if self.optimizer is None else deepcopy(self.optimizer.state_dict())

    @torch.no_grad()
    def _restart(self) -> None:
        if self._fresh:  # no batch of an earlier set has adapted anything
            return
        for name, parameter in self._named():
            parameter.copy_(self.kept[name])
        if self.optimizer is not None and self._state is not None:
            self.optimizer.load_state_dict(deepcopy(self._state))
        self.restarted()
