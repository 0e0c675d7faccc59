"""L2 penalty towards the pretrained weights."""

from __future__ import annotations

from typing import ClassVar

from mmcl.strategies.weight_consolidation import WeightConsolidation


class L2Init(WeightConsolidation):
    """Pull the weights to the pretrained ones in every task (L2-SP, Li et al., 2018; L2 Init, Kumar et al., 2023).

    penalty = weight x sum (theta - theta_0)^2 over all parameters that train, without 1/2. Unlike `WeightConsolidation`
    the anchor never moves, so the pull grows with the distance that the whole stream has travelled. A head that the
    stream brings has no pretrained values and is left alone.

    Args:
        weight: factor. L2-SP writes weight / 2 and chooses among 0.001 to 1 by validation, L2 Init among 1e-2 to 1e-5;
            the default is in between and is no paper's.

    Raises:
        ConfigError: `weight` is negative or not finite.

    Differences from the published code: the penalty is no part of the loss, as in `WeightConsolidation`. L2-SP pulls
    new layers to 0 with a weight of their own; here weight decay does that, where it is wanted. Random first values are
    no anchor: Adam's steps do not shrink with a small gradient, and would take the rows of earlier classes back there.
    """

    anchor: ClassVar[str] = "initial"

    def __init__(self, weight: float = 0.01) -> None:
        super().__init__(weight)

    def anchored(self, name: str) -> bool:
        return not (self.module.fresh_head and self.module.is_head(name))
