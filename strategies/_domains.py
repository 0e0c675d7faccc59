"""Adapters of several domains side by side, one chosen for each sample by the pretrained model's features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmcl import distributed
from mmcl.errors import ConfigError, RunError
from mmcl.functional.selection import k_means
from mmcl.outputs import Batch, Forward, Outputs, Site, Weights, by_row
from mmcl.strategies._adapters import Adapters, LowRank
from mmcl.strategy import DataPass, StepContext
from mmcl.stream import Stream, Task


class Bank(nn.Module):
    """One adapter for each domain on a site; the active one changes the weight.

    Args:
        site: where they go.
        make: gives a new one.
        active: gives the domain that is active; None is the pretrained weight.
    """

    def __init__(self, site: Site, make: Callable[[Site], LowRank], active: Callable[[], int | None]) -> None:
        super().__init__()
        self.domains = nn.ModuleList()
        self._site, self._make, self._active = site, make, active

    def forward(self) -> Tensor:
        """The change of the weight, (out, in)."""
        active = self._active()
        if active is None:
            return self._site.rows().new_zeros(()).expand(self._site.shape)
        change: Tensor = self.domains[active]()
        return change

    def grow(self, generator: torch.Generator) -> None:
        """One more; those before it are frozen."""
        self.requires_grad_(False)
        made = self._make(self._site)
        made.reset(generator)
        self.domains.append(made)


class DomainAdapters(Adapters):
    """Adapters with a third way from task to task, ``separate``: each task, or domain, has its own.

    What trains beside the adapters (a classifier's head) is kept for each domain too. Before a domain is trained, its
    samples' features of the pretrained model are summed up in a few centres of k-means; at test each sample takes the
    adapter of the domain whose centre is nearest. A variant ``adapter=TASK`` uses one domain's for all samples.
    """

    centres: dict[str, Tensor]
    heads: dict[str, Weights]

    def __init__(
        self,
        clusters: int,
        towers: Sequence[str] | None,
        roles: Sequence[str],
        blocks: Sequence[int] | None,
        tasks: str,
        also: Sequence[str],
    ) -> None:
        super().__init__(towers, roles, blocks, tasks, also, modes=("merge", "continue", "separate"))
        self.clusters = clusters
        self.active: int | None = None
        self._forced = False
        self._require(clusters >= 1, f"clusters is {clusters}; it must be 1 or more")
        self.add_state("centres", {}, dtype=None)
        self.add_state("heads", {}, dtype=None)
        self.by_task = self.tasks == "separate"
        if self.by_task:
            self._require(not self._also, "`also` would move what domains share; it does not go with 'separate'")
            self.needs = self.needs | {"features"}
            self.reads = frozenset({"samples"})
            self.unexported = "centres and the other domains' adapters"
            self.claims = self.claims | {"eval_weights"}  # averages of one domain's weights are no other domain's

    def make(self, site: Site) -> LowRank:
        """A new adapter."""
        raise NotImplementedError

    @property
    def variants(self) -> tuple[str, ...]:  # type: ignore[override]  # known once there is a stream
        """One for each domain that has its adapter; before anything is loaded, for each of the stream's tasks."""
        if self.tasks != "separate" or "_reach" not in self.__dict__:
            return ()
        return tuple(f"adapter={name}" for name in self.centres or [task.name for task in self.stream.tasks])

    # -- training ----------------------------------------------------------------------------------------------------

    def setup(self, stream: Stream) -> None:
        if self.tasks == "separate":
            self.towers = [self._feature()] if self.towers is None else self.towers
            other = sorted(set(self.towers) - {self._feature()})
            self._require(
                not other, f"tasks 'separate' chooses by the features of '{self._feature()}'; tower {other} has no say"
            )
        super().setup(stream)

    def _feature(self) -> str:
        """The feature that domains are told apart by, and its tower."""
        if self.module.pair is not None:
            return str(self.module.pair[0])
        provides: frozenset[str] = self.module.provides
        found = sorted(p.removeprefix("features.") for p in provides if p.startswith("features."))
        if len(found) != 1:
            raise ConfigError(f"{type(self).__name__}: tasks 'separate' needs one feature to choose by, found {found}")
        return found[0]

    def build(self, site: Site) -> LowRank | Bank:
        return Bank(site, self.make, lambda: self.active) if self.tasks == "separate" else self.make(site)

    def grow(self, task: Task) -> None:
        super().grow(task)
        if self.tasks != "separate":
            return
        generator = self.generator(task)
        for bank in self.each().values():
            bank.grow(generator)
        self.active = self.stream.position(task)

    @torch.no_grad()
    def on_task_start(self, task: Task, data: DataPass) -> None:
        if self.tasks != "separate":
            return
        rows, places = [], []
        with self._using(None):
            for batch in data():
                rows.append(self.module(batch).features[self._feature()].float())
                places.append(batch["__index__"])
        # The last batch of a pass repeats a sample to fill up: the same row under the same number.
        found, index = distributed.gather(torch.cat(rows)), distributed.gather(torch.cat(places))
        table = found.new_zeros((int(index.max()) + 1, found.shape[1]))
        table[index] = found
        directions = F.normalize(table[torch.unique(index)].double(), dim=1)
        self.centres[task.name] = k_means(directions, self.clusters, self.generator(task)).to(found)

    def on_task_end(self, task: Task, data: DataPass) -> None:
        super().on_task_end(task, data)
        if self.tasks == "separate":
            named = self.module.network.named_parameters()
            self.heads[task.name] = {name: p.detach().clone() for name, p in named if p.requires_grad}

    # -- evaluation --------------------------------------------------------------------------------------------------

    def eval_weights(self, variant: str = "") -> AbstractContextManager[None]:
        if not variant:
            return nullcontext()
        if variant not in self.variants or not self.centres:
            raise RunError(f"{type(self).__name__}: there is no adapter for the variant '{variant}' yet")
        return self._using(self.variants.index(variant), forced=True)

    def wrap_forward(self, next: Forward, batch: Batch, context: StepContext) -> Outputs:
        if context.stage == "fit" or self._forced or not self.centres:
            return next(batch)
        with self._using(None), torch.no_grad():
            features = self.module(batch).features.get(self._feature())
        if features is None:  # of another tower, which has no adapters
            return next(batch)
        chosen = self.choose(features)
        answers: dict[int, Outputs] = {}
        for domain in torch.unique(chosen).tolist():
            with self._using(domain):
                answers[domain] = next(batch)
        return by_row(answers, chosen)

    def choose(self, features: Tensor) -> Tensor:
        """(B,) the domain whose nearest centre is nearest."""
        rows = F.normalize(features.float(), dim=1)
        return torch.stack([torch.cdist(rows, c.float()).amin(1) for c in self.centres.values()], 1).argmin(1)

    @contextmanager
    def _using(self, domain: int | None, forced: bool = False) -> Iterator[None]:
        """Another domain's adapter, and what trained beside it, for a while."""
        before, self.active, self._forced = self.active, domain, forced or self._forced
        kept = {} if domain is None else self.heads.get(list(self.centres)[domain], {})
        try:
            with self.swap(self._in_todays_shape(kept)) if kept else nullcontext():
                yield
        finally:
            self.active, self._forced = before, self._forced and not forced

    def _in_todays_shape(self, kept: Mapping[str, Tensor]) -> Weights:
        """Rows that a head gained since have today's values."""
        found = {name: self.module.network.get_parameter(name).detach().clone() for name in kept}
        for name, old in kept.items():
            found[name][tuple(slice(0, size) for size in old.shape)] = old
        return found
