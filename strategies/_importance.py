"""What penalties weighted by importance share: the pull, the consolidation, and a pass that measures gradients."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from mmcl import distributed
from mmcl.errors import ConfigError, RunError, near
from mmcl.functional.importance import Rule, consolidate_importance
from mmcl.functional.regularization import ewc_gradients
from mmcl.outputs import Batch
from mmcl.strategy import Batches, DataPass, StepContext, Strategy
from mmcl.stream import Source, Task
from mmcl.weights import leading

logger = logging.getLogger("mmcl")

Estimator = Literal["per_sample", "batch"]
PER = {"per_sample": "sample", "batch": "batch"}


class _QuadraticPenalty(Strategy):
    """scale x weight / 2 x sum importance (theta - anchor)^2 over what trains, as a gradient in phase ``add``.

    Where a tensor has grown since it was consolidated, the penalty acts on its leading part.
    """

    gradients = "add"
    scale: ClassVar[float] = 1.0
    """2 for methods that write their penalty without 1/2."""

    importance: dict[str, Tensor]
    anchor: dict[str, Tensor]
    tasks: int

    def __init__(self, weight: float, rule: Rule = "online", gamma: float = 1.0) -> None:
        super().__init__()
        title = self.title
        if not 0 <= weight < math.inf:
            raise ConfigError(f"{title}: weight is {weight}; a weight is 0 or more")
        if rule not in get_args(Rule):
            raise ConfigError(f"{title}: rule '{rule}' is unknown; {near(rule, get_args(Rule))}")
        if not 0 <= gamma <= 1:
            raise ConfigError(f"{title}: gamma is {gamma}; it must be within 0..1")
        if gamma < 1 and rule != "online":
            raise ConfigError(f"{title}: gamma belongs to rule 'online', not to '{rule}'")
        self.factor, self.rule, self.gamma = self.scale * weight, rule, gamma
        self.holds = weight > 0
        self.add_state("importance", {}, dtype=None)
        self.add_state("anchor", {}, dtype=None)
        self.add_state("tasks", 0)

    def trained(self) -> dict[str, nn.Parameter]:
        """What trains of the network."""
        return {n: p for n, p in self.module.network.named_parameters() if p.requires_grad}

    def on_gradients(self, context: StepContext) -> None:
        if not self.factor:
            return
        trained = self.trained()
        if not trained:
            raise RunError(f"{self.title}: no weight of the network trains, and adapters have no anchor")
        if not self.importance:
            return
        params = {n: p for n, p in trained.items() if n in self.importance}
        older = {name: leading(param, self.anchor[name].shape) for name, param in params.items()}
        anchor, importance = ({name: held[name] for name in params} for held in (self.anchor, self.importance))
        parts = [torch.zeros((), device=next(iter(self.importance.values())).device)]
        for name, part, gradient in ewc_gradients(older, anchor, importance):
            param = params[name]
            param.grad = torch.zeros_like(param) if param.grad is None else param.grad
            leading(param.grad, gradient.shape).add_(gradient.mul_(self.factor).to(param.dtype))
            parts.append(part.float())
        context.log(f"{self.name}/penalty", self.factor * torch.stack(parts).sum())

    def consolidate(self, importance: Mapping[str, Tensor], task: Task) -> None:
        """Take in the importance of a task that has ended, and the weights of now as the anchor."""
        for name, value in importance.items():
            if not torch.isfinite(value).all():
                raise RunError(f"{self.title}: importance of '{name}' in task '{task.name}' is not finite")
        self.importance = consolidate_importance(
            self.importance, importance, rule=self.rule, gamma=self.gamma, count=self.tasks
        )
        params = self.trained()
        self.anchor = {**self.anchor, **{name: params[name].detach().clone() for name in importance}}
        self.tasks += 1


class _MeasuredPenalty(_QuadraticPenalty):
    """A penalty whose importance is a mean over gradients, squared or absolute, in a pass over the task's data.

    Gradients are computed without autocast in the weights' own precision, in evaluation mode. With ``per_sample`` each
    process takes one sample after another; with ``batch`` the gradient of a batch's mean over all processes is one.
    """

    def __init__(
        self, weight: float, estimator: Estimator, limit: int | None, batch_size: int | None, rule: Rule, gamma: float
    ) -> None:
        super().__init__(weight, rule, gamma)
        title = self.title
        if estimator not in get_args(Estimator):
            raise ConfigError(f"{title}: estimator '{estimator}' is unknown; {near(estimator, get_args(Estimator))}")
        for name, value in (("limit", limit), ("batch_size", batch_size)):
            if value is not None and value < 1:
                raise ConfigError(f"{title}: {name} is {value}; it must be 1 or more")
        if batch_size is not None and estimator == "per_sample":
            raise ConfigError(f"{title}: batch_size belongs to the estimator 'batch'")
        self.estimator, self.limit, self.batch_size = estimator, limit, batch_size
        self.reads = frozenset({"samples"} if weight else ())

    def foresee(self, task: Task, batches: Batches) -> Sequence[Source]:
        if self.factor and self.batch_size is not None and self.batch_size % batches.processes:
            raise ConfigError(
                f"{self.title}: batch_size is {self.batch_size}, which does not divide by {batches.processes} "
                f"processes; take a multiple of {batches.processes}"
            )
        return super().foresee(task, batches)

    def values(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What is differentiated, and how many rows or targets of this process take part.

        With ``batch`` it is such that its mean over processes is the batch's; with ``per_sample`` that of the sample.
        """
        raise NotImplementedError

    def magnitude(self, gradient: Tensor) -> Tensor:
        """What is averaged."""
        raise NotImplementedError

    def on_task_end(self, task: Task, data: DataPass) -> None:
        if not self.factor or not self.trained():
            return
        total: dict[str, Tensor] = {}
        count = 0
        for gradients in self._gradients(data):
            count += 1
            for name, gradient in gradients.items():
                value = self.magnitude(gradient.to(torch.promote_types(gradient.dtype, torch.float32)))
                total[name] = total[name] + value if name in total else value
        seen = torch.tensor(float(count))
        if self.estimator == "per_sample":  # each process has seen samples of its own
            seen = distributed.total(seen)
            zeros = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in self.trained().items()}
            total = {name: distributed.total(total.get(name, zero)) for name, zero in zeros.items()}
        if not seen:
            raise RunError(f"{self.title}: task '{task.name}' has no sample to measure")
        self.consolidate({name: value / float(seen) for name, value in total.items()}, task)
        what = f"{int(seen)} gradients, each of a {PER[self.estimator]}"
        logger.info("%s: importance of task '%s' is the mean over %s", self.title, task.name, what)

    def _gradients(self, data: DataPass) -> Iterator[dict[str, Tensor]]:
        named = self.trained()
        alone = self.estimator == "per_sample"
        device = next(iter(named.values())).device.type
        for batch in data(batch_size=distributed.world_size() if alone else self.batch_size, limit=self.limit):
            with torch.enable_grad(), torch.autocast(device, enabled=False):
                value, count = self.values(self.module.objective.prepare(batch))
                found = torch.autograd.grad(value, list(named.values()), allow_unused=True, materialize_grads=True)
            gradients = dict(zip(named, found, strict=True))
            if not alone:
                yield {name: distributed.mean(gradient) for name, gradient in gradients.items()}
            elif count:
                yield gradients


def check_separable(strategy: Strategy) -> None:
    """Refuse the loss of single samples where there is none.

    Raises:
        ConfigError: the module's loss couples the rows of a batch.
    """
    objective = strategy.module.objective
    if objective.coupled:
        title, loss = strategy.title, type(objective).__name__
        raise ConfigError(
            f"{title}: with {loss} no sample has a loss of its own, as each is compared with the others of its batch; "
            "take estimator 'batch'"
        )
