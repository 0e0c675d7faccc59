"""What the kinds of speech recognisers share: rows of waveforms and transcripts in, outputs and texts out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from mmcl.outputs import Batch, Outputs

MOST_TOKENS = 224
"""New tokens of a transcript, half of what Whisper's decoder takes."""


class Recogniser(Protocol):
    """One kind of speech recogniser: how it reads, computes, writes and is stored.

    Attributes:
        rate: samples a second.
        least: samples that a recording must have.
        paddings: batch keys of rows of different lengths, and what fills them up.
        fresh_head: once loaded, whether its head is new and knows nothing yet.
    """

    rate: int
    least: int
    paddings: Mapping[str, float]
    fresh_head: bool

    def load(self, checkpoint: str | None, random_init: bool) -> nn.Module:
        """The network to train."""

    def build(self) -> nn.Module:
        """A network of the same shape with any weights."""

    def check(self, language: str | None) -> None:
        """Refuse a language that cannot be written (`ConfigError`)."""

    def grow(self, network: nn.Module, language: str | None) -> None:
        """Symbols that a task's language brings."""

    def row(self, waveform: Tensor, text: str | None, language: str | None) -> dict[str, Any]:
        """Tensors of one recording; `mmcl.outputs.SKIP` where it cannot be trained on."""

    def compute(self, network: nn.Module, batch: Batch) -> Outputs:
        """Outputs of a network."""

    def generate(
        self, network: nn.Module, batch: Batch, max_new_tokens: int = MOST_TOKENS, language: str | None = None
    ) -> list[str]:
        """One text for each row."""

    def part(self, name: str) -> str:
        """Which part of the network a parameter belongs to: ``features``, ``encoder``, ``decoder`` or ``head``."""

    def export(self, network: nn.Module, folder: Path) -> None:
        """Files of the peer library."""
