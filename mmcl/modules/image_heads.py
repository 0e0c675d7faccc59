"""Heads of image classifiers: one row a class, and rows are only ever appended."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HeadKind = Literal["linear", "cosine"]
KINDS: tuple[HeadKind, ...] = ("linear", "cosine")


class LinearHead(nn.Linear):
    """logits = W f + b.

    Args:
        features: D; there are no rows yet.
    """

    def __init__(self, features: int) -> None:
        super().__init__(features, 1, device="meta")  # `nn.Linear` warns of layers without rows
        self.weight, self.bias = nn.Parameter(torch.empty(0, features)), nn.Parameter(torch.empty(0))
        self.out_features = 0

    def append(self, rows: Tensor) -> None:
        """Add rows (N, D), with bias 0."""
        self.weight = _longer(self.weight, rows)
        self.bias = _longer(self.bias, rows.new_zeros(len(rows)))
        self.out_features = len(self.weight)

    def clear(self) -> None:
        """Take all rows away."""
        self.weight, self.bias = nn.Parameter(self.weight.detach()[:0]), nn.Parameter(self.bias.detach()[:0])
        self.out_features = 0


class CosineHead(nn.Module):
    """logits = scale x cos(W_c, f): no class is preferred for the length of its row, nor for a bias.

    Args:
        features: D; there are no rows yet.
        scale: factor on the cosines, at the start where it is learned.
        learned: the scale is a parameter.
    """

    def __init__(self, features: int, scale: float, learned: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = features, 0
        self.weight = nn.Parameter(torch.empty(0, features))
        self.scale = nn.Parameter(torch.tensor(float(scale))) if learned else float(scale)

    def append(self, rows: Tensor) -> None:
        """Add rows (N, D)."""
        self.weight = _longer(self.weight, rows)
        self.out_features = len(self.weight)

    def clear(self) -> None:
        """Take all rows away."""
        self.weight, self.out_features = nn.Parameter(self.weight.detach()[:0]), 0

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) features to (B, C) logits."""
        return self.scale * F.linear(F.normalize(features, dim=-1), F.normalize(self.weight, dim=-1))


def make(kind: HeadKind, features: int, scale: float, learned: bool) -> LinearHead | CosineHead:
    """A head without rows."""
    return LinearHead(features) if kind == "linear" else CosineHead(features, scale, learned)


def _longer(old: Tensor, fresh: Tensor) -> nn.Parameter:
    return nn.Parameter(torch.cat([old.detach(), fresh.to(old)]))
