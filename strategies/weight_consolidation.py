"""L2 penalty towards the weights at the start of the task."""

from __future__ import annotations

import math

import torch

from mmcl.errors import ConfigError, RunError
from mmcl.functional.regularization import l2_gradients
from mmcl.strategy import StepContext, Strategy


class WeightConsolidation(Strategy):
    """Pull the weights to where the task began (ZSCL; Zheng et al., ICCV 2023, section 4.2).

    penalty = weight x sum (theta - theta_start)^2 over all parameters that train, without 1/2. Its gradient is added
    after the backward pass, which is the same as adding the penalty to the loss; its value is logged as ``penalty``.

    Args:
        weight: factor. The published MTIL runs use 1, its variant ZSCL* 0. The sum grows with the number of parameters
            and the distance that a task travels, so other models want another weight.

    Raises:
        ConfigError: `weight` is negative or not finite.

    Differences from the published code: the penalty is no part of the loss, so that strategies which look at the data's
    gradient see that alone. It is computed in float32 or wider.
    """

    gradients = "add"

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        if not 0 <= weight < math.inf:
            raise ConfigError(f"WeightConsolidation: weight is {weight}; a weight is 0 or more")
        self.weight = weight
        self.snapshots = frozenset({"start"} if weight else ())

    def on_gradients(self, context: StepContext) -> None:
        if not self.weight:
            return
        start = self.snapshot("start")
        params = {n: p for n, p in self.module.network.named_parameters() if p.requires_grad}
        if not params:
            raise RunError("WeightConsolidation: no weight of the network trains")
        for name in params:
            if name not in start:
                raise RunError(f"WeightConsolidation: '{name}' trains but is no weight of the network (an adapter?)")
        parts = []
        for name, part, gradient in l2_gradients(params, {name: start[name] for name in params}):
            param, gradient = params[name], gradient.mul_(self.weight).to(params[name].dtype)
            param.grad = gradient if param.grad is None else param.grad.add_(gradient)
            parts.append(part)
        context.log(f"{self.name}/penalty", self.weight * torch.stack(parts).sum())
