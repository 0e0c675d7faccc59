"""TIES: trimmed changes, one sign for each entry, and the mean of those that agree."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal, get_args

from torch import Tensor

from mmcl.errors import ConfigError, near
from mmcl.functional.merging import task_vector, ties
from mmcl.functional.trimming import AGGREGATIONS, Aggregation, Pruned, breadcrumbs, dare
from mmcl.outputs import Weights
from mmcl.strategies._merge import Merge, Rule
from mmcl.stream import Task

Prune = Literal["magnitude", "random", "breadcrumbs"]


class TIES(Merge):
    """Trim, elect signs and merge the tasks' changes (Yadav et al., NeurIPS 2023).

    Of each task vector the entries of largest magnitude stay; for each entry the sign of the sum is elected, and the
    entries of that sign are averaged; theta_0 + scale x these are evaluated. The tasks' weights are read from the
    snapshots of the run folder: on the disk there is one copy for each task, in memory only a tensor of each, and one
    whole vector at a time while the thresholds of ``magnitude`` are found.

    Args:
        density: part of each vector that stays. The paper keeps 0.2; FoMo-in-Flux prunes 0.7 where it merges task after
            task, so that 0.3 stay.
        scale: of the merged vector. 1 is the paper's choice without tuning; the baselines of MagMax use 0.55.
        rule: ``zero_shot`` is the paper's, each task training from theta_0; the others are those of `EMAMerge`.
        aggregation: of the entries that agree: ``mean``, ``sum`` or ``max``.
        prune: what stays: the largest entries of the vector (``magnitude``), entries drawn at random, scaled up
            (``random``: DARE; Yu et al., ICML 2024), or of each tensor the largest but for the top 1 %
            (``breadcrumbs``; Davari & Belilovsky, ECCV 2024).
        unrolled: merge pair by pair, the newest task with the merge so far, as FoMo-in-Flux does. One copy is then kept
            in memory, and nothing on the disk.

    Raises:
        ConfigError: an argument is out of range.

    Differences from the published code: the threshold is that of the official code, int(density x d) + 1 entries;
    FoMo-in-Flux counts from the other end. An entry whose sum is 0 takes the sign that most entries have. Running
    statistics are not merged: they are the latest model's.
    """

    def __init__(
        self,
        density: float = 0.2,
        scale: float = 1.0,
        rule: Rule = "zero_shot",
        aggregation: Aggregation = "mean",
        prune: Prune = "magnitude",
        unrolled: bool = False,
    ) -> None:
        super().__init__(rule)
        if not 0 < density <= 1 or not math.isfinite(scale):
            raise ConfigError(f"TIES: density {density} must be above 0 and at most 1, and scale {scale} finite")
        for name, value, known in (("aggregation", aggregation, AGGREGATIONS), ("prune", prune, get_args(Prune))):
            if value not in known:
                raise ConfigError(f"TIES: {name} '{value}' is unknown; {near(value, known)}")
        self.density, self.scale, self.aggregation, self.prune = density, scale, aggregation, prune
        self.pairwise = unrolled or rule in ("ema", "fine_tuned")
        if not self.pairwise:
            self.snapshots = self.snapshots | {"task-*"}

    def absorb(self, base: Weights, new: Weights, kept: Weights, task: Task) -> Weights:
        if not self.pairwise:
            return {}
        return self._merged(base, [task_vector(new, base), task_vector(kept or base, base)], [task])

    def result(self, base: Weights, kept: Weights, task: Task) -> Weights:
        if self.pairwise:
            return kept
        tasks = self.stream.tasks[: self.stream.position(task) + 1]
        return self._merged(base, [*self.earlier(base, task), task_vector(self.live(), base)], tasks)

    def _merged(self, base: Weights, vectors: Sequence[Mapping[str, Tensor]], tasks: Sequence[Task]) -> Weights:
        """The merge; what is drawn at random is a function of the task, which vector of it, and the tensor."""
        if self.prune == "magnitude":
            return ties(base, vectors, self.density, self.scale, aggregation=self.aggregation)
        owners = [(tasks[i % len(tasks)], i // len(tasks)) for i in range(len(vectors))]
        pruned = [Pruned(vector, partial(self._pruned, *owner)) for vector, owner in zip(vectors, owners, strict=True)]
        return ties(base, pruned, 1.0, self.scale, aggregation=self.aggregation)

    def _pruned(self, task: Task, number: int, name: str, value: Tensor) -> Tensor:
        if self.prune == "breadcrumbs":
            return breadcrumbs({name: value}, self.density, outliers=min(0.01, 1 - self.density))[name]
        generator = self.reach.generator(task, f"{self.name}/{number}/{name}")
        return dare({name: value}, self.density, generator)[name]
