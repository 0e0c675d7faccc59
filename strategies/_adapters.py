"""What the adapter strategies share: which sites, what trains beside them, and what becomes of them after a task."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmcl.errors import ConfigError, near
from mmcl.functional.lowrank import lowrank_delta
from mmcl.outputs import Site
from mmcl.strategy import DataPass, Strategy
from mmcl.stream import Stream, Task
from mmcl.weights import canonical

Role = Literal["query", "key", "value", "out", "mlp_in", "mlp_out", "projection", "other"]
KNOWN: tuple[Role, ...] = ("query", "key", "value", "out", "mlp_in", "mlp_out", "projection", "other")
ROLES: tuple[Role, ...] = ("query", "key", "value", "mlp_in", "mlp_out")
"""Where CoDyRA's run script puts its adapters; one default for all, so that methods compare at equal places."""


class Selective(Strategy):
    """Trains part of what the module would train, and never more.

    The module's head over the tasks' own classes or symbols goes on training; all other weights of the network are
    frozen but those that `keeps` or `also` name.

    Args:
        also: regular expressions; weights whose whole canonical name fits one train too.
    """

    claims = frozenset({"adapters"})

    def __init__(self, also: Sequence[str]) -> None:
        super().__init__()
        self.name = type(self).__name__.lower()
        try:
            self._also = [re.compile(pattern) for pattern in also]
        except re.error as error:
            raise ConfigError(
                f"{type(self).__name__}: `also` {list(also)} is no regular expression: {error}"
            ) from error

    def keeps(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether a weight of the network belongs to what this method trains."""
        return False

    def setup(self, stream: Stream) -> None:
        names = [canonical(name) for name, _ in self.module.network.named_parameters()]
        for pattern in self._also:
            if not any(pattern.fullmatch(name) for name in names):
                title = type(self).__name__
                raise ConfigError(f"{title}: `also` '{pattern.pattern}' fits no weight; one is called '{names[0]}'")

    def grow(self, task: Task) -> None:
        for raw, parameter in self.module.network.named_parameters():
            name = canonical(raw)
            wanted = self.keeps(name, parameter) or self.module.is_head(name) or self._named(name)
            parameter.requires_grad_(parameter.requires_grad and wanted)

    def _named(self, name: str) -> bool:
        return any(pattern.fullmatch(name) for pattern in self._also)


class LowRank(nn.Module):
    """B A, or B diag(g) A, on one site.

    Args:
        site: where it goes.
        rank: of the product.
        scale: plain factor.
        gated: with g.
    """

    def __init__(self, site: Site, rank: int, scale: float = 1.0, gated: bool = False) -> None:
        super().__init__()
        rows = site.rows()
        self.scale = scale
        self.down = nn.Parameter(rows.new_zeros(rank, rows.shape[1]))
        self.up = nn.Parameter(rows.new_zeros(rows.shape[0], rank))
        self.gate = nn.Parameter(rows.new_zeros(rank)) if gated else None

    def forward(self) -> Tensor:
        """The change of the weight, (out, in)."""
        return lowrank_delta(self.down, self.up, self.gate, scale=self.scale)

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """A drawn as `nn.Linear` draws (Kaiming, a = sqrt 5), g normal, B zero: no change at first."""
        bound = 1 / math.sqrt(self.down.shape[1])
        self.down.copy_(torch.empty(self.down.shape).uniform_(-bound, bound, generator=generator))
        if self.gate is not None:
            self.gate.copy_(torch.randn(self.gate.shape, generator=generator))
        self.up.zero_()


class Adapters(Selective):
    """Adapters on the linear weights that the module would train; the weights themselves are frozen.

    Args:
        towers: where adapters go; None is every tower.
        roles: which linear weights of a block.
        blocks: which blocks, -1 the tower's last; None is all, with what lies outside of blocks.
        tasks: ``merge`` adds the adapters to the weights when a task ends and starts anew, ``continue`` trains the
            same ones on.
        also: regular expressions of weights that train too.
        modes: what `tasks` may be.

    Raises:
        ConfigError: an argument is unknown, or nothing is left to adapt.
    """

    needs = frozenset({"sites.linear"})
    writes = frozenset({"on_task_end"})

    def __init__(
        self,
        towers: Sequence[str] | None,
        roles: Sequence[str],
        blocks: Sequence[int] | None,
        tasks: str,
        also: Sequence[str],
        modes: Sequence[str] = ("merge", "continue"),
    ) -> None:
        super().__init__(also)
        for role in roles:
            self._require(role in KNOWN, f"role '{role}' is unknown; {near(role, KNOWN)}")
        self._require(tasks in modes, f"tasks '{tasks}' is unknown; {near(tasks, modes)}")
        self.towers, self.roles, self.blocks, self.tasks = towers, roles, blocks, tasks
        self.freezes = not also
        self.adapters = nn.ModuleDict()
        self.sites: dict[str, Site] = {}

    def _require(self, fine: bool, words: str) -> None:
        if not fine:
            raise ConfigError(f"{type(self).__name__}: {words}")

    def build(self, site: Site) -> Any:
        """The adapter of a site: its call gives the change of the weight, `reset(generator)` makes that zero."""
        raise NotImplementedError

    def setup(self, stream: Stream) -> None:
        super().setup(stream)
        for site in self._chosen():
            key = site.name.replace(".", "/")  # a module's name holds no dots
            self.sites[key] = site
            self.adapters[key] = self.build(site)
            site.attach(self.adapters[key])

    def grow(self, task: Task) -> None:
        super().grow(task)
        if self.tasks == "merge" or (self.tasks == "continue" and self.stream.position(task) == 0):
            self._reset(task)

    def each(self) -> dict[str, Any]:
        """The adapters by the place of their site."""
        return dict(self.adapters.items())

    def _reset(self, task: Task) -> None:
        generator = self.generator(task)
        for adapter in self.each().values():
            adapter.reset(generator)

    def on_task_end(self, task: Task, data: DataPass) -> None:
        if self.tasks != "merge":
            return
        for site in self.sites.values():
            site.fold()
        self._reset(task)

    def _chosen(self) -> list[Site]:
        """The sites that adapters go to, in the network's order."""
        offered: list[Site] = self.module.sites("linear")
        towers = {site.tower for site in offered}
        for tower in self.towers or ():
            self._require(tower in towers, f"tower '{tower}' has no linear weights; {near(tower, towers)}")
        last = {t: max((s.block for s in offered if s.tower == t and s.block is not None), default=-1) for t in towers}

        def fits(site: Site) -> bool:
            if self.towers is not None and site.tower not in self.towers:
                return False
            depth = None if self.blocks is None else {b if b >= 0 else last[site.tower] + 1 + b for b in self.blocks}
            return site.role in self.roles and (depth is None or site.block in depth)

        depths = {tower: last[tower] + 1 for tower in sorted(towers) if self.towers is None or tower in self.towers}
        lost = [b for b in self.blocks or () if not any(-depth <= b < depth for depth in depths.values())]
        have = ", ".join(f"the {tower} tower has {depth} blocks" for tower, depth in depths.items())
        self._require(not lost, f"there is no block {', '.join(map(str, lost))}: {have}")
        found = [site for site in offered if fits(site)]
        there = ", ".join(sorted({f"{site.tower} {site.role}" for site in offered})) or "none"
        self._require(bool(found), f"no linear weight fits `towers`, `roles` and `blocks`; there are: {there}")
        found = [site for site in found if site.trains]
        self._require(bool(found), "adapters go where the module trains, and it trains none of the chosen weights")
        return found
