"""CODA-Prompt: prefixes assembled out of components, trained end to end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from mmcl.errors import ConfigError
from mmcl.functional.prompts import coda_prompt, gram_schmidt, orthogonality_penalty, split_prefix
from mmcl.outputs import Batch, Forward, Outputs
from mmcl.strategies._prompting import Attachment, PromptStrategy
from mmcl.strategy import DataPass, StepContext
from mmcl.stream import Stream, Task


class CODAPrompt(PromptStrategy):
    """Decomposed attention-based prompts (Smith et al., CVPR 2023).

    In each block p(x) = sum_m cos(q(x) * A_m, K_m) P_m over the components (P_m, K_m, A_m) of the tasks so far; its
    first half joins the keys, the other the values. The query q(x) is the feature without prompts. A task brings
    pool_size / T components and trains these alone; older ones stay. Loss: the task's own + orthogonality x (penalty(K)
    + penalty(A) + penalty(P)) with penalty(R) = mean (R R^T - I)^2, summed over blocks.

    Args:
        pool_size: components of a block over all tasks, in equal parts. The published code uses 100.
        length: rows of a prompt, half of them for keys; 8 there.
        blocks: that take a prefix; 0 to 4 there.
        orthogonality: 0 in the published code, whose new components start orthogonal; the paper has 0.1, and its
            authors advise about 1e-6 beside that start.

    Raises:
        ConfigError: an argument is out of range, the network lacks a block, or components outnumber dimensions.

    Differences from the published code: components of a task are parameters of their own that are frozen outside it,
    so no moment of an optimizer moves them. New components are made orthogonal in float64, and more of them than
    there are dimensions are refused, where the code draws on for ever.
    """

    claims = frozenset({"prefix"})
    by_task = True

    def __init__(
        self,
        pool_size: int = 100,
        length: int = 8,
        blocks: Sequence[int] = (0, 1, 2, 3, 4),
        orthogonality: float = 0.0,
    ) -> None:
        super().__init__("attention")
        self.name = "coda_prompt"
        if pool_size < 1 or length < 2 or length % 2:
            raise ConfigError(f"CODAPrompt: pool_size {pool_size}, length {length}; the length must be even")
        if not blocks or len(set(blocks)) < len(blocks):
            raise ConfigError(f"CODAPrompt: blocks are {list(blocks)}; name each of at least one block once")
        if not 0 <= orthogonality < math.inf:
            raise ConfigError(f"CODAPrompt: orthogonality is {orthogonality}; a weight is 0 or more")
        self.pool_size, self.length, self.blocks = pool_size, length, tuple(blocks)
        self.orthogonality = orthogonality

    def allocate(self, stream: Stream, generator: torch.Generator) -> None:
        own = self.pool_size // len(stream.tasks)
        self.chosen = [self.site_of(number, "blocks") for number in self.blocks]
        dim = self.chosen[0].dim
        if not own:
            raise ConfigError(f"CODAPrompt: pool_size is {self.pool_size}; the stream has {len(stream.tasks)} tasks")
        if own * len(stream.tasks) > min(self.features, self.length * dim):
            raise ConfigError(
                f"CODAPrompt: pool_size is {self.pool_size}; features of {self.features} numbers have no more "
                "orthogonal directions than that"
            )

        def parts(*shape: int) -> nn.ParameterList:
            return nn.ParameterList(nn.Parameter(torch.zeros(len(self.chosen), own, *shape)) for _ in stream.tasks)

        self.keys, self.attention = parts(self.features), parts(self.features)
        self.prompts = parts(self.length, dim)

    def grow(self, task: Task) -> None:
        super().grow(task)
        for components in (self.keys, self.attention, self.prompts):
            for number, part in enumerate(components):
                part.requires_grad_(number == self.position)

    @torch.no_grad()
    def on_task_start(self, task: Task, data: DataPass) -> None:
        generator = self.generator(task)
        for components in (self.keys, self.attention, self.prompts):
            new = components[self.position]
            for number, rows in enumerate(new):
                drawn = torch.randn(rows.shape, generator=generator, dtype=torch.float64)
                before = [part[number].double().cpu() for part in [*components][: self.position]]
                rows.copy_(gram_schmidt(torch.cat([drawn[:0], *before]), drawn))

    def used(self, components: nn.ParameterList) -> Tensor:
        """(blocks, M, ...) components of the tasks so far."""
        return torch.cat([*components][: self.position + 1], dim=1)

    def wrap_forward(self, next: Forward, batch: Batch, context: StepContext) -> Outputs:
        if not self.serves(batch):
            return next(batch)
        return next(self.attach(batch, self.prefixes(self.query(batch, context))))

    def prefixes(self, query: Tensor) -> list[Attachment]:
        """The prefixes of every block for queries (B, C)."""
        layers = zip(*(self.used(c) for c in (self.attention, self.keys, self.prompts)), strict=True)
        prompts = [coda_prompt(query, *components) for components in layers]
        return [partial(site.prefix, *split_prefix(prompt)) for site, prompt in zip(self.chosen, prompts, strict=True)]

    def losses(self, context: StepContext) -> Mapping[str, Tensor]:
        if not self.orthogonality:
            return {}
        rows = [layer for c in (self.keys, self.attention, self.prompts) for layer in self.used(c)]
        return {"orthogonality": self.orthogonality * torch.stack([orthogonality_penalty(r) for r in rows]).sum()}
