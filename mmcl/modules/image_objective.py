"""The loss of a classifier whose head holds more classes than may be answered."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcl.errors import RunError
from mmcl.modules.objectives import CrossEntropy, share_of_valid
from mmcl.outputs import Batch, Outputs

CANDIDATES = "candidates"
"""Key of `Outputs.extra`: (B, C) bool, the columns that a row's loss may choose among."""


class MaskedCrossEntropy(CrossEntropy):
    """`CrossEntropy` with the logits of columns that are no candidates at minus infinity.

    Candidates come with the outputs (``extra["candidates"]``); without them all columns are. What smoothing takes from
    the target it spreads over the candidates alone.

    Args:
        label_smoothing: of the targets.
    """

    def terms(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """``cross_entropy_loss``: mean over the valid rows of all processes of ``logits`` (B, C), ``targets`` (B,).

        Raises:
            RunError: no logits or targets, or a target outside the head.
        """
        candidates: Tensor | None = outputs.extra.get(CANDIDATES)
        if candidates is None or outputs.logits is None or outputs.targets is None:
            return super().terms(outputs, batch)
        width = outputs.logits.shape[1]
        if candidates.shape[1] != width:
            raise RunError(f"MaskedCrossEntropy: {candidates.shape[1]} candidates for {width} columns of logits")
        valid = self.counted(outputs, batch)
        logits = outputs.logits.float().masked_fill(~candidates, -torch.inf)
        scores = logits.log_softmax(dim=1)
        loss = -scores.gather(1, outputs.targets.clamp(min=0)[:, None])[:, 0]
        if self.label_smoothing:
            spread = -scores.masked_fill(~candidates, 0.0).sum(dim=1) / candidates.sum(dim=1)
            loss = (1 - self.label_smoothing) * loss + self.label_smoothing * spread
        return {"cross_entropy_loss": loss.masked_fill(~valid, 0.0).sum() * share_of_valid(valid)}
