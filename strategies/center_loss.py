"""Center loss: features of a class stay together, around a centre that outlives its task."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from mmcl.errors import ConfigError, RunError
from mmcl.functional.representations import center_loss, update_centers
from mmcl.outputs import Batch, Outputs
from mmcl.strategy import StepContext, Strategy

SHARED = "columns"
"""Group of classes that have a column of their own in a head; those of a task alone are under its position."""

Rows = tuple[Tensor, Tensor, Tensor, Tensor]


class CenterLoss(Strategy):
    """Center loss (Wen et al., "A Discriminative Feature Learning Approach", ECCV 2016) over a stream.

    weight / 2 x mean_i |x_i - c_{y_i}|^2 over the rows with a class; one that has no centre yet adds 0. After each step
    the centres of the batch's classes move towards its features, c_j <- c_j - rate x sum (c_j - x_i) / (1 + n_j).
    Centres of earlier tasks stay, so with replay their samples are drawn to where they were.

    A class is a column of the module's head where the batch tells it (``targets``), so that tasks may share classes;
    else it is a label of the row's task.

    Args:
        weight: lambda. The paper's experiments have 0.003 for faces; 0 to 0.1 were tried.
        rate: alpha of the centres. The paper uses 0.5.
        feature: name among the module's features; None takes the first one, of a pair the first of the two.
        normalize: look at features of length 1, for models that compare directions alone.

    Raises:
        ConfigError: an argument is out of range.

    Differences from the published code: a centre begins as the mean of the first features of its class, not at random,
    and pulls from the next step on. Centres are state, not parameters of an optimizer; they follow all that a step
    has seen, on all processes.
    """

    gradients = "observe"

    centers: dict[str, Tensor]
    seen: dict[str, Tensor]

    def __init__(
        self, weight: float = 0.003, rate: float = 0.5, feature: str | None = None, normalize: bool = False
    ) -> None:
        super().__init__()
        if not 0 <= weight < math.inf:
            raise ConfigError(f"CenterLoss: weight is {weight}; a weight is 0 or more")
        if not 0 <= rate <= 1:
            raise ConfigError(f"CenterLoss: rate is {rate}; it must be within 0..1")
        self.weight, self.rate, self.feature, self.normalize = weight, rate, feature, normalize
        self.needs = frozenset({f"features.{feature}" if feature else "features"} if weight else ())
        self.add_state("centers", {}, dtype=None)
        self.add_state("seen", {}, dtype=None)
        self._rows: list[Rows] = []  # of the step under way, several where gradients are accumulated
        self._step: list[Rows] = []

    def losses(self, context: StepContext) -> Mapping[str, Tensor]:
        if not self.weight:
            return {}
        features = self._features(context.outputs)
        groups, classes, valid = _classes(context.batch)
        self._rows.append((features.detach(), groups, classes, valid))
        fixed, known = torch.zeros_like(features), torch.zeros_like(valid)
        for name, centers in self.centers.items():
            rows = valid & (groups == _number(name)) & (classes < len(centers))
            rows[rows.clone()] = self.seen[name][classes[rows]]
            fixed[rows] = centers[classes[rows]].to(features.dtype)
            known = known | rows
        loss = center_loss(features[known], fixed[known]) if known.any() else features.sum() * 0.0
        share = known.sum().float() / context.reduce(valid.sum().float()).clamp(min=1e-9)
        return {"center_loss": self.weight * share * loss}

    def on_gradients(self, context: StepContext) -> None:
        """Nothing is changed: what the step has seen is set aside, whether or not the step really happens."""
        self._step, self._rows = self._rows, []

    def on_step_end(self, context: StepContext) -> None:
        if not self._step:
            return
        features, groups, classes, valid = (context.gather(torch.cat(x)) for x in zip(*self._step, strict=True))
        self._step = []
        for number in torch.unique(groups[valid]).tolist():
            rows = valid & (groups == number)
            self._move(SHARED if number < 0 else str(number), features[rows], classes[rows])

    def _move(self, name: str, features: Tensor, classes: Tensor) -> None:
        wide = features.to(torch.promote_types(features.dtype, torch.float32))
        width = max(int(classes.max()) + 1, len(self.centers.get(name, ())))
        centers, seen = wide.new_zeros(width, wide.shape[1]), torch.zeros(width, dtype=torch.bool, device=wide.device)
        if name in self.centers:
            centers[: len(self.centers[name])], seen[: len(self.seen[name])] = self.centers[name], self.seen[name]
        for new in torch.unique(classes[~seen[classes]]).tolist():
            centers[new] = wide[classes == new].mean(0)
        centers = update_centers(centers, wide, classes, rate=self.rate)
        seen[classes] = True
        self.centers, self.seen = {**self.centers, name: centers}, {**self.seen, name: seen}

    def _features(self, outputs: Outputs) -> Tensor:
        name = self.feature or (self.module.pair[0] if self.module.pair else next(iter(outputs.features), ""))
        if name not in outputs.features:
            raise RunError(f"CenterLoss: the outputs for the batch hold no feature '{name}'")
        found = outputs.features[name]
        return F.normalize(found.float(), dim=-1) if self.normalize else found


def _number(name: str) -> int:
    return -1 if name == SHARED else int(name)


def _classes(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """(B,) group of each row's class (-1: columns of a head), its number in there, and whether the row has one."""
    columns: Tensor | None = batch.get("targets")
    if columns is not None and columns.dim() == 1:
        classes, groups = columns, torch.full_like(columns, -1)
    elif "labels" in batch:
        classes, groups = batch["labels"], batch["domain"]
    else:
        raise RunError("CenterLoss: the batch has no labels; the samples need a class")
    valid = (classes >= 0) & batch["valid"] & ((groups >= 0) | (columns is not None))
    return groups, classes.clamp(min=0), valid
