"""HuBERT's targets: clusters of cepstra, fitted once and then kept for good.

A codebook that is fitted anew means other targets and another output layer, and what was forgotten could no longer be
measured. So it is a file that is made before the stream and named in the module's arguments.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmcl.errors import ConfigError
from mmcl.modules.audio_transform import AudioTransform
from mmcl.outputs import Audio

CEPSTRA, MELS = 13, 23
ARRAYS, NUMBERS = ("centroids", "mean", "scale"), ("rate", "window", "hop")
_LEAST = 1e-10
_ROWS_AT_ONCE = 16_384


@dataclass(frozen=True, eq=False)
class Codebook:
    """Clusters of standardised cepstra.

    Attributes:
        centroids: (C, 39) float32.
        mean: (39,) of the frames that it was fitted on.
        scale: (39,) their standard deviation.
        rate: samples a second.
        window: samples of a frame.
        hop: samples from one frame to the next.
    """

    centroids: Tensor
    mean: Tensor
    scale: Tensor
    rate: int
    window: int
    hop: int

    def targets(self, waveform: Tensor) -> Tensor:
        """(T,) nearest cluster of each frame of a (N,) waveform."""
        frames = (cepstra(waveform, self.rate, self.window, self.hop) - self.mean) / self.scale
        return _nearest(frames, self.centroids)[0]

    def save(self, file: Path) -> None:
        """Write it as an ``.npz`` file."""
        content: dict[str, Any] = {n: getattr(self, n).numpy() for n in ARRAYS}
        np.savez(file, **content | {n: np.int64(getattr(self, n)) for n in NUMBERS})

    @staticmethod
    def load(file: Path) -> Codebook:
        """Read it.

        Raises:
            ConfigError: there is no such file, or it is no codebook.
        """
        try:
            with np.load(file, allow_pickle=False) as content:
                found: dict[str, Any] = {n: torch.from_numpy(content[n].astype(np.float32)) for n in ARRAYS}
                found |= {n: int(content[n]) for n in NUMBERS}
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise ConfigError(f"codebook '{file}' cannot be read ({error}); make one with `fit_codebook`") from error
        return Codebook(**found)


def fit_codebook(
    recordings: Iterable[Audio],
    clusters: int = 100,
    rate: int = 16_000,
    window: int = 400,
    hop: int = 320,
    seed: int = 0,
    frames: int = 200_000,
    rounds: int = 50,
) -> Codebook:
    """k-means over the cepstra of some recordings; equal arguments give equal clusters.

    Args:
        recordings: are read in order until there are `frames` frames.
        clusters: number of them. HuBERT's first stage has 100.
        rate: samples a second of the model.
        window: samples that a frame of the model sees.
        hop: samples from one frame to the next.
        seed: of the first centres (k-means++).
        frames: that take part, at most.
        rounds: of k-means, at most.

    Raises:
        ConfigError: there are fewer frames than clusters.
    """
    heard, count = [], 0
    transform = AudioTransform(rate)
    for recording in recordings:
        found = cepstra(transform({"audio": recording}), rate, window, hop)
        heard.append(found)
        count += len(found)
        if count >= frames:
            break
    if count < clusters:
        raise ConfigError(f"codebook: the recordings have {count} frames, fewer than {clusters} clusters")
    points = torch.cat(heard)[:frames]
    mean, scale = points.mean(0), points.std(0).clamp(min=1e-5)
    centroids = _k_means((points - mean) / scale, clusters, torch.Generator().manual_seed(seed), rounds)
    return Codebook(centroids, mean, scale, rate, window, hop)


def cepstra(waveform: Tensor, rate: int, window: int, hop: int) -> Tensor:
    """(T, 39): 13 mel-frequency cepstra and their first and second differences over time.

    The frames are those of a stack of convolutions without padding: T = (N - window) // hop + 1.
    """
    from torchaudio.functional import compute_deltas

    points, mel, cosine = _tables(rate, window)
    power = torch.fft.rfft(waveform.unfold(0, window, hop) * torch.hann_window(window), points).abs().square()
    own = (power @ mel).clamp(min=_LEAST).log() @ cosine
    first = compute_deltas(own.T[None])
    return torch.cat([own, first[0].T, compute_deltas(first)[0].T], dim=1)


@lru_cache(maxsize=4)
def _tables(rate: int, window: int) -> tuple[int, Tensor, Tensor]:
    """Points of the Fourier transform, (points // 2 + 1, MELS) filters, (MELS, CEPSTRA) cosines."""
    from torchaudio.functional import create_dct, melscale_fbanks

    points = max(512, 2 ** (window - 1).bit_length())
    filters = melscale_fbanks(points // 2 + 1, 20.0, rate / 2, MELS, rate)
    return points, filters, create_dct(CEPSTRA, MELS, "ortho")


def _nearest(points: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Number of the nearest centre of each point, and the squared distance to it."""
    found = [torch.cdist(part, centroids).min(dim=1) for part in torch.split(points, _ROWS_AT_ONCE)]
    return torch.cat([f.indices for f in found]), torch.cat([f.values for f in found]).square()


def _k_means(points: Tensor, clusters: int, generator: torch.Generator, rounds: int) -> Tensor:
    first = torch.randint(len(points), (1,), generator=generator)
    centroids = points[first]
    distance = _nearest(points, centroids)[1]
    for _ in range(clusters - 1):  # each next centre far from those before it, by chance
        chosen = points[torch.multinomial(distance.clamp(min=_LEAST), 1, generator=generator)]
        centroids = torch.cat([centroids, chosen])
        distance = torch.minimum(distance, _nearest(points, chosen)[1])
    owner = torch.full((len(points),), -1)
    for _ in range(rounds):
        before, owner = owner, _nearest(points, centroids)[0]
        if torch.equal(before, owner):
            break
        size = torch.bincount(owner, minlength=clusters)
        total = torch.zeros_like(centroids).index_add_(0, owner, points)
        centroids = torch.where(size[:, None] > 0, total / size.clamp(min=1)[:, None], centroids)
    return centroids
