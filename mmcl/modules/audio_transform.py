"""Recordings to waveforms of one rate: what all modules that hear share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmcl.errors import ConfigError, SampleError
from mmcl.outputs import Audio


@dataclass(frozen=True)
class AudioTransform:
    """A decoded recording -> its waveform at one rate, by torchaudio's band-limited resampling.

    Args:
        rate: samples a second that the network expects.
        min_seconds: shorter recordings cannot be used.
        max_seconds: longer ones cannot be used; None: any length.

    Raises:
        ConfigError: the rate or the lengths are impossible.
    """

    rate: int = 16_000
    min_seconds: float = 0.0
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.rate < 1:
            raise ConfigError(f"audio: rate is {self.rate}; it must be a positive number of samples a second")
        if self.min_seconds < 0:
            raise ConfigError(f"audio: min_seconds is {self.min_seconds}; it must be 0 or more")
        if self.max_seconds is not None and self.max_seconds <= self.min_seconds:
            raise ConfigError(f"audio: max_seconds is {self.max_seconds}; it must be above {self.min_seconds}")

    def __call__(self, sample: dict[str, Any]) -> Tensor:
        """(N,) float32, N > 0.

        Args:
            sample: with an `Audio` under ``audio``.

        Raises:
            SampleError: no recording, one of another length than allowed, or no finite sample values.
        """
        waveform = self.waveform(sample)
        seconds = len(waveform) / self.rate
        if seconds < self.min_seconds:
            raise SampleError(f"the recording is {seconds:.2f} s long, shorter than {self.min_seconds:g} s")
        if self.max_seconds is not None and seconds > self.max_seconds:
            raise SampleError(f"the recording is {seconds:.2f} s long, longer than {self.max_seconds:g} s")
        return waveform

    def waveform(self, sample: dict[str, Any]) -> Tensor:
        """(N,) float32 of any length, N > 0.

        Raises:
            SampleError: no recording, no samples, or samples that are not finite.
        """
        from torchaudio.functional import resample

        audio = sample.get("audio")
        if not isinstance(audio, Audio):
            raise SampleError("it has no recording under 'audio'")
        waveform = torch.from_numpy(audio.samples)
        if waveform.ndim != 1 or not len(waveform):
            raise SampleError(f"the recording's samples are {tuple(waveform.shape)}, not a row of numbers")
        if not torch.isfinite(waveform).all():
            raise SampleError("the recording has samples that are not finite numbers")
        if audio.rate == self.rate:
            return waveform.contiguous().float()
        heard: Tensor = resample(waveform.float(), audio.rate, self.rate)
        return heard
