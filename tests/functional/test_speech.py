"""Masks, distractors and losses of speech pretraining, held to transformers' functions and to the formulas."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from transformers import Wav2Vec2ForPreTraining
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2GumbelVectorQuantizer

from mmcl.functional import speech

PARITY = Path(__file__).parent.parent / "parity" / "wav2vec2_pretraining"


def runs(mask):
    """Lengths of the masked stretches."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], np.asarray(mask).astype(int), [0]])))
    return (edges[1::2] - edges[::2]).tolist()


def test_masks_have_the_statistics_of_transformers():
    reference = np.load(PARITY / "mask_sampling.npz")
    frames, span = int(reference["shape"][1]), int(reference["mask_length"])
    settings = {"probability": float(reference["mask_prob"]), "span": span, "minimum": int(reference["min_masks"])}
    generator = torch.Generator().manual_seed(0)
    masks = [speech.span_mask(frames, **settings, generator=generator) for _ in range(1000)]
    share = torch.stack(masks).float().mean(1)
    assert abs(float(share.mean()) - 0.486) < 0.01  # measured on transformers' function
    theirs = reference["mask"].mean(1)
    assert share.min() <= theirs.min() and theirs.max() <= share.max()
    assert all(length >= span for mask in [*masks, *reference["mask"]] for length in runs(mask))
    assert min(len(runs(mask)) for mask in masks) >= 2


@given(st.integers(0, 60), st.floats(0.01, 1), st.integers(1, 12), st.integers(0, 4), st.integers(0, 999))
def test_masks_are_whole_spans_within_the_recording(frames, probability, span, minimum, seed):
    generator = torch.Generator().manual_seed(seed)
    mask = speech.span_mask(frames, probability=probability, span=span, minimum=minimum, generator=generator)
    assert mask.shape == (frames,)
    assert all(length >= span for length in runs(mask))
    if frames < span:
        assert not mask.any()
    elif minimum:
        assert mask.any()


def test_distractors_are_other_masked_frames_evenly():
    mask = torch.zeros(9, dtype=torch.bool)
    mask[[1, 2, 5, 8]] = True
    found = speech.sample_distractors(mask, count=6000, generator=torch.Generator().manual_seed(0))
    assert (found[~mask] == 0).all()
    for place in (1, 2, 5, 8):
        counts = torch.bincount(found[place], minlength=9)
        others = [p for p in (1, 2, 5, 8) if p != place]
        assert counts.nonzero()[:, 0].tolist() == others
        assert all(abs(int(counts[p]) - 2000) < 200 for p in others)


def of_transformers(predicted, targets, distractors, mask):
    """The lines of `Wav2Vec2ForPreTraining.forward` from the targets to the contrastive loss."""
    rows, frames, _ = targets.shape
    flat = (distractors + torch.arange(rows)[:, None, None] * frames).flatten()
    negatives = targets.flatten(0, 1)[flat].view(rows, frames, -1, targets.shape[-1]).permute(2, 0, 1, 3)
    logits = Wav2Vec2ForPreTraining.compute_contrastive_logits(targets[None], negatives, predicted, 0.1)
    same = (targets == negatives).all(-1)
    logits[1:][same] = float("-inf")
    logits = logits.transpose(0, 2).reshape(-1, logits.size(0))
    return F.cross_entropy(logits, ((1 - mask.long()) * -100).transpose(0, 1).flatten(), reduction="sum")


def test_contrastive_loss_is_that_of_transformers():
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(3, (2, 12, 2), generator=generator)
    table = torch.randn(2, 3, 4, generator=generator)
    targets = torch.cat([table[0][codes[..., 0]], table[1][codes[..., 1]]], dim=-1)
    predicted = torch.randn(2, 12, 8, generator=generator)
    mask = torch.rand(2, 12, generator=generator) < 0.6
    distractors = torch.stack([speech.sample_distractors(m, count=7, generator=generator) for m in mask])
    logits = speech.contrastive_logits(predicted, targets, codes, distractors)
    assert logits[mask].isinf().any()  # of nine codes, some distractors are of the true one
    ours, theirs = speech.contrastive_loss(logits, mask), of_transformers(predicted, targets, distractors, mask)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)


def test_a_collapsed_codebook_gives_loss_0_and_perplexity_of_the_groups():
    codes, mask = torch.zeros(1, 6, 2, dtype=torch.long), torch.ones(1, 6, dtype=torch.bool)
    distractors = speech.sample_distractors(mask[0], count=3)[None]
    logits = speech.contrastive_logits(torch.randn(1, 6, 4), torch.ones(1, 6, 4), codes, distractors)
    assert speech.contrastive_loss(logits, mask) == 0
    collapsed = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]], requires_grad=True)
    perplexity = speech.code_perplexity(collapsed)
    assert perplexity == 2
    perplexity.backward()
    assert collapsed.grad.isfinite().all()
    assert speech.diversity_loss(perplexity.detach(), 6) == pytest.approx(4 / 6)


def test_perplexity_is_that_of_transformers():
    probabilities = torch.randn(30, 2, 5, generator=torch.Generator().manual_seed(0)).mul(2).softmax(-1)
    mask = torch.arange(30) % 3 > 0
    theirs = Wav2Vec2GumbelVectorQuantizer._compute_perplexity(probabilities, mask)
    torch.testing.assert_close(speech.code_perplexity(probabilities[mask].mean(0)), theirs, rtol=1e-6, atol=0)
    assert speech.code_perplexity(torch.full((2, 5), 0.2)) == pytest.approx(10)


def test_gumbel_temperature_falls_to_its_end():
    assert speech.gumbel_temperature(0) == 2
    assert speech.gumbel_temperature(100_000) == pytest.approx(2 * 0.999995**100_000)
    assert speech.gumbel_temperature(10**6) == 0.5


def test_hubert_s_logits_are_cosines_over_a_temperature():
    generator = torch.Generator().manual_seed(0)
    projected, codewords = torch.randn(3, 4, 6, generator=generator), torch.randn(5, 6, generator=generator)
    logits = speech.codeword_logits(projected, codewords)
    one, other = projected[1, 2].tolist(), codewords[3].tolist()
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    lengths = math.sqrt(sum(a * a for a in one)) * math.sqrt(sum(b * b for b in other))
    assert logits.shape == (3, 4, 5)
    assert float(logits[1, 2, 3]) == pytest.approx(dot / lengths / 0.1, rel=1e-5)
