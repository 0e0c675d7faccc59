"""S-Prompts: independent prompts and a classifier for every domain, chosen by the nearest centre of its features."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmcl import distributed
from mmcl.errors import ConfigError, near
from mmcl.functional.prompts import domain_distances
from mmcl.functional.selection import k_means
from mmcl.outputs import Batch, Forward, Outputs
from mmcl.strategies._prompting import Attachment, PromptStrategy, uniform
from mmcl.strategy import DataPass, StepContext
from mmcl.stream import Stream, Task

TUNES = ("prompts", "lora")


class SPrompts(PromptStrategy):
    """Prompts for each domain, with nothing shared (Wang et al., NeurIPS 2022), for domain-incremental streams.

    A task is a domain: `length` tokens behind the class token and a linear classifier of its own, trained by the task's
    loss alone. When it ends, k-means finds `centers` centres of the normalised features without prompts. In evaluation
    a sample takes the domain that owns the centre with the smallest L1 distance to its feature; no task is told.

    Args:
        length: prompt tokens of a domain. The published code uses 10.
        centers: of k-means; 5 there.
        classifiers: a linear classifier for each domain in place of the module's head, as there; the head then stays as
            it is. Only for modules whose head is learned in the stream; False trains the one head for all domains.
        tune: ``prompts``, or ``lora``: low-rank changes of queries, keys and values in every block, which do better
            than prompts under the same selection (Wistuba et al., 2024: "Choice of PEFT Technique"; S-LoRA).
        rank: of ``lora``; the value is ours.
        init: bounds of the uniform distribution of prompts.

    Raises:
        ConfigError: an argument is out of range.

    Differences from the published code: k-means starts by k-means++ from (seed, task) once. A domain's classifier
    starts at 0, and answers only for classes that its task has. Its prompts for the text tower (S-liPrompts) are left
    out: on a contrastive module the class texts stay as they are. While a task trains, evaluations know the domains
    that have ended, or in the first task its own. Low-rank changes have no further factor.
    """

    by_task = True
    centres: dict[str, Tensor]

    def __init__(
        self,
        length: int = 10,
        centers: int = 5,
        classifiers: bool = True,
        tune: Literal["prompts", "lora"] = "prompts",
        rank: int = 8,
        init: tuple[float, float] = (-1.0, 1.0),
    ) -> None:
        if tune not in TUNES:
            raise ConfigError(f"SPrompts: tune '{tune}' is unknown; {near(tune, TUNES)}")
        super().__init__("input" if tune == "prompts" else "attention", init)
        if length < 1 or centers < 1 or rank < 1:
            raise ConfigError(f"SPrompts: length {length}, centers {centers}, rank {rank}; each must be 1 or more")
        self.name = "s_prompts"
        self.length, self.centers, self.classifiers = length, centers, classifiers
        self.tune, self.rank = tune, rank
        self.claims = frozenset({"prompts" if tune == "prompts" else "adapters", *(["classifier"] * classifiers)})
        self.reads = frozenset({"samples"})
        self.freezes_head = classifiers
        self.unexported = ("prompts" if tune == "prompts" else "adapters") + " and centres"
        self.add_state("centres", {})

    def allocate(self, stream: Stream, generator: torch.Generator) -> None:
        site, count = self.sites[0], len(stream.tasks)

        def each(*shape: int, bounds: tuple[float, float] = (0.0, 0.0)) -> nn.ParameterList:
            return nn.ParameterList(uniform(shape, bounds, generator) for _ in range(count))

        if self.tune == "prompts":
            self.prompts = each(self.length, site.dim, bounds=self.init)
        else:
            bound = site.width**-0.5
            self.down = each(len(self.sites), self.rank, site.width, bounds=(-bound, bound))
            self.up = each(len(self.sites), self.rank, 3 * site.dim)
        self.own_heads = self.classifiers and bool(self.module.fresh_head)
        names = [task.class_names or () for task in stream.tasks] if self.own_heads else []
        columns = {name: i for i, name in enumerate(dict.fromkeys(name for own in names for name in own))}
        self.answers = torch.zeros(len(names), len(columns), dtype=torch.bool)
        for row, own in zip(self.answers, names, strict=True):
            row[[columns[name] for name in own]] = True
        self.heads = nn.ParameterList(nn.Parameter(torch.zeros(len(columns), self.features + 1)) for _ in names)

    def grow(self, task: Task) -> None:
        super().grow(task)
        if self.own_heads:
            self.module.network.requires_grad_(False)
        for components in (*self._tuned(), self.heads):
            for number, part in enumerate(components):
                part.requires_grad_(number == self.position)

    def _tuned(self) -> tuple[nn.ParameterList, ...]:
        return (self.prompts,) if self.tune == "prompts" else (self.down, self.up)

    def wrap_forward(self, next: Forward, batch: Batch, context: StepContext) -> Outputs:
        if not self.serves(batch):
            return next(batch)
        fit = context.stage == "fit"
        domains = self.own_slot(batch) if fit else self.nearest(self.query(batch, context))
        outputs = next(self.attach(batch, self.attachments(domains)))
        if self.own_heads and outputs.logits is not None:
            outputs.logits = self._answer(outputs, domains, fit)
        return outputs

    def attachments(self, domains: Tensor) -> list[Attachment]:
        """What rows of these domains (B,) get."""
        own = [self._seen(components)[domains] for components in self._tuned()]
        if self.tune == "prompts":
            return [partial(self.sites[0].insert, own[0])]
        return [partial(site.lowrank, *(part[:, i] for part in own)) for i, site in enumerate(self.sites)]

    def nearest(self, query: Tensor) -> Tensor:
        """(B,) numbers of the nearest domains among those that have centres."""
        known = [i for i, task in enumerate(self.stream.tasks[: self.position + 1]) if task.name in self.centres]
        if not known:
            return torch.full((len(query),), self.position, device=query.device)
        centres = torch.stack([self.centres[self.stream.tasks[i].name] for i in known]).to(query.device)
        distances = domain_distances(F.normalize(query.float(), dim=1), centres)
        return torch.tensor(known, device=query.device)[distances.argmin(0)]

    def _answer(self, outputs: Outputs, domains: Tensor, fit: bool) -> Tensor:
        assert outputs.logits is not None
        columns = outputs.logits.shape[1]  # a head that grows has the columns of the tasks so far
        features = outputs.features[self.tower]
        own = self._seen(self.heads)[domains, :columns].to(features)
        logits = (torch.einsum("bd,bcd->bc", features, own[..., :-1]) + own[..., -1]).to(outputs.logits.dtype)
        if fit:
            return logits
        return logits.masked_fill(~self.answers.to(domains.device)[domains, :columns], torch.finfo(logits.dtype).min)

    def _seen(self, parts: Iterable[Tensor]) -> Tensor:
        return torch.stack([*parts][: self.position + 1])

    @torch.no_grad()
    def on_task_end(self, task: Task, data: DataPass) -> None:
        rows, places = [], []
        for batch in data():
            features = self.module({self.tower: batch[self.tower]}).features[self.tower]
            rows.append(F.normalize(features.float(), dim=1)[batch["valid"]])
            places.append(batch["__index__"][batch["valid"]])
        found, index = distributed.gather(torch.cat(rows)), distributed.gather(torch.cat(places))
        centres = k_means(found[index.argsort()], self.centers, self.generator(task))
        self.centres = {**self.centres, task.name: centres.to(found)}
