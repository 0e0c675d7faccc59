"""Training losses that modules of several kinds share."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mmcl import distributed
from mmcl.errors import ConfigError, RunError
from mmcl.outputs import Batch, Objective, Outputs

IGNORED = -100
"""Target that takes no part in a loss: padding, prompts, rows without a label."""


def share_of_valid(valid: Tensor) -> Tensor:
    """Factor on a sum over this process's rows so that the mean over processes is the mean over all valid rows.

    Args:
        valid: any shape, bool; which of this process's rows (or tokens) count.
    """
    return distributed.world_size() / distributed.total(valid.sum().float()).clamp(min=1)


class CrossEntropy(Objective):
    """Mean cross-entropy over all valid targets of all processes: classes, next tokens, masked tokens, answers.

    Args:
        label_smoothing: of the targets.

    Raises:
        ConfigError: `label_smoothing` is outside [0, 1).
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ConfigError(f"CrossEntropy: label_smoothing is {label_smoothing}; it must be within [0, 1)")
        self.label_smoothing = label_smoothing

    def terms(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """``cross_entropy_loss`` of ``logits`` (B, C) or (B, L, C) and ``targets`` (B,) or (B, L), -100 left out."""
        if outputs.logits is None or outputs.targets is None:
            raise RunError("CrossEntropy: the batch gives no logits or no targets; the samples lack their labels")
        counted = self.counted(outputs, batch)
        targets = outputs.targets.masked_fill(~counted, IGNORED)
        logits = outputs.logits.flatten(0, -2).float()
        total = F.cross_entropy(
            logits, targets.flatten(), ignore_index=IGNORED, label_smoothing=self.label_smoothing, reduction="sum"
        )
        return {"cross_entropy_loss": total * share_of_valid(counted)}

    def counted(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Targets that are not -100, of ``valid`` places."""
        assert outputs.targets is not None
        real = outputs.targets != IGNORED
        return real if outputs.valid is None else real & outputs.valid
