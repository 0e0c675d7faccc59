"""Fly-CL: a sparse expansion whose strongest units alone answer, and ridge regression."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcl.errors import ConfigError
from mmcl.functional.ridge import add_gram, cross_validated_ridge, solve_ridge, sparse_projection
from mmcl.strategies._class_features import Trains
from mmcl.strategies._ridge_classifier import RidgeClassifier
from mmcl.stream import Task


class FlyCL(RidgeClassifier):
    """Ridge regression on a sparse expansion with winners that take all (Fly-CL; Zou et al., 2025).

    h = the largest entries of f(x) W, the others 0; each of the M columns of W sees a few features only, as the fly's
    Kenyon cells do. G = sum h h^T and Q = sum h y^T over all samples of all tasks; scores h (G + lambda I)^-1 Q. lambda
    minimises generalised cross-validation, which needs the eigenvalues of G but neither held-out samples nor a fit for
    each candidate.

    Args:
        width: M; the sums take 8 M^2 bytes in memory and in every checkpoint, 32 MB for 2,000.
        keep: share of the units that stay.
        connections: share of the features that a unit sees.
        feature: name among the module's features.
        trains: see `RanPAC`.
        with_initial: likewise.

    Raises:
        ConfigError: `width` or a share is out of range, `trains` is unknown, or a task has no class names.

    Differences from the published code: it was not compared, and the shares (300 of 768 features, 3,000 of 10,000
    units) are unconfirmed; lambda looks at all tasks' sums; the projection is
    kept as a dense matrix, so that its sparsity saves no time.
    """

    def __init__(
        self,
        width: int = 2000,
        keep: float = 0.3,
        connections: float = 0.4,
        feature: str = "image",
        trains: Trains = "nothing",
        with_initial: bool = False,
    ) -> None:
        super().__init__(width, feature, trains, with_initial)
        for name, value in (("keep", keep), ("connections", connections)):
            if not 0 < value <= 1:
                raise ConfigError(f"FlyCL: {name} is {value}; it must be within (0, 1]")
        self.keep, self.connections = max(round(keep * width), 1), connections

    def draw(self, features: int, generator: torch.Generator) -> Tensor:
        return sparse_projection(features, self.width, max(round(self.connections * features), 1), generator=generator)

    def learn(self, task: Task, features: Tensor, columns: Tensor) -> None:
        self.prepare(features, self.generator(task))
        add_gram(self.gram, self.cross, features, columns, self.projection, keep=self.keep)
        self.ridge, _ = cross_validated_ridge(self.gram, self.cross, int(self.counts.sum()) + len(columns))
        self.weight = solve_ridge(self.gram, self.cross, self.ridge).float()
