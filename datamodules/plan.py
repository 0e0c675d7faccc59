"""How the sources of a task share its steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mmcl.errors import ConfigError
from mmcl.functional.mixing import mixture_counts
from mmcl.stream import Source, Task

OWN = "own"
"""Name of a task's own data among positions and counts."""


@dataclass(frozen=True)
class BatchPlan:
    """What one optimizer step of a task sees, and how many steps there are.

    Attributes:
        batch_size: samples of a step over all ranks and accumulated batches, without side batches.
        own_per_batch: how many of them are the task's own.
        counts: mixed source -> its samples in a step.
        side: side source -> its samples in a step.
        steps: optimizer steps of the task.
        own_samples: size of the task's own data; None where they are a stream.
        order: pools of the training batch in the order in which the remainder was given; the task's own is `OWN`.
        streams: pools that are read as streams.
    """

    batch_size: int
    own_per_batch: int
    counts: Mapping[str, int]
    side: Mapping[str, int]
    steps: int
    own_samples: int | None
    order: tuple[str, ...] = field(default=(OWN,))
    streams: frozenset[str] = frozenset()

    @property
    def drawn(self) -> dict[str, int]:
        """Samples of each pool in a step."""
        return {OWN: self.own_per_batch, **self.counts, **self.side}

    def advance(self, positions: Mapping[str, int], steps: int) -> dict[str, int]:
        """Samples drawn from each source after so many more steps. Sources that the plan lacks keep their place."""
        moved = {name: positions.get(name, 0) + count * steps for name, count in self.drawn.items()}
        return {**positions, **moved}


def make_plan(
    task: Task, extra: Sequence[Source], own_samples: int | None, batch_size: int, sample_tokens: int | None
) -> BatchPlan:
    """Split a task's batch over its sources and resolve its budget.

    The task's own data take what the mixed sources leave. Counts are those of `mmcl.functional.mixing.mixture_counts`;
    the remainder goes to the first half of the extra sources, then to the task's own data, then to the other half: with
    pretraining data and a buffer that is FoMo's order, and with one extra source the task's own data come first.

    Args:
        task: the task.
        extra: mixed and side sources of strategies.
        own_samples: size of the task's own data; None where they are a stream.
        batch_size: samples of a step.
        sample_tokens: tokens of one sample, for budgets in tokens.

    Raises:
        ConfigError: two sources of one name, a mixed source without a share or too small for one sample, shares above 1
            together, a batch that holds more of the task's own samples than there are, or epochs of a stream.
    """
    where = f"task '{task.name}'"
    names = [source.name for source in extra]
    for name in names:
        if name == OWN or names.count(name) > 1:
            why = f"'{OWN}' stands for the task's own data" if name == OWN else "two extra sources have this name"
            raise ConfigError(f"{where}: source '{name}' needs another name: {why}")
    mixed = [source for source in extra if source.role == "mixed"]
    middle = len(mixed) // 2
    order = (*(s.name for s in mixed[:middle]), OWN, *(s.name for s in mixed[middle:]))
    shares = _shares(mixed, where)
    counts = dict(zip(order, mixture_counts(batch_size, [shares[name] for name in order]), strict=True))
    for source in mixed:
        if counts[source.name] == 0:
            raise ConfigError(
                f"{where}: source '{source.name}': share {source.share} of batch size {batch_size} is no sample"
            )
    own = counts.pop(OWN)
    if own_samples is None and task.budget.epochs is not None:
        raise ConfigError(
            f"{where}: nobody knows how long a pass over a stream is; give the budget in steps or samples, not epochs"
        )
    if own_samples is not None and own > own_samples:
        raise ConfigError(
            f"{where}: a batch takes {own} of its samples, but it has {own_samples}; "
            f"make `batch_size` ({batch_size}) smaller"
        )
    if own == 0 and task.budget.epochs is not None:
        raise ConfigError(
            f"{where}: a budget in epochs needs some of the task's own data in each batch; there are none"
        )
    return BatchPlan(
        batch_size=batch_size,
        own_per_batch=own,
        counts=counts,
        side={s.name: s.batch_size or batch_size for s in extra if s.role == "side"},
        steps=task.budget.resolve(batch_size, own_samples or 0, own, sample_tokens),
        own_samples=own_samples,
        order=order,
        streams=frozenset(s.name for s in extra if s.is_stream) | ({OWN} if task.is_stream else frozenset()),
    )


def _shares(mixed: Sequence[Source], where: str) -> dict[str, float]:
    shares: dict[str, float] = {}
    for source in mixed:
        if source.share is None:
            raise ConfigError(f"{where}: mixed source '{source.name}' needs a `share` of the batch")
        shares[source.name] = source.share
    total = sum(shares.values())
    if total > 1.0 + 1e-9:
        parts = " + ".join(f"{name} {share:g}" for name, share in shares.items())
        raise ConfigError(f"{where}: the shares of the extra sources are above 1: {parts} = {total:g}; lower one")
    return {**shares, OWN: 1.0 - total if total < 1.0 - 1e-9 else 0.0}
