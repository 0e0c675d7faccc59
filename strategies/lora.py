"""Low-rank adapters: merged after each task, trained on, or one for each domain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from mmcl.errors import ConfigError
from mmcl.functional.lowrank import subspace_overlap
from mmcl.outputs import Site
from mmcl.strategies._adapters import ROLES, LowRank, Role
from mmcl.strategies._domains import DomainAdapters
from mmcl.strategy import DataPass, StepContext
from mmcl.stream import Task


class LoRA(DomainAdapters):
    """Low-rank adapters on frozen linear weights (LoRA; Hu et al., ICLR 2022).

    W' = W + scale B A with A (rank, in) drawn anew and B (out, rank) zero. By default W takes B A when a task ends, in
    float32, and the next task begins with new factors: the model keeps its architecture and its speed. Adapters go to
    the weights that the module would train; these are frozen, and beside the adapters only the module's own head over
    the tasks' classes or symbols trains, and what `also` names.

    O-LoRA (Wang et al., Findings of EMNLP 2023) is `orthogonality` above 0: orthogonality x sum_i sum |A_i A^T| over
    the earlier tasks i holds the rows of A orthogonal to theirs. CoLoR (Wistuba et al., 2023) is ``separate``: one
    adapter for each domain, chosen for each sample by the nearest of a few centres of the pretrained model's features.

    Args:
        rank: rows of A. 16 is the LoRA of the tables of CoDyRA; FoMo-in-Flux has 5.
        scale: factor on B A, as in FoMo-in-Flux.
        alpha: in its place, as in the paper: the factor is alpha / rank.
        towers: ``image``, ``text``, ... as the module calls them; None is every one that it trains.
        roles: which linear weights of a block: ``query``, ``key``, ``value``, ``out``, ``mlp_in``, ``mlp_out``,
            ``projection``, ``other``. The default is where CoDyRA's run script puts them.
        blocks: which blocks of a tower, -1 its last; None is all.
        tasks: ``merge``; ``continue`` trains the same factors on, as FoMo-in-Flux does; ``separate``.
        orthogonality: weight of O-LoRA's term, whose paper uses 0.5. It needs ``merge``.
        clusters: centres of a domain, with ``separate``. CoLoR and S-Prompts use 5.
        also: weights that train too, as regular expressions on their whole names (``logit_scale``).

    Raises:
        ConfigError: an argument is out of range or unknown, two do not go together, or nothing is left to adapt.

    Differences from the published code: LoRA has no dropout, and query, key and value have factors of their own where
    an attention layer packs them. O-LoRA keeps all earlier B A as adapters beside W; here W has taken them, and the
    rows of A are kept. Its term's gradient is added after the backward pass. CoLoR has a new head for each domain; here
    one goes on, and is kept as it was at each domain's end; the samples of a domain may be given any class seen so far.
    """

    gradients = "add"
    earlier: dict[str, Tensor]

    def __init__(
        self,
        rank: int = 16,
        scale: float = 1.0,
        alpha: float | None = None,
        towers: Sequence[str] | None = None,
        roles: Sequence[Role] = ROLES,
        blocks: Sequence[int] | None = None,
        tasks: Literal["merge", "continue", "separate"] = "merge",
        orthogonality: float = 0.0,
        clusters: int = 5,
        also: Sequence[str] = (),
    ) -> None:
        super().__init__(clusters, towers, roles, blocks, tasks, also)
        factor = scale if alpha is None else alpha / max(rank, 1)
        if rank < 1:
            raise ConfigError(f"LoRA: rank is {rank}; it must be 1 or more")
        if alpha is not None and scale != 1:
            raise ConfigError(f"LoRA: scale is {scale} and alpha {alpha}; give one of them")
        if not 0 < factor < math.inf:
            raise ConfigError(f"LoRA: the factor on B A is {factor}; it must be positive")
        if not 0 <= orthogonality < math.inf:
            raise ConfigError(f"LoRA: orthogonality is {orthogonality}; a weight is 0 or more")
        if orthogonality and tasks != "merge":
            raise ConfigError(f"LoRA: orthogonality to earlier tasks needs tasks 'merge', not '{tasks}'")
        self.rank, self.scale, self.orthogonality = rank, factor, orthogonality
        self.add_state("earlier", {}, dtype=None)

    def make(self, site: Site) -> LowRank:
        return LowRank(site, self.rank, self.scale)

    def on_gradients(self, context: StepContext) -> None:
        if not self.earlier:
            return
        downs = {key: adapter.down for key, adapter in self.each().items()}
        with torch.enable_grad():
            overlaps = [subspace_overlap(downs[key], earlier) for key, earlier in self.earlier.items()]
            penalty = self.orthogonality * torch.stack(overlaps).sum()
            gradients = torch.autograd.grad(penalty, [downs[key] for key in self.earlier])
        for key, gradient in zip(self.earlier, gradients, strict=True):
            down = downs[key]
            down.grad = gradient if down.grad is None else down.grad.add_(gradient)
        context.log(f"{self.name}/overlap", penalty)

    def on_task_end(self, task: Task, data: DataPass) -> None:
        if self.orthogonality:
            for key, adapter in self.each().items():
                rows = adapter.down.detach().clone()
                self.earlier[key] = torch.cat([self.earlier[key], rows]) if key in self.earlier else rows
        super().on_task_end(task, data)
