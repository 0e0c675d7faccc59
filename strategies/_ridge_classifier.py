"""What the ridge classifiers on random features share."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcl.errors import ConfigError
from mmcl.functional.ridge import ridge_logits
from mmcl.strategies._class_features import FeatureClassifier, Trains


class RidgeClassifier(FeatureClassifier):
    """Base of classifiers that are solved from sums over all samples so far, which are all that is kept of them.

    Args:
        width: M of the expansion; the sums are (M, M) and (M, C) numbers of 8 bytes.
        feature: name among the module's features.
        trains: see `FeatureClassifier`.
        with_initial: likewise.
    """

    gram: Tensor
    cross: Tensor
    projection: Tensor
    weight: Tensor

    def __init__(self, width: int, feature: str, trains: Trains, with_initial: bool) -> None:
        super().__init__(feature, trains, with_initial)
        if width < 1:
            raise ConfigError(f"{type(self).__name__}: width is {width}; it must be 1 or more")
        self.width = width
        for name in ("gram", "cross"):
            self.add_state(name, torch.zeros(0, 0, dtype=torch.float64), dtype=None)
        self.add_state("projection", torch.zeros(0, 0))
        self.add_state("weight", torch.zeros(0, 0))
        self.add_state("ridge", 0.0)
        self.keep: int | None = None

    def draw(self, features: int, generator: torch.Generator) -> Tensor:
        """(features, M) random numbers, drawn once."""
        raise NotImplementedError

    def prepare(self, features: Tensor, generator: torch.Generator) -> None:
        """Draw the projection and allocate the sums when the first task ends."""
        if not len(self.projection):
            device = features.device
            self.projection = self.draw(features.shape[1], generator).to(device)
            self.gram = torch.zeros(self.width, self.width, dtype=torch.float64, device=device)
            self.cross = torch.zeros(self.width, len(self.labels.names), dtype=torch.float64, device=device)

    def scores(self, features: Tensor) -> Tensor:
        return ridge_logits(features, self.weight, self.projection, keep=self.keep)
