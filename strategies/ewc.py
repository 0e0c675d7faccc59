"""Elastic weight consolidation: weights that mattered to earlier tasks are held by their Fisher information."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcl.functional.importance import Rule
from mmcl.outputs import Batch
from mmcl.strategies._importance import Estimator, _MeasuredPenalty, check_separable
from mmcl.stream import Stream


class EWC(_MeasuredPenalty):
    """Elastic weight consolidation (Kirkpatrick et al., PNAS 2017), online (Schwarz et al., ICML 2018).

    penalty = weight / 2 x sum F (theta - theta*)^2, theta* the weights at the end of the last task. When a task ends,
    its F_t is measured on its own data with the module's own loss, by the task's labels (the empirical Fisher
    information), and F <- gamma F + F_t.

    Args:
        weight: lambda. FoMo-in-Flux has 1, CTP 5000, TRACE 400, MagMax 1e6: it depends on the loss, the estimator and
            the number of tasks.
        estimator: ``per_sample``, the mean of the samples' squared gradients, or ``batch``, the mean of the squared
            gradients of batches (FoMo-in-Flux, CTP), which is smaller by up to the batch size: a weight for one is
            none for the other. A loss that compares the samples of a batch with one another, as a contrastive one,
            has only the second.
        limit: samples of a task that are looked at, a fixed choice; None takes all. FoMo-in-Flux takes up to 50,000.
        batch_size: of the estimator ``batch``, over all processes; None takes what training has in memory at a time.
        rule: how tasks are joined: ``online``, ``mean`` (CTP) or ``halves`` (MagMax), see
            `mmcl.functional.importance.consolidate_importance`.
        gamma: of ``online``. 1 sums up the tasks.

    Raises:
        ConfigError: an argument is out of range, or ``per_sample`` meets a loss that couples samples.

    Differences from the published code: one anchor, the newest, where the first paper keeps one for each task. FoMo's
    pass divides by the logit scale without its exponential, MagMax's takes predicted labels and adds up gradients over
    batches, CTP's leaves each process its own F; here the loss is the one that trains, and gradients are averaged over
    processes before the square. The penalty is no part of the loss; F and gradients are float32 or wider, without
    autocast.
    """

    def __init__(
        self,
        weight: float = 1.0,
        estimator: Estimator = "batch",
        limit: int | None = 50_000,
        batch_size: int | None = None,
        rule: Rule = "online",
        gamma: float = 1.0,
    ) -> None:
        super().__init__(weight, estimator, limit, batch_size, rule, gamma)

    def setup(self, stream: Stream) -> None:
        if self.factor and self.estimator == "per_sample":
            check_separable(self)

    def values(self, batch: Batch) -> tuple[Tensor, Tensor]:
        outputs = self.wrapped(batch)
        loss = torch.stack(list(self.module.loss(outputs, batch).values())).sum()
        counted: Tensor | None = self.module.objective.counted(outputs, batch)
        if counted is None:
            return loss, batch["valid"].any().float()
        count = counted.sum().float()
        if self.estimator == "per_sample":  # the mean over all processes becomes that of this process's sample
            loss = loss * (self.reduce(count) / count.clamp(min=1))
        return loss, count

    def magnitude(self, gradient: Tensor) -> Tensor:
        return gradient.square()
