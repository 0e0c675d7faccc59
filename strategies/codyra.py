"""Low-rank adapters whose ranks are chosen while they train."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from mmcl.errors import ConfigError
from mmcl.functional.lowrank import (
    ThresholdSchedule,
    active_components,
    published_threshold,
    soft_threshold,
    threshold_schedule,
)
from mmcl.outputs import Site
from mmcl.strategies._adapters import ROLES, Adapters, LowRank, Role
from mmcl.strategy import DataPass, StepContext
from mmcl.stream import Task


class CoDyRA(Adapters):
    """Dynamic-rank low-rank adapters (CoDyRA; Lu et al., 2024: dynamic rank-selective LoRA).

    W' = W + B diag(g) A with A (rank, in) drawn anew, B (out, rank) zero and importances g ~ N(0, 1). The objective is
    the module's plus kappa sum |g|, minimised by proximal gradient: after the optimizer's step
    g <- 1(|g| > kappa) (g - sign(g) kappa). kappa is 0 for the first part of a task and then climbs in notches to
    `kappa`. When the task ends, components with g = 0 are dropped, W takes B diag(g) A in float32, and the next task
    begins with new factors: the model keeps its architecture and its speed. What trains beside the adapters is as in
    `LoRA`. ``rank_mean`` (over adapted weights) and ``rank_total`` of what is left are logged while thresholds are in
    force, and the state `ranks` holds the rank of each weight after each task.

    Args:
        rank: components at first; 16 in the paper.
        kappa: the last threshold; 0.005 in the paper and its run script, where the argument's own default is 0.0007.
            It is a distance that g travels, so tasks at other learning rates or lengths want another one.
        dense: part of a task before the first threshold; 0.5 in the code.
        notches: thresholds from 0 to `kappa`; 50 in the code.
        published: the published code to the letter. Its operator first shrinks and then zeroes what is below kappa, so
            that all of |g| < 2 kappa is lost, and a task whose second part is shorter than `notches` steps prunes
            nothing. By default the operator is the paper's, and such a task has as many notches as steps.
        towers: as in `LoRA`.
        roles: as in `LoRA`; the default is that of the paper's run script, which leaves out the output projection.
        blocks: as in `LoRA`.
        also: as in `LoRA`.

    Raises:
        ConfigError: an argument is out of range or unknown, or nothing is left to adapt.

    Differences from the published code: operator and short tasks, see `published`. Factors begin anew when a task ends,
    not when the next one starts, and the merged ones are not kept; their ranks are. The code has a loss over class
    names of its own; here it is the module's (`ClassTextCrossEntropy` comes nearest). As in the code, Adam may bring a
    zeroed component back at the next step; what counts is the last one, when the rate is near 0.
    """

    writes = frozenset({"on_step_end", "on_task_end"})
    ranks: dict[str, dict[str, int]]

    def __init__(
        self,
        rank: int = 16,
        kappa: float = 0.005,
        dense: float = 0.5,
        notches: int = 50,
        published: bool = False,
        towers: Sequence[str] | None = None,
        roles: Sequence[Role] = ROLES,
        blocks: Sequence[int] | None = None,
        also: Sequence[str] = (),
    ) -> None:
        super().__init__(towers, roles, blocks, "merge", also)
        if rank < 1:
            raise ConfigError(f"CoDyRA: rank is {rank}; it must be 1 or more")
        if not 0 <= kappa < math.inf:
            raise ConfigError(f"CoDyRA: kappa is {kappa}; a threshold is 0 or more")
        if not 0 <= dense <= 1:
            raise ConfigError(f"CoDyRA: dense is {dense}; it must be within 0..1")
        if notches < 2:
            raise ConfigError(f"CoDyRA: notches is {notches}; it must be 2 or more")
        self.rank, self.kappa, self.dense, self.notches, self.published = rank, kappa, dense, notches, published
        self.threshold = published_threshold if published else soft_threshold
        self._planned: tuple[int, ThresholdSchedule] | None = None
        self.add_state("ranks", {})

    def build(self, site: Site) -> LowRank:
        return LowRank(site, self.rank, gated=True)

    def schedule(self, steps: int) -> ThresholdSchedule:
        """Thresholds of a task of so many steps."""
        if self._planned is None or self._planned[0] != steps:
            left = int(steps - self.dense * steps)
            notches = self.notches if self.published else max(2, min(self.notches, left))
            self._planned = steps, threshold_schedule(steps, self.dense, notches, self.kappa)
        return self._planned[1]

    def on_step_end(self, context: StepContext) -> None:
        kappa, applied = self.schedule(context.task_steps)
        if not applied[context.task_step]:
            return
        gates = [adapter.gate for adapter in self.each().values()]
        kept = self.threshold(torch.stack(gates), float(kappa[context.task_step]))
        torch._foreach_copy_(gates, list(kept))
        total = torch.count_nonzero(kept)
        context.log(f"{self.name}/rank_total", total)
        context.log(f"{self.name}/rank_mean", total / len(gates))

    def on_task_end(self, task: Task, data: DataPass) -> None:
        self.ranks[task.name] = {
            site.name: len(active_components(a.down, a.up, a.gate)[0])
            for site, a in zip(self.sites.values(), self.each().values(), strict=True)
        }
        super().on_task_end(task, data)
