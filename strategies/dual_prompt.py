"""DualPrompt: prefixes shared by all tasks in early blocks, a task's own ones in later blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from mmcl.errors import ConfigError
from mmcl.functional.prompts import gather_prefixes, key_pull_loss, select_prompts
from mmcl.outputs import Batch, Forward, Outputs
from mmcl.strategies._prompting import KEYS, SELECTED, Attachment, PromptStrategy, Selected, selected, uniform
from mmcl.strategy import DataPass, StepContext
from mmcl.stream import Stream, Task


class DualPrompt(PromptStrategy):
    """General and expert prompts by prefix tuning (Wang et al., ECCV 2022).

    A prefix p = (p_k, p_v) joins the keys and values of a block's attention. The general one is shared by all samples;
    the expert one is chosen among one slot for each task: in training the sample's own task's, later the slot whose key
    is nearest to the query q(x), the feature without prompts. Loss: the task's own - pull x mean cos(q(x), key_task).

    Args:
        general_length: rows of the general prefix, of keys and of values each. The PyTorch port uses 5.
        general_blocks: blocks that have it; 0 and 1 there.
        expert_length: the same of an expert; 5 on CIFAR-100, 20 on ImageNet-R there.
        expert_blocks: blocks that have one; 2, 3 and 4 there.
        pull: weight of the keys' loss; 1 there. At 0 the keys stay where they are drawn.
        copy_slots: a task's slot starts as the previous task's, as there; keys are not copied.
        init: bounds of the uniform distribution that prompts and keys are drawn from; the port's.

    Raises:
        ConfigError: an argument is out of range, or the network lacks a block.

    Differences from the published code: axes are permuted before prefixes of a batch are joined; the PyTorch port only
    reshapes them, which mixes keys with values wherever a batch holds several samples (the JAX original does not). Each
    slot is a parameter of its own that is frozen outside its task, so no moment of an optimizer moves it. Rows that are
    replayed train on the slot of their own task as it is. The query comes from the same network, not from a copy.
    """

    claims = frozenset({"prefix"})
    by_task = True
    offers = frozenset({KEYS})

    def __init__(
        self,
        general_length: int = 5,
        general_blocks: Sequence[int] = (0, 1),
        expert_length: int = 5,
        expert_blocks: Sequence[int] = (2, 3, 4),
        pull: float = 1.0,
        copy_slots: bool = True,
        init: tuple[float, float] = (-1.0, 1.0),
    ) -> None:
        super().__init__("attention", init)
        if general_length < 1 or expert_length < 1:
            raise ConfigError(
                f"DualPrompt: lengths are {general_length} and {expert_length}; they must be 1 or more "
                "(leave a kind out with empty blocks)"
            )
        if set(general_blocks) & set(expert_blocks):
            raise ConfigError(f"DualPrompt: block {min(set(general_blocks) & set(expert_blocks))} is in both lists")
        for name, blocks in (("general_blocks", general_blocks), ("expert_blocks", expert_blocks)):
            if len(set(blocks)) < len(blocks):
                raise ConfigError(f"DualPrompt: {name} are {list(blocks)}; name each block once")
        if not expert_blocks:
            raise ConfigError("DualPrompt: expert_blocks is empty; name at least one block")
        if not 0 <= pull < math.inf:
            raise ConfigError(f"DualPrompt: pull is {pull}; a weight is 0 or more")
        self.general_length, self.general_blocks = general_length, tuple(general_blocks)
        self.expert_length, self.expert_blocks = expert_length, tuple(expert_blocks)
        self.pull, self.copy_slots = pull, copy_slots

    def allocate(self, stream: Stream, generator: torch.Generator) -> None:
        self.pool_size = len(stream.tasks)
        self.general_sites = [self.site_of(block, "general_blocks") for block in self.general_blocks]
        self.expert_sites = [self.site_of(block, "expert_blocks") for block in self.expert_blocks]
        dim = self.expert_sites[0].dim
        general = (len(self.general_sites), 2, self.general_length, dim)
        self.general = uniform(general, self.init, generator)
        shape = (len(self.expert_sites), 2, self.expert_length, dim)
        self.slots = nn.ParameterList(uniform(shape, self.init, generator) for _ in stream.tasks)
        self.keys = nn.ParameterList(uniform((self.features,), self.init, generator) for _ in stream.tasks)

    def grow(self, task: Task) -> None:
        super().grow(task)
        self.general.requires_grad_(bool(self.general_sites))
        for number, (slot, key) in enumerate(zip(self.slots, self.keys, strict=True)):
            slot.requires_grad_(number == self.position)
            key.requires_grad_(number == self.position and self.pull > 0)

    @torch.no_grad()
    def on_task_start(self, task: Task, data: DataPass) -> None:
        if self.copy_slots and self.position:
            self.slots[self.position].copy_(self.slots[self.position - 1])

    def wrap_forward(self, next: Forward, batch: Batch, context: StepContext) -> Outputs:
        if not self.serves(batch):
            return next(batch)
        query = self.query(batch, context)
        seen = torch.stack([*self.keys][: self.position + 1])
        fit = context.stage == "fit"
        indices = self.own_slot(batch)[:, None] if fit else select_prompts(query, seen, 1)
        outputs = next(self.attach(batch, self.prefixes(indices)))
        outputs.extra[SELECTED] = Selected(query, seen[indices], indices)
        return outputs

    def prefixes(self, indices: Tensor) -> list[Attachment]:
        """The prefixes of every block for rows that chose `indices` (B, 1)."""
        rows = len(indices)
        general = self.general[:, :, None].expand(-1, -1, rows, -1, -1)
        pool = torch.stack([*self.slots][: self.position + 1], dim=2)
        chosen = gather_prefixes(pool, indices).transpose(1, 2)
        found = [*zip(self.general_sites, general, strict=True), *zip(self.expert_sites, chosen, strict=True)]
        return [partial(site.prefix, *prefix) for site, prefix in found]

    def losses(self, context: StepContext) -> Mapping[str, Tensor]:
        chosen = selected(context)
        if chosen is None:
            return {}
        with torch.no_grad():
            nearest = select_prompts(chosen.query, torch.stack([*self.keys][: self.position + 1]), 1)
            context.log(f"{self.name}/right_slot", (nearest == chosen.indices).float().mean())
        self.count(nearest)  # what the keys would choose; training takes the task's own
        if not self.pull:
            return {}
        return {"pull": self.pull * key_pull_loss(chosen.query, chosen.keys)}
