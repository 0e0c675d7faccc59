"""What speech models are pretrained on: contrast with codebook diversity (wav2vec 2.0), masked clusters (HuBERT)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcl import distributed
from mmcl.errors import ConfigError, RunError
from mmcl.functional.speech import IGNORED, code_perplexity, contrastive_loss, diversity_loss
from mmcl.modules.objectives import CrossEntropy, share_of_valid
from mmcl.outputs import Batch, Objective, Outputs

Figures = Mapping[str, Literal["higher", "lower"]]


class ContrastiveSpeech(Objective):
    """wav2vec 2.0's loss for one masked frame (Baevski et al., NeurIPS 2020, equation 2).

    Cross-entropy of the true quantized frame against its distractors, summed over the masked frames of all processes
    and divided by their number, plus `diversity` times (GV - perplexity) / GV. transformers gives the same, times the
    number of masked frames of the batch. The perplexity is that of the masked frames of all processes together.

    Args:
        diversity: weight of the second term. The paper has 0.1.

    Raises:
        ConfigError: a negative weight.
    """

    needs = frozenset({"audio", "masked", "distractors"})
    coupled = True
    figures: Figures = MappingProxyType(
        {
            **{"objective": "lower", "contrastive_loss": "lower"},
            **{"contrastive_accuracy": "higher", "code_perplexity": "higher"},
        }
    )

    def __init__(self, diversity: float = 0.1) -> None:
        super().__init__()
        if not 0 <= diversity < math.inf:
            raise ConfigError(f"ContrastiveSpeech: diversity is {diversity}; a weight is 0 or more")
        self.diversity = diversity

    def terms(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """``contrastive_loss`` and the weighted ``diversity_loss``."""
        logits, counted, usage = _of_wav2vec(outputs)
        share = share_of_valid(counted)
        used = (usage * counted[..., None, None]).sum((0, 1))
        total = distributed.gather(used[None]).sum(0) / distributed.total(counted.sum()).clamp(min=1)
        diversity = diversity_loss(code_perplexity(total), total.numel())
        return {
            "contrastive_loss": contrastive_loss(logits, counted) * share,
            "diversity_loss": self.diversity * diversity,
        }

    def counted(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Masked frames with a distractor."""
        return _of_wav2vec(outputs)[1]

    @torch.no_grad()
    def sums(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """``loss``, ``count`` of masked frames, ``right`` of those whose true frame is nearest, (G, V) ``usage``.

        A frame whose distractors all have its own codes counts as a guess among all of them: it is not right, and its
        loss is ln(1 + K). fairseq (`compute_preds` of wav2vec 2.0) sets the logits of such distractors to -inf, and the
        training loss does too; with none left a frame has a loss of 0, so that a collapsed codebook would be the best.
        """
        logits, counted, usage = _of_wav2vec(outputs)
        alone = (logits[..., 1:] == -torch.inf).all(-1) & counted
        right = (logits[..., 0] > logits[..., 1:].amax(-1)) & ~alone & counted
        return {
            "loss": contrastive_loss(logits.double(), counted & ~alone) + alone.sum() * math.log(logits.shape[-1]),
            "count": counted.sum(),
            "right": right.sum(),
            "usage": (usage * counted[..., None, None]).sum((0, 1)).double(),
        }

    def scores(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """``objective`` and its parts, over the whole set."""
        count, usage = sums["count"], sums["usage"]
        perplexity = code_perplexity(usage / count)
        contrastive = float(sums["loss"] / count)
        return {
            "objective": contrastive + self.diversity * float(diversity_loss(perplexity, usage.numel())),
            "contrastive_loss": contrastive,
            "contrastive_accuracy": int(sums["right"]) / int(count),
            "code_perplexity": float(perplexity),
        }


class MaskedClusters(CrossEntropy):
    """HuBERT's loss: mean cross-entropy of the clusters of masked frames, over all processes (Hsu et al., TASLP 2021).

    Frames that are not masked do not count, as in the published models.
    """

    needs = frozenset({"audio", "masked", "targets"})
    figures: Figures = MappingProxyType({"objective": "lower", "cluster_accuracy": "higher"})

    def __init__(self) -> None:
        super().__init__(0.0)

    @torch.no_grad()
    def sums(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """``loss``, ``count`` of masked frames, ``right`` of those whose cluster comes first."""
        assert outputs.logits is not None and outputs.targets is not None and outputs.valid is not None
        targets = outputs.targets.masked_fill(~outputs.valid, IGNORED)
        logits = outputs.logits.double().flatten(0, 1)
        return {
            "loss": F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED, reduction="sum"),
            "count": (targets != IGNORED).sum(),
            "right": (outputs.logits.argmax(-1) == targets).sum(),
        }

    def scores(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """``objective`` and ``cluster_accuracy``, over the whole set."""
        count = int(sums["count"])
        return {"objective": float(sums["loss"]) / count, "cluster_accuracy": int(sums["right"]) / count}


def _of_wav2vec(outputs: Outputs) -> tuple[Tensor, Tensor, Tensor]:
    if "contrastive_logits" not in outputs.extra:
        raise RunError("ContrastiveSpeech: the batch holds no masks and distractors; it needs a wav2vec 2.0 model")
    found: tuple[Tensor, Tensor, Tensor] = (
        outputs.extra["contrastive_logits"],
        outputs.extra["counted"],
        outputs.extra["code_usage"],
    )
    return found
