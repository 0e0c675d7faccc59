"""Memory aware synapses: weights are held by how much the model's answers depend on them."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from mmcl.errors import ConfigError, RunError, near
from mmcl.functional.importance import Rule, squared_output_norm
from mmcl.outputs import Batch, valid_places
from mmcl.strategies._importance import Estimator, _MeasuredPenalty

Answer = Literal["logits", "tokens", "features"]


class MAS(_MeasuredPenalty):
    """Memory aware synapses (Aljundi et al., ECCV 2018).

    penalty = weight x sum Omega (theta - theta*)^2, theta* the weights at the end of the last task. Omega_t is the mean
    over a task's samples of |d ||F(x)||^2 / d theta|, F(x) the model's answer; no label is looked at. Omega sums up the
    tasks.

    Args:
        weight: lambda. The paper and CTP have 1.
        estimator: ``per_sample``, as the paper writes it, or ``batch``: the absolute gradient of the mean over a batch,
            as the published code computes it, which is smaller, since samples cancel one another.
        on: the answer: ``logits``, ``tokens`` or ``features``, not normalised. None takes the logits where a batch
            gives them, else the sum over all features. Of tokens or frames it is the mean over the valid ones; columns
            of a head that a row's loss does not choose among are left out.
        limit: samples of a task that are looked at, a fixed choice; None takes all.
        batch_size: of the estimator ``batch``, over all processes; None takes what training has in memory at a time.
        rule: how tasks are joined: ``online``, ``mean`` or ``halves``.
        gamma: of ``online``. 1 sums up the tasks, as the paper does.

    Raises:
        ConfigError: an argument is out of range, or the module does not offer `on`.

    Differences from the published code: the penalty is no part of the loss. There the importance is measured through a
    head of its own for each task; here columns of other tasks are masked where the module says which they are.
    """

    scale = 2.0

    def __init__(
        self,
        weight: float = 1.0,
        estimator: Estimator = "batch",
        on: Answer | None = None,
        limit: int | None = None,
        batch_size: int | None = None,
        rule: Rule = "online",
        gamma: float = 1.0,
    ) -> None:
        super().__init__(weight, estimator, limit, batch_size, rule, gamma)
        if on is not None and on not in get_args(Answer):
            raise ConfigError(f"MAS: on '{on}' is unknown; {near(on, get_args(Answer))}")
        self.on = on
        self.needs = frozenset({on} if on and weight else ())

    def values(self, batch: Batch) -> tuple[Tensor, Tensor]:
        outputs = self.wrapped(batch)
        answer = self.on or ("features" if outputs.logits is None else "logits")
        if answer == "features":  # of the rows: texts of all classes are no answer to any of them
            given = [
                outputs.features[name] for name in self.module.pair or outputs.features if name in outputs.features
            ]
        else:
            given = [value for value in [getattr(outputs, answer)] if value is not None]
        if not given:
            raise RunError(f"MAS: the outputs for the batch hold no {answer}")
        columns = outputs.extra.get("candidates") if answer == "logits" else None
        rows = torch.ones(len(given[0]), dtype=torch.bool, device=given[0].device)
        total = torch.zeros((), device=given[0].device)
        for value in given:
            places = valid_places(value, outputs, batch)
            rows = rows & (places if places.dim() == 1 else places.any(1))
            total = total + squared_output_norm(value, valid=places, candidates=columns).sum()
        count = rows.sum().float()
        return total / (count if self.estimator == "per_sample" else self.reduce(count)).clamp(min=1e-9), count

    def magnitude(self, gradient: Tensor) -> Tensor:
        return gradient.abs()
