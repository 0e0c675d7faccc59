"""L2P: a pool of prompts in the input, chosen for each sample by key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from mmcl import distributed
from mmcl.errors import ConfigError, near
from mmcl.functional.prompts import (
    QueryKind,
    gather_prompts,
    key_pull_loss,
    prompt_query,
    select_prompts,
    vote_prompts,
)
from mmcl.outputs import Batch, Forward, Outputs
from mmcl.strategies._prompting import KEYS, SELECTED, PromptStrategy, Selected, frozen_forward, selected, uniform
from mmcl.strategy import DataPass, StepContext
from mmcl.stream import Stream, Task

QUERIES = ("cls", "mean", "max", "mean_max")
VOTES = ("never", "train", "always")


class L2P(PromptStrategy):
    """Learning to prompt (Wang et al., CVPR 2022): prompts out of a pool as further tokens of the input.

    The query q(x) is the feature without prompts. The top_k prompts whose keys have the largest cosine with it go, in
    that order, behind the class token; the classifier sees the mean of what they become. Loss: the task's own
    - pull x (1/B) sum_b sum_k cos(q_b, key_k), a sum over the chosen keys. Keys learn from this term alone.

    Args:
        pool_size: prompts. 10 in the paper and the PyTorch port on CIFAR-100.
        length: tokens of a prompt; 5 there.
        top_k: prompts of a sample; 5 there.
        pull: weight of the keys' term; 0.1 in the port, 0.5 in the paper, 1 in the JAX code. At 0 the keys stay.
        query: ``cls``, or of the patch embeddings ``mean``, ``max``, ``mean_max``.
        own_keys: False takes the mean of a prompt as its key, as an option of the port does.
        vote: ``never`` selects for each sample; ``train`` takes the prompts that most samples of a training batch
            chose, as the codes do; ``always`` does so in evaluation too, where a batch of one task's samples gives the
            task away. It reproduces published numbers and is no fair measurement.
        diversity: prefer prompts that earlier tasks used little: distances are multiplied by how often they did. In the
            paper, in neither public code; training only.
        task_slots: training forces top_k prompts of a task's own (the codes' prompt mask, for 5-datasets).
        copy_slots: with `task_slots`, a task's prompts and keys start as the previous one's.
        pool: ``prompts`` hands the mean of the prompts' outputs to the classifier; ``tower`` what the tower pools.
        positions: give prompts the class token's position embedding, as the port does; it stays as it is at the start.
        init: bounds of the uniform distribution of prompts and keys; (0, 0.01) in the JAX code.

    Raises:
        ConfigError: an argument is out of range, or the pool is too small for the stream.

    Differences from the published code: selection is per sample by default. Equal votes go to the smaller number, and
    processes vote together. The query comes from the same network, not from a copy. The pool is one parameter: a prompt
    that a task never selects does not move, one that a batch leaves out moves by the optimizer's moments, as there.
    """

    claims = frozenset({"prompts"})
    offers = frozenset({KEYS})

    place: Tensor

    def __init__(
        self,
        pool_size: int = 10,
        length: int = 5,
        top_k: int = 5,
        pull: float = 0.1,
        query: QueryKind = "cls",
        own_keys: bool = True,
        vote: Literal["never", "train", "always"] = "never",
        diversity: bool = False,
        task_slots: bool = False,
        copy_slots: bool = False,
        pool: Literal["prompts", "tower"] = "prompts",
        positions: bool = True,
        init: tuple[float, float] = (-1.0, 1.0),
    ) -> None:
        super().__init__("input", init)
        self.name = "l2p"
        for name, value, known in (
            ("query", query, QUERIES),
            ("vote", vote, VOTES),
            ("pool", pool, ("prompts", "tower")),
        ):
            if value not in known:
                raise ConfigError(f"L2P: {name} '{value}' is unknown; {near(value, known)}")
        if length < 1 or not 1 <= top_k <= pool_size:
            raise ConfigError(f"L2P: top_k {top_k} of {pool_size} prompts of length {length}; give 1 <= top_k <= pool")
        if not 0 <= pull < math.inf:
            raise ConfigError(f"L2P: pull is {pull}; a weight is 0 or more")
        if copy_slots and not task_slots:
            raise ConfigError("L2P: copy_slots belongs to task_slots")
        self.pool_size, self.length, self.top_k, self.pull = pool_size, length, top_k, pull
        self.query_kind, self.own_keys, self.vote, self.diversity = query, own_keys, vote, diversity
        self.task_slots, self.copy_slots = task_slots, copy_slots
        self.pooled, self.positions = pool == "prompts", positions
        self.by_task = copy_slots
        self.unsupported = frozenset() if vote == "never" else frozenset({"accumulation"})  # the whole batch votes
        self.add_state("place", None)

    def allocate(self, stream: Stream, generator: torch.Generator) -> None:
        site = self.sites[0]
        size = self.features if self.query_kind == "cls" else site.dim
        if self.task_slots and self.top_k * len(stream.tasks) > self.pool_size:
            raise ConfigError(f"L2P: task_slots need {self.top_k * len(stream.tasks)} prompts; pool_size is less")
        if not self.own_keys and size != site.dim:
            raise ConfigError(f"L2P: queries of {size} numbers, prompts of {site.dim}; set own_keys or query 'mean'")
        self.prompts = uniform((self.pool_size, self.length, site.dim), self.init, generator)
        self.key = uniform((self.pool_size, size), self.init, generator) if self.own_keys else None
        self.place = site.position.clone() if self.positions else torch.zeros(site.dim)

    def grow(self, task: Task) -> None:
        super().grow(task)
        if self.key is not None:
            self.key.requires_grad_(self.pull > 0)

    @torch.no_grad()
    def on_task_start(self, task: Task, data: DataPass) -> None:
        if self.copy_slots and self.position:
            own, before = self._own(self.position), self._own(self.position - 1)
            for tensor in (self.prompts, self.key):
                if tensor is not None:
                    tensor[own] = tensor[before]

    @property
    def keys(self) -> Tensor:
        """(P, C)."""
        return self.prompts.mean(1) if self.key is None else self.key

    def wrap_forward(self, next: Forward, batch: Batch, context: StepContext) -> Outputs:
        if not self.serves(batch):
            return next(batch)
        query = self._query(batch, context)
        indices = self.choose(query, batch, context.stage == "fit")
        tokens = gather_prompts(self.prompts, indices) + self.place.to(self.prompts)
        outputs = next(self.attach(batch, [partial(self.sites[0].insert, tokens, pool=self.pooled)]))
        outputs.extra[SELECTED] = Selected(query, self.keys[indices], indices)
        return outputs

    def _query(self, batch: Batch, context: StepContext) -> Tensor:
        if self.query_kind == "cls":
            return self.query(batch, context)
        with frozen_forward(self.module.network):
            return prompt_query(self.sites[0].embed(batch[self.tower]), kind=self.query_kind)

    @torch.no_grad()
    def choose(self, query: Tensor, batch: Batch, fit: bool) -> Tensor:
        """(B, k) numbers of prompts."""
        if fit and self.task_slots:
            slots: Tensor = self._own(self.own_slot(batch)[:, None])
            return slots
        used = self._used() if fit and self.diversity else None
        indices = select_prompts(query, self.keys, self.top_k, frequency=used)
        if self.vote == "never" or (self.vote == "train" and not fit):
            return indices
        return vote_prompts(distributed.gather(indices), self.pool_size)[:1].expand_as(indices)

    def _own(self, task: Tensor | int) -> Tensor:
        """Numbers of a task's own prompts."""
        return task * self.top_k + torch.arange(self.top_k, device=self.prompts.device)

    def _used(self) -> Tensor | None:
        """(P,) share of each prompt in what the earlier tasks selected; None in the first."""
        assert self.task is not None
        counts = [found for name, found in self.selected.items() if name != self.task.name]
        return torch.stack(counts).sum(0) / torch.stack(counts).sum() if counts else None

    def losses(self, context: StepContext) -> Mapping[str, Tensor]:
        chosen = selected(context)
        if chosen is None:
            return {}
        self.count(chosen.indices)
        return {"pull": self.pull * key_pull_loss(chosen.query, chosen.keys)} if self.pull else {}
