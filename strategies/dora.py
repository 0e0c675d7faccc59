"""Adapters that train a weight's rows in direction and length."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmcl.errors import ConfigError
from mmcl.functional.lowrank import dora_weight, row_norm
from mmcl.outputs import Site
from mmcl.strategies._adapters import ROLES, Adapters, LowRank, Role


class DoRA(Adapters):
    """Low-rank adapters on the direction of a weight, with trained row lengths (DoRA; Liu et al., ICML 2024).

    W' = m V / ||V|| by rows, V = W + scale B A; the norm is one of each row (output unit) and a constant in the
    gradient; m begins as the norm of W's rows. What becomes of W' after a task and what trains beside the adapters is
    as in `LoRA`.

    Args:
        rank: rows of A; FoMo-in-Flux has 5.
        scale: factor on B A.
        towers: as in `LoRA`.
        roles: as in `LoRA`.
        blocks: as in `LoRA`.
        tasks: ``merge`` or ``continue``, as in `LoRA`.
        also: as in `LoRA`.

    Raises:
        ConfigError: an argument is out of range or unknown, or nothing is left to adapt.

    Differences from the published code: m is trained as its distance from the norm of W's rows, which is the same for
    Adam without weight decay, and exact at the start in every precision. W is held a second time, so that other
    strategies may average or write the weights. FoMo-in-Flux never merges (``continue``).
    """

    def __init__(
        self,
        rank: int = 16,
        scale: float = 1.0,
        towers: Sequence[str] | None = None,
        roles: Sequence[Role] = ROLES,
        blocks: Sequence[int] | None = None,
        tasks: Literal["merge", "continue"] = "merge",
        also: Sequence[str] = (),
    ) -> None:
        super().__init__(towers, roles, blocks, tasks, also)
        if rank < 1:
            raise ConfigError(f"DoRA: rank is {rank}; it must be 1 or more")
        if not 0 < scale < math.inf:
            raise ConfigError(f"DoRA: scale is {scale}; it must be positive")
        self.rank, self.scale = rank, scale

    def build(self, site: Site) -> _Decomposed:
        return _Decomposed(site, self.rank, self.scale)

    def export_state(self) -> dict[str, Any]:
        return {"anchors": {key: adapter.anchor for key, adapter in self.each().items()}}

    def import_state(self, state: Mapping[str, Any]) -> None:
        for key, adapter in self.each().items():
            adapter.anchor = state["anchors"][key]


class _Decomposed(LowRank):
    """m V / ||V|| - W on one site, W being the weight at the reset."""

    def __init__(self, site: Site, rank: int, scale: float) -> None:
        super().__init__(site, rank, scale)
        self._site = site
        self.anchor = site.rows().clone()
        self.growth = nn.Parameter(self.anchor.new_zeros(len(self.anchor)))

    def forward(self) -> Tensor:
        """The change of the weight, (out, in)."""
        magnitude = row_norm(self.anchor) + self.growth
        weight = dora_weight(self.anchor, self.down, self.up, magnitude, scale=self.scale)
        return weight - self.anchor.to(weight.dtype)

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        super().reset(generator)
        self.growth.zero_()
        self.anchor = self._site.rows().clone()
