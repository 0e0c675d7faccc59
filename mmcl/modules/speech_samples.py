"""Recordings to rows for pretraining: waveform, mask, distractors or clusters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmcl.errors import ConfigError, SampleError
from mmcl.functional.speech import IGNORED, sample_distractors, span_mask
from mmcl.modules.audio_transform import AudioTransform
from mmcl.modules.speech_codebook import Codebook
from mmcl.modules.speech_network import frame_count
from mmcl.outputs import SKIP

_LEAST = 1e-7


@dataclass(frozen=True)
class SpeechSamples:
    """A decoded sample -> its row.

    Args:
        config: the network's, for the frames that its convolutions make.
        rate: samples a second.
        normalize: whether each recording gets mean 0 and variance 1.
        max_seconds: longer recordings are cut to this, in training at a random place. None: never.
        probability: of the mask, see `mmcl.functional.speech.span_mask`.
        span: frames of a masked span.
        spans: that a recording has at least.
        distractors: of each masked frame; 0 makes none.
        codebook: gives the frames' clusters; None gives none.

    Raises:
        ConfigError: a number that cannot be.
    """

    config: Any
    rate: int
    normalize: bool
    max_seconds: float | None
    probability: float
    span: int
    spans: int
    distractors: int = 0
    codebook: Codebook | None = None

    def __post_init__(self) -> None:
        if not 0 < self.probability <= 1:
            raise ConfigError(f"SpeechPretrainingModule: mask is {self.probability}; it must be within (0, 1]")
        for name, value, least in (("mask_span", self.span, 1), ("mask_spans", self.spans, 0)):
            if value < least:
                raise ConfigError(f"SpeechPretrainingModule: {name} is {value}; it must be {least} or more")
        if self.max_seconds is not None and self.max_seconds <= 0:
            raise ConfigError(f"SpeechPretrainingModule: max_seconds is {self.max_seconds}; it must be positive")

    def __call__(self, sample: dict[str, Any], augment: bool) -> dict[str, Any]:
        """``audio`` (N,), ``masked`` (T,), ``distractors`` (T, K) or ``targets`` (T,), -100 where nothing is masked.

        Raises:
            SampleError: no recording, or one without a single frame.
        """
        waveform = self._cut(AudioTransform(self.rate)(sample), augment)
        frames = frame_count(len(waveform), self.config)
        if frames < 1:
            raise SampleError(f"the recording has {len(waveform)} samples, too few for one frame")
        masked = span_mask(frames, probability=self.probability, span=self.span, minimum=self.spans)
        row: dict[str, Any] = {"audio": self._normalized(waveform), "masked": masked}
        if int(masked.sum()) < 2:
            masked.zero_()
            row[SKIP] = f"the recording has {frames} frames, of which a mask of {self.span} leaves nothing to learn"
        if self.codebook is not None:
            row["targets"] = self.codebook.targets(waveform).masked_fill(~masked, IGNORED)
        if self.distractors:
            row["distractors"] = sample_distractors(masked, count=self.distractors)
        return row

    def _cut(self, waveform: Tensor, augment: bool) -> Tensor:
        most = len(waveform) if self.max_seconds is None else int(self.max_seconds * self.rate)
        spare = len(waveform) - most
        if spare <= 0:
            return waveform
        begin = int(torch.randint(spare + 1, ())) if augment else 0
        return waveform[begin : begin + most]

    def _normalized(self, waveform: Tensor) -> Tensor:
        """As transformers' `Wav2Vec2FeatureExtractor` does."""
        if not self.normalize:
            return waveform
        return (waveform - waveform.mean()) / (waveform.var(correction=0) + _LEAST).sqrt()
