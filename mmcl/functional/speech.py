"""Self-supervised learning from speech: span masks, wav2vec 2.0's contrastive and diversity losses, HuBERT's logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcl.functional._precision import no_autocast, widen

IGNORED = -100
_LEAST = 1e-30


def span_mask(
    frames: int, *, probability: float, span: int, minimum: int = 0, generator: torch.Generator | None = None
) -> Tensor:
    """Which frames of one recording are masked: spans that start anywhere and may overlap.

    The number of spans is ``probability * frames / span``, rounded up or down at random, at least `minimum` and no more
    than fit side by side (Baevski et al., NeurIPS 2020, section 3.1). With 0.65 and 10 about 49 % are masked.

    Args:
        frames: of the recording.
        probability: part of the frames that the spans would cover without overlaps.
        span: frames of a span.
        minimum: of spans.
        generator: None draws from torch's global one.

    Returns:
        (frames,) bool; all False where the recording is shorter than a span.
    """
    mask = torch.zeros(frames, dtype=torch.bool)
    chance = float(torch.rand((), generator=generator))
    spans = min(max(int(probability * frames / span + chance), minimum), frames // span)
    if spans:
        starts = torch.randperm(frames - span + 1, generator=generator)[:spans]
        mask[(starts[:, None] + torch.arange(span)).flatten()] = True
    return mask


def sample_distractors(mask: Tensor, *, count: int, generator: torch.Generator | None = None) -> Tensor:
    """For each masked frame of a recording, other masked frames of it, drawn with replacement.

    Args:
        mask: (T,) bool, with no or at least two frames masked.
        count: distractors of a frame.
        generator: None draws from torch's global one.

    Returns:
        (T, count) frames; 0 in the rows of frames that are not masked.
    """
    found = torch.zeros(len(mask), count, dtype=torch.long)
    places = mask.nonzero()[:, 0]
    if len(places):
        drawn = torch.randint(len(places) - 1, (len(places), count), generator=generator)
        drawn += drawn >= torch.arange(len(places))[:, None]  # skips the frame itself, and the rest stays uniform
        found[places] = places[drawn]
    return found


def contrastive_logits(
    predicted: Tensor, targets: Tensor, codes: Tensor, distractors: Tensor, *, temperature: float = 0.1
) -> Tensor:
    """Cosine similarities of predictions with the true and with other quantized frames, over a temperature.

    Args:
        predicted: (B, T, D) context vectors.
        targets: (B, T, D) quantized vectors.
        codes: (B, T, G) entries of the codebooks that make up each target.
        distractors: (B, T, K) frames of the same recording.
        temperature: of the similarities.

    Returns:
        (B, T, 1 + K), the true frame first; -inf where a distractor is of the same codes as the true frame.
    """
    predicted, targets = widen(predicted, targets)
    with no_autocast(predicted):
        similarity = F.normalize(predicted, dim=-1) @ F.normalize(targets, dim=-1).transpose(1, 2) / temperature
    wrong = similarity.gather(2, distractors)
    same = torch.ones_like(distractors, dtype=torch.bool)
    for group in codes.unbind(-1):
        same &= group[:, None, :].expand(-1, group.shape[1], -1).gather(2, distractors) == group[:, :, None]
    right = similarity.diagonal(dim1=1, dim2=2)[..., None]
    return torch.cat([right, wrong.masked_fill(same, -torch.inf)], dim=-1)


def contrastive_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy with the first column as the target, summed over masked frames.

    Args:
        logits: (B, T, 1 + K) of `contrastive_logits`.
        mask: (B, T) bool; the frames that count.
    """
    targets = torch.full_like(mask, IGNORED, dtype=torch.long).masked_fill(mask, 0)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")


def code_perplexity(probabilities: Tensor) -> Tensor:
    """How many entries of the codebooks are in use: the sum over groups of the exponential of the entropy.

    Args:
        probabilities: (G, V) mean over masked frames; each row sums to 1.

    Returns:
        Scalar between G (one entry of each group) and G * V (all alike).
    """
    entropy = -(probabilities * probabilities.clamp(min=_LEAST).log()).sum(-1)
    return entropy.exp().sum()


def diversity_loss(perplexity: Tensor, codes: int) -> Tensor:
    """Part of the codebooks that is not used: (GV - perplexity) / GV, for one masked frame.

    Args:
        perplexity: of `code_perplexity`.
        codes: GV, all entries of all groups.
    """
    return (codes - perplexity) / codes


def gumbel_temperature(step: int, *, start: float = 2.0, end: float = 0.5, decay: float = 0.999995) -> float:
    """max(start * decay^step, end): how soft the choice of codes is. wav2vec 2.0 large ends at 0.1."""
    return float(max(start * decay**step, end))


def codeword_logits(projected: Tensor, codewords: Tensor, *, temperature: float = 0.1) -> Tensor:
    """HuBERT's logits over clusters: cosine similarities with the codewords, over a temperature.

    Hsu et al., TASLP 2021, equation 3; the loss is their cross-entropy on masked frames.

    Args:
        projected: (..., D).
        codewords: (C, D).
        temperature: of the similarities.

    Returns:
        (..., C).
    """
    projected, codewords = widen(projected, codewords)
    with no_autocast(projected):
        return F.normalize(projected, dim=-1) @ F.normalize(codewords, dim=-1).T / temperature
