"""Perplexity and bits per byte of an evaluation set, weighted by tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcl.errors import ConfigError, RunError, near
from mmcl.functional._precision import widen
from mmcl.metrics.probes import Encode, Probe, ProbeResult
from mmcl.outputs import Batch, Outputs
from mmcl.stream import EvalSet

METRICS = ("perplexity", "bits_per_byte")


class PerplexityProbe(Probe):
    """exp of the mean loss of all predicted tokens of the set, in nats.

    The sums run over tokens, in float64, so that neither batches, padding nor ranks change the number. Bits per byte
    divide the same sum by ln 2 and by the bytes of text (UTF-8) that the predicted tokens stand for: the figure to
    compare models with different tokenizers by.

    Args:
        metric: what goes into the score matrix: ``perplexity`` or ``bits_per_byte``.
        predicted: what the tokens are, for the protocol line.
    """

    direction = "lower"

    def __init__(self, metric: str = "perplexity", predicted: str = "next tokens") -> None:
        if metric not in METRICS:
            raise ConfigError(f"perplexity: option metric '{metric}' is unknown; {near(metric, METRICS)}")
        self.metric = metric
        words = "perplexity" if metric == "perplexity" else "bits per UTF-8 byte"
        self.protocol = f"{words} of {predicted}, weighted by tokens"
        self.loss = torch.zeros((), dtype=torch.float64)
        self.counts = torch.zeros(2, dtype=torch.int64)

    @classmethod
    def of(cls, evalset: EvalSet, module: Any) -> PerplexityProbe:
        probe = cls(**{"predicted": module.predicted, **evalset.options})
        if probe.metric == "bits_per_byte" and not module.target_bytes:
            raise ConfigError(
                f"perplexity: option metric is bits_per_byte, but {type(module).__name__} does not count the bytes of "
                "its tokens; take perplexity"
            )
        return probe

    def start(self, encode: Encode) -> None:
        """Reset."""
        self.loss = torch.zeros((), dtype=torch.float64)
        self.counts = torch.zeros(2, dtype=torch.int64)

    def update(self, batch: Batch, outputs: Outputs) -> None:
        """Add a batch's losses, tokens and bytes (``target_bytes`` (B, L), where the samples have them).

        Raises:
            RunError: the outputs hold no logits and targets.
        """
        for losses, sizes in _rows(batch, outputs):
            self.loss = self.loss.to(losses.device) + losses.sum()
            here = torch.tensor([len(losses), int(sizes.sum())], device=losses.device)
            self.counts = self.counts.to(losses.device) + here

    def predict(self, batch: Batch, outputs: Outputs) -> list[dict[str, Any]]:
        """For each row of a batch its tokens and their mean loss in nats; None where no token is predicted."""
        return [
            {"tokens": len(losses), "loss": float(losses.mean()) if len(losses) else None}
            for losses, _ in _rows(batch, outputs)
        ]

    def compute(self, sum_over_ranks: Callable[[Tensor], Tensor], gather: Callable[[Tensor], Tensor]) -> ProbeResult:
        """perplexity, loss (nats per token), bits_per_byte, tokens, bytes.

        Raises:
            RunError: no token was predicted, the loss is not finite, or the bytes are not known and were asked for.
        """
        tokens, size = (int(count) for count in sum_over_ranks(self.counts).cpu())
        total = float(sum_over_ranks(self.loss))
        if tokens == 0:
            raise RunError(f"perplexity: {self.where} has no token to predict")
        loss = total / tokens
        if not math.isfinite(loss):
            raise RunError(f"perplexity: the loss of {self.where} is {loss}")
        metrics = {"perplexity": math.exp(min(loss, 700.0)), "loss": loss, "tokens": tokens}
        if size:
            metrics |= {"bits_per_byte": total / (math.log(2) * size), "bytes": size}
        if self.metric not in metrics:
            raise RunError("perplexity: bits_per_byte needs samples that say how many bytes their tokens stand for")
        return ProbeResult(metrics[self.metric], tokens, metrics)


def _rows(batch: Batch, outputs: Outputs) -> list[tuple[Tensor, Tensor]]:
    """For each row the losses of its valid tokens in float64, and their bytes.

    Row by row: a vocabulary's logits of a whole batch in float32 would take twice the memory of the forward.
    """
    if outputs.logits is None or outputs.targets is None or outputs.valid is None:
        raise RunError("perplexity: the outputs hold no logits, targets and valid; the module predicts no tokens")
    sizes: Tensor = batch.get("target_bytes", torch.zeros_like(outputs.targets))
    return [
        (F.cross_entropy(widen(logits[keep])[0], targets[keep], reduction="none").double(), size[keep])
        for logits, targets, keep, size in zip(outputs.logits, outputs.targets, outputs.valid, sizes, strict=True)
    ]
