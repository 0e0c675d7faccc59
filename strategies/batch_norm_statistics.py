"""Batch norms that go by the test batch: adaptation without a gradient."""

from __future__ import annotations

import math

import torch

from mmcl.batch_norm import batch_norms, batch_statistics
from mmcl.errors import ConfigError
from mmcl.outputs import ANSWERS, Batch, Forward, Outputs, SourcePass
from mmcl.strategy import StepContext, Strategy
from mmcl.stream import EvalSet


class BatchNormStatistics(Strategy):
    """Normalise by the statistics of the test batch (Schneider et al., NeurIPS 2020; Nado et al., 2020).

    mean = N / (N + n) x source + n / (N + n) x batch, and the variance likewise, for a batch of n samples. Nothing
    else changes and nothing is carried from batch to batch; it is what TENT, CoTTA and RMT begin from.

    Args:
        prior: N, samples that the source's running statistics stand for. 0, the batch alone, is the row "BN-1" or
            "norm" of the papers' tables; Schneider et al. take 16 or more for small batches.

    Raises:
        ConfigError: `prior` is below 0, or the network has no batch norms.

    Differences from the published code: padding does not count, and the statistics span all processes. Where a layer
    sees a single value a channel, which has no variance, it goes by its running statistics.
    """

    adapts_at_test = True

    def __init__(self, prior: float = 0.0) -> None:
        super().__init__()
        if not 0 <= prior < math.inf:
            raise ConfigError(f"BatchNormStatistics: prior is {prior}; it must be a finite number, 0 or more")
        self.prior = prior

    def on_evalset_start(self, evalset: EvalSet, position: int, source: SourcePass) -> None:
        if not batch_norms(self.module.network):
            raise ConfigError("BatchNormStatistics: the network has no batch norms")

    def wrap_forward(self, next: Forward, batch: Batch, context: StepContext) -> Outputs:
        if ANSWERS not in batch:
            return next(batch)
        with torch.no_grad(), batch_statistics(self.module.network, batch["valid"], self.prior):
            return next(batch)
