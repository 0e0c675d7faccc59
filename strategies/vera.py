"""Adapters that train two vectors around random matrices."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from mmcl.errors import ConfigError
from mmcl.functional.lowrank import vera_delta
from mmcl.outputs import Site
from mmcl.strategies._adapters import ROLES, Adapters, Role
from mmcl.stream import Stream

ROW_SCALE = 0.1
"""What b begins with."""


class VeRA(Adapters):
    """Two trained vectors around random matrices that all layers share (VeRA; Kopiczko et al., ICLR 2024).

    W' = W + scale diag(b) B_f diag(d) A_f. A_f (rank, in) and B_f (out, rank) are drawn once for each shape and
    frozen; d (rank) begins at 0 and b (out) at 0.1. What becomes of W' after a task and what trains beside the adapters
    is as in `LoRA`.

    Args:
        rank: rows of A_f; FoMo-in-Flux has 5, the paper 256 and more, which trains few parameters all the same.
        scale: plain factor.
        towers: as in `LoRA`.
        roles: as in `LoRA`.
        blocks: as in `LoRA`.
        tasks: ``merge`` or ``continue``, as in `LoRA`. The random matrices stay the same.
        also: as in `LoRA`.

    Raises:
        ConfigError: an argument is out of range or unknown, or nothing is left to adapt.

    Differences from the published code: matrices and starting values are those of FoMo-in-Flux, one pair of Kaiming
    matrices for each shape; the paper cuts all from one pair and begins with d = 0.1, b = 0. FoMo-in-Flux never merges
    (``continue``).
    """

    shared: dict[str, dict[str, Tensor]]

    def __init__(
        self,
        rank: int = 256,
        scale: float = 1.0,
        towers: Sequence[str] | None = None,
        roles: Sequence[Role] = ROLES,
        blocks: Sequence[int] | None = None,
        tasks: Literal["merge", "continue"] = "merge",
        also: Sequence[str] = (),
    ) -> None:
        super().__init__(towers, roles, blocks, tasks, also)
        if rank < 1:
            raise ConfigError(f"VeRA: rank is {rank}; it must be 1 or more")
        if not 0 < scale < math.inf:
            raise ConfigError(f"VeRA: scale is {scale}; it must be positive")
        self.rank, self.scale = rank, scale
        self.add_state("shared", {}, dtype=None)

    def setup(self, stream: Stream) -> None:
        self._generator = self.generator(stream.tasks[0])
        super().setup(stream)

    def build(self, site: Site) -> _Scaled:
        key = "x".join(map(str, site.shape))
        if key not in self.shared:
            rows, columns = site.shape
            shapes = {"down": (self.rank, columns), "up": (rows, self.rank)}
            self.shared[key] = {name: self._draw(*shape).to(site.rows()) for name, shape in shapes.items()}
        return _Scaled(site, self.rank, self.scale, lambda: self.shared[key])

    def _draw(self, rows: int, columns: int) -> Tensor:
        """As `torch.nn.init.kaiming_uniform_` draws."""
        bound = math.sqrt(6 / columns)
        return torch.empty(rows, columns).uniform_(-bound, bound, generator=self._generator)


class _Scaled(nn.Module):
    """diag(b) B_f diag(d) A_f on one site.

    Args:
        site: where it goes.
        rank: of the matrices.
        scale: plain factor.
        matrices: gives ``down`` and ``up``.
    """

    def __init__(self, site: Site, rank: int, scale: float, matrices: Callable[[], dict[str, Tensor]]) -> None:
        super().__init__()
        self.scale, self._matrices = scale, matrices
        self.rank_scale = nn.Parameter(site.rows().new_zeros(rank))
        self.row_scale = nn.Parameter(site.rows().new_full((site.shape[0],), ROW_SCALE))

    def forward(self) -> Tensor:
        """The change of the weight, (out, in)."""
        shared = self._matrices()
        return vera_delta(shared["down"], shared["up"], self.rank_scale, self.row_scale, scale=self.scale)

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """No change at first; nothing is drawn."""
        self.rank_scale.zero_()
        self.row_scale.fill_(ROW_SCALE)
