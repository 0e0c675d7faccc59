"""What prompt methods share: a frozen backbone, the query, prompts for one forward, and counts of what was selected."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mmcl import distributed
from mmcl.errors import ConfigError
from mmcl.outputs import ATTACHED, Batch
from mmcl.strategy import StepContext, Strategy
from mmcl.stream import Stream, Task

SELECTED = "selected_prompts"
"""Key in `Outputs.extra` of a `Selected`."""
KEYS = "prompts.keys"
"""What strategies offer that select prompts by key."""
Attachment = Callable[[], AbstractContextManager[None]]


class Selected(NamedTuple):
    """What a forward chose out of a pool.

    Attributes:
        query: (B, C), without gradients.
        keys: (B, k, C) keys of the chosen prompts, with gradients.
        indices: (B, k) their numbers.
    """

    query: Tensor
    keys: Tensor
    indices: Tensor


class PromptStrategy(Strategy):
    """Base of the prompt methods. The network is frozen but for a classifier head of the stream; prompts train.

    Before the first task no prompt is passed, so that row 0 is the pretrained model. The query is the tower's feature
    from the same network without prompts, in eval mode and without gradients, once a step. Where an evaluation reads
    the same samples again, it is kept (in memory, not in checkpoints) for as long as the tower's weights stay.
    """

    freezes = True
    gradients = "observe"
    unexported = "prompts"
    pool_size: int = 0
    """Prompts that are counted."""
    selected: dict[str, Tensor]
    """Task -> how often its training selected each prompt."""

    def __init__(self, kind: Literal["attention", "input"], init: tuple[float, float] = (-1.0, 1.0)) -> None:
        super().__init__()
        low, high = init
        if not -math.inf < low <= high < math.inf:
            raise ConfigError(f"{type(self).__name__}: init is {list(init)}; give two numbers, the lower first")
        self.kind, self.init = kind, init
        self.needs = frozenset({f"sites.{self.kind}"})
        self._pending: list[Tensor] = []  # of the step under way, several where gradients are accumulated
        self._step: list[Tensor] = []
        self._queries: dict[tuple[str, str], dict[int, Tensor]] = {}
        self._stamp: tuple[int, ...] = ()
        self.add_state("selected", {})

    # -- structure ---------------------------------------------------------------------------------------------------

    def setup(self, stream: Stream) -> None:
        self.sites = self.module.sites(self.kind)
        self.tower: str = self.sites[0].tower
        self.features: int = self.sites[0].features
        self.allocate(stream, torch.Generator().manual_seed(self.reach.seed))

    def allocate(self, stream: Stream, generator: torch.Generator) -> None:
        """Make the parameters; `generator` is on the CPU."""
        raise NotImplementedError

    def grow(self, task: Task) -> None:
        trunk = self.sites[0].trunk if self.module.fresh_head else self.module.network
        trunk.requires_grad_(False)

    def site_of(self, number: int, argument: str) -> Any:
        """The attention site of a block.

        Raises:
            ConfigError: there is no such block.
        """
        if not 0 <= number < len(self.sites):
            last = len(self.sites) - 1
            raise ConfigError(
                f"{type(self).__name__}: {argument} names block {number}; the {self.tower} tower has blocks 0 to {last}"
            )
        return self.sites[number]

    @property
    def position(self) -> int:
        """Of the task at hand."""
        assert self.task is not None
        return self.stream.position(self.task)

    def own_slot(self, batch: Batch) -> Tensor:
        """(B,) the task of each row: its ``domain`` (replayed rows keep theirs), else the task at hand."""
        at_hand = torch.full((len(batch[self.tower]),), self.position, device=batch[self.tower].device)
        if "domain" not in batch:
            return at_hand
        return torch.where(batch["domain"] < 0, at_hand, batch["domain"])

    # -- the forward -------------------------------------------------------------------------------------------------

    def serves(self, batch: Batch) -> bool:
        """Whether prompts go into this forward: the tower has an input, and a task has begun."""
        return self.tower in batch and self.task is not None

    def query(self, batch: Batch, context: StepContext) -> Tensor:
        """(B, C) features of the network without prompts."""
        if context.source is None or "__index__" not in batch:
            return self._feature(batch, context)
        trunk = self.sites[0].trunk
        if any(parametrize.is_parametrized(layer) for layer in trunk.modules()):  # adapters that train elsewhere
            return self._feature(batch, context)
        stamp = tuple(v for p in trunk.parameters() for v in (p.data_ptr(), p._version))
        if stamp != self._stamp:
            self._stamp = stamp
            self._queries.clear()
        kept = self._queries.setdefault((repr(context.source), context.stage), {})
        places: list[int] = batch["__index__"].tolist()
        if any(place not in kept for place in places):
            kept.update(zip(places, self._feature(batch, context), strict=True))
        return torch.stack([kept[place] for place in places])

    def _feature(self, batch: Batch, context: StepContext) -> Tensor:
        with frozen_forward(self.module.network):
            found: Tensor = context.forward({self.tower: batch[self.tower]}, bare=True).features[self.tower]
        return found

    def attach(self, batch: Batch, attachments: Sequence[Attachment]) -> Batch:
        """The batch that takes prompts through the forward."""
        return {**batch, ATTACHED: (*batch.get(ATTACHED, ()), *attachments)}

    # -- what was selected -------------------------------------------------------------------------------------------

    def count(self, indices: Tensor) -> None:
        """Count selected prompts when the step has been made; a step may have several batches."""
        self._pending.append(indices.detach())

    def on_gradients(self, context: StepContext) -> None:
        """Nothing is changed: what the step selected is set aside, whether or not the step really happens."""
        self._step, self._pending = self._pending, []

    def on_step_end(self, context: StepContext) -> None:
        if not self._step or self.task is None:
            return
        indices = torch.cat([found.flatten() for found in self._step])
        self._step = []
        counts = distributed.total(torch.bincount(indices, minlength=self.pool_size).float())
        before = self.selected.get(self.task.name)
        counts = counts if before is None else counts + before.to(counts.device)
        self.selected = {**self.selected, self.task.name: counts}
        shares = counts / counts.sum()
        for number in range(self.pool_size):
            context.log(f"{self.name}/selected/{number}", shares[number])

    def shares(self) -> Mapping[str, float]:
        counts = self.selected.get(self.task.name) if self.task is not None else None
        return {} if counts is None else {str(i): part for i, part in enumerate((counts / counts.sum()).tolist())}


@contextmanager
def frozen_forward(network: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients, and no half-precision copies of weights kept for the forward that trains."""
    training = [layer for layer in network.modules() if layer.training]
    kind = next(network.parameters()).device.type
    autocast = torch.autocast(
        kind, dtype=torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind), cache_enabled=False
    )
    for layer in training:
        layer.training = False
    try:
        with torch.no_grad(), autocast:
            yield
    finally:
        for layer in training:
            layer.training = True


def uniform(shape: Sequence[int], bounds: tuple[float, float], generator: torch.Generator) -> nn.Parameter:
    """A parameter drawn uniformly."""
    low, high = bounds
    return nn.Parameter(torch.rand(tuple(shape), generator=generator) * (high - low) + low)


def selected(context: StepContext) -> Selected | None:
    """What this step's forward selected; None where no prompt went in."""
    found: Selected | None = context.outputs.extra.get(SELECTED)
    return found
