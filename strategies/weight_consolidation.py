"""L2 penalty towards the weights at the start of the task."""

from __future__ import annotations

import math
from typing import ClassVar

import torch

from mmcl.errors import ConfigError, RunError
from mmcl.functional.regularization import l2_gradients
from mmcl.strategy import StepContext, Strategy
from mmcl.weights import leading


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
    anchor: ClassVar[str] = "start"
    """The snapshot that the weights are pulled to."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        if not 0 <= weight < math.inf:
            raise ConfigError(f"{type(self).__name__}: weight is {weight}; a weight is 0 or more")
        self.weight = weight
        self.holds = weight > 0
        self.snapshots = frozenset({self.anchor} if weight else ())

    def anchored(self, name: str) -> bool:
        """Whether a weight is pulled."""
        return True

    def on_gradients(self, context: StepContext) -> None:
        if not self.weight:
            return
        anchor, live = self.snapshot(self.anchor), self.weights()
        params = {n: p for n, p in self.module.network.named_parameters() if p.requires_grad}
        if not params:
            raise RunError(f"{self.title}: no weight of the network trains")
        for name in params:
            if name not in live:
                raise RunError(f"{self.title}: '{name}' trains but is no weight of the network (an adapter?)")
        # Rows and tensors that came later have no place to go back to.
        older = {n: leading(p, anchor[n].shape) for n, p in params.items() if n in anchor and self.anchored(n)}
        parts = [torch.zeros((), device=next(iter(params.values())).device)]
        for name, part, gradient in l2_gradients(older, {name: anchor[name] for name in older}):
            param = params[name]
            param.grad = torch.zeros_like(param) if param.grad is None else param.grad
            leading(param.grad, gradient.shape).add_(gradient.mul_(self.weight).to(param.dtype))
            parts.append(part)
        context.log(f"{self.name}/penalty", self.weight * torch.stack(parts).sum())
