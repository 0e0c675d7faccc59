"""RanPAC: random projections and ridge regression on a frozen network."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmcl.errors import ConfigError, RunError
from mmcl.functional.ridge import random_projection_ridge, ridge_logits
from mmcl.strategies._class_features import Trains
from mmcl.strategies._ridge_classifier import RidgeClassifier
from mmcl.stream import Task


class RanPAC(RidgeClassifier):
    """Ridge regression on randomly projected features (McDonnell et al., NeurIPS 2023).

    h = ReLU(f(x) W) with W (D, M) standard normal, drawn once; G = sum h h^T and Q = sum h y^T over all samples of all
    tasks; scores h (G + lambda I)^-1 Q. For each task lambda is the one of 10^-8 ... 10^8 with the smallest squared
    error on a fifth of its samples, after a fit on the others. No class is favoured for the order of the tasks: the
    result is that of all samples at once, but for lambda.

    Args:
        width: M. The paper has 10,000, whose G is 800 MB in memory and in every checkpoint; 2,000 needs 32 MB.
        ridge: lambda, where it shall not be chosen.
        cosine: compare normalised h and weights, as one port does; the method's own repository does not.
        feature: name among the module's features.
        trains: ``first`` is the paper's first phase, with an adapter before this strategy in the list; ``nothing``
            leaves it out. With ``all`` the sums are of features that no longer exist.
        with_initial: of the pretrained network's and the live one's features, concatenated.

    Raises:
        ConfigError: `width` or `ridge` is out of range, `trains` is unknown, or a task has no class names.

    Differences from the published code: samples are shuffled before a fifth is held out (there the loader does it), and
    the classifier is kept in float32 after it was solved in float64, where there G is float32.
    """

    def __init__(
        self,
        width: int = 2000,
        ridge: float | None = None,
        cosine: bool = False,
        feature: str = "image",
        trains: Trains = "nothing",
        with_initial: bool = False,
    ) -> None:
        super().__init__(width, feature, trains, with_initial)
        if ridge is not None and not 0 < ridge < math.inf:
            raise ConfigError(f"RanPAC: ridge is {ridge}; it must be positive")
        self.given, self.cosine = ridge, cosine

    def draw(self, features: int, generator: torch.Generator) -> Tensor:
        return torch.randn(features, self.width, generator=generator)

    def learn(self, task: Task, features: Tensor, columns: Tensor) -> None:
        if self.given is None and len(columns) < 2:
            raise RunError(
                f"RanPAC: task '{task.name}' has one sample, and none can be held out to choose lambda; give `ridge`"
            )
        generator = self.generator(task)
        self.prepare(features, generator)
        order = torch.randperm(len(columns), generator=generator).to(columns.device)
        fit = random_projection_ridge(
            features[order], columns[order], self.projection, gram=self.gram, cross=self.cross, ridge=self.given
        )
        self.weight, self.ridge = fit.weight.float(), fit.ridge
        self.gram, self.cross = fit.gram, fit.cross

    def scores(self, features: Tensor) -> Tensor:
        return ridge_logits(features, self.weight, self.projection, cosine=self.cosine)
