"""Whisper's log-mel features in torch."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class LogMel:
    """Waveform -> log-mel features over a window of fixed length, as `transformers.WhisperFeatureExtractor` gives them.

    Args:
        bins: mel bins of the network.
        seconds: length of the window; shorter recordings are filled up with silence, longer ones cut.
        settings: a `WhisperFeatureExtractor`, for its rate, window and mel filters; None: the published ones.
    """

    def __init__(self, bins: int, seconds: int, settings: Any = None) -> None:
        from transformers import WhisperFeatureExtractor

        found = settings or WhisperFeatureExtractor(feature_size=bins)
        self.rate = int(found.sampling_rate)
        self.hop = int(found.hop_length)
        self.samples = seconds * self.rate
        self.frames = self.samples // self.hop
        self._size: int = found.n_fft
        self._window = torch.hann_window(self._size)
        self._filters = torch.from_numpy(found.mel_filters).float().T.contiguous()

    def __call__(self, waveform: Tensor) -> Tensor:
        """(N,) -> (bins, frames), float32.

        The largest value of the window sets the floor, 8 decades below it; values are then scaled to about [-1, 1].
        """
        filled = F.pad(waveform[: self.samples], (0, max(0, self.samples - len(waveform))))
        spectrum = torch.stft(filled, self._size, self.hop, window=self._window, return_complex=True)
        power = spectrum[:, :-1].abs().square().contiguous()
        decades = (self._filters @ power).clamp(min=1e-10).log10()
        return (decades.clamp(min=float(decades.max()) - 8) + 4) / 4

    def heard(self, samples: int) -> int:
        """Frames of Whisper's encoder, two of these, in which a recording of so many samples still sounds."""
        return math.ceil(min(samples, self.samples) / (2 * self.hop))
