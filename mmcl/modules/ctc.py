"""Connectionist temporal classification: the loss, and how many frames a transcript needs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcl.errors import RunError
from mmcl.modules.objectives import share_of_valid
from mmcl.outputs import Batch, Objective, Outputs


class CTC(Objective):
    """CTC loss (Graves et al., ICML 2006), the mean over all utterances of all processes.

    Computed in float32. A transcript that its frames cannot hold has an infinite loss; it counts as 0 and gives no
    gradient (``zero_infinity``), while its utterance stays in the mean. `ASRModule` leaves such rows out of training
    before they come here.

    Args:
        by_length: divide each utterance's loss by the length of its transcript first, as torch's own mean does; False
            takes the sum over its symbols.
    """

    def __init__(self, by_length: bool = True) -> None:
        super().__init__()
        self.by_length = by_length

    def terms(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """``ctc_loss`` of ``logits`` (B, T, C), ``valid`` (B, T) and the batch's ``targets`` (B, L) with lengths."""
        if outputs.logits is None or outputs.valid is None or "targets" not in batch:
            raise RunError("CTC: the batch has no recordings or no transcripts")
        frames, lengths = outputs.valid.sum(1), batch["targets_lengths"]
        losses = F.ctc_loss(
            outputs.logits.float().log_softmax(-1).transpose(0, 1),
            batch["targets"].clamp(min=0),
            frames,
            lengths,
            blank=outputs.extra.get("blank", 0),
            reduction="none",
            zero_infinity=True,
        )
        if self.by_length:
            losses = losses / lengths.clamp(min=1)
        real = self.counted(outputs, batch)
        return {"ctc_loss": losses[real].sum() * share_of_valid(real)}

    def counted(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Rows that hold a recording."""
        assert outputs.valid is not None
        return outputs.valid.any(1)


def frames_needed(targets: Sequence[int]) -> int:
    """Frames that the shortest path of a transcript takes: one a symbol, and a blank between equal neighbours."""
    return len(targets) + sum(a == b for a, b in pairwise(targets))


@torch.no_grad()
def append_rows(head: torch.nn.Linear, count: int, std: float = 0.01) -> None:
    """Give a head more rows, drawn small from torch's global generator; their biases are 0."""
    weight, bias = head.weight, head.bias
    rows = torch.randn(count, weight.shape[1]) * std
    for name, old, new in (("weight", weight, rows), ("bias", bias, torch.zeros(count))):
        whole = torch.cat([old, new.to(old)])
        setattr(head, name, torch.nn.Parameter(whole, requires_grad=old.requires_grad))
    head.out_features += count
