"""What strategies with an episodic memory of each task share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmcl.errors import ConfigError, RunError
from mmcl.functional.gradients import flatten
from mmcl.outputs import Batch
from mmcl.replay import Rule, TaskMemories, unfilled
from mmcl.strategy import Batches, DataPass, StepContext, Strategy
from mmcl.stream import Source, Stream, Task


class _Memories(Strategy):
    """Keeps an equal part of `size` samples for each task of the stream, by their keys, chosen when the task ends."""

    active = True

    def __init__(self, size: int, batch_size: int | None, rule: Rule) -> None:
        super().__init__()
        title = type(self).__name__
        if batch_size is not None and batch_size < 1:
            raise ConfigError(f"{title}: batch_size is {batch_size}; it must be 1 or more")
        if size < 1:
            raise ConfigError(f"{title}: size is {size}; it must be 1 or more")
        if rule in ("herding", "k_means"):
            raise ConfigError(f"{title}: rule {rule} needs features; take reservoir or class_balanced")
        self.size, self.batch_size = size, batch_size
        self.memories = TaskMemories(size, rule)
        self.reads = frozenset({"samples", "keys"} | ({"labels"} if rule == "class_balanced" else set()))

    def setup(self, stream: Stream) -> None:
        title, objective = type(self).__name__, self.module.objective
        if objective.of_one_task and self.active:
            raise ConfigError(
                f"{title}: {type(objective).__name__} reads labels as those of the task at hand, and a memory has "
                "those of earlier ones; take another objective"
            )
        part = self.size // len(stream.tasks)
        if part == 0:
            raise ConfigError(f"{title}: size is {self.size}, less than a sample for each of {len(stream.tasks)} tasks")
        self.memories = TaskMemories(part, self.memories.rule, self.reach.seed)

    def earlier(self) -> list[Task]:
        """Tasks with a memory, in the order of the stream."""
        return [task for task in self.stream.tasks if task.name in self.memories.of]

    def draws(self, tasks: Sequence[Task]) -> Mapping[str, Sequence[Task]]:
        """Of tasks that have ended, those whose memories are drawn from together, under the name of the draw."""
        raise NotImplementedError

    def sources(self, task: Task) -> Sequence[Source]:
        return [
            s for name, tasks in self.draws(self.earlier()).items() for s in self.side(f"{self.name}/{name}", tasks)
        ]

    def foresee(self, task: Task, batches: Batches) -> Sequence[Source]:
        draws = self.draws(self.stream.tasks[: self.stream.position(task)])
        side = {"role": "side", "share": None, "batch_size": self.batch_size}
        return [s for name, tasks in draws.items() for s in unfilled(tasks, f"{self.name}/{name}", **side)]

    def side(self, name: str, tasks: Sequence[Task]) -> list[Source]:
        """The memories of some tasks as one side source."""
        found = self.memories.source(tasks, name, role="side", share=None, batch_size=self.batch_size)
        return [] if found is None else [found]

    def on_task_end(self, task: Task, data: DataPass) -> None:
        if self.active:
            self.memories.add(task.name, self.reach.task_samples(task))

    def export_state(self) -> dict[str, Any]:
        return {**super().export_state(), "memories": self.memories.state()}

    def import_state(self, state: Mapping[str, Any]) -> None:
        own = dict(state)
        self.memories.load(own.pop("memories", {}))
        super().import_state(own)


class _Projection(_Memories):
    """A gradient that is changed where it would raise the loss on a memory."""

    gradients = "project"
    holds = True

    def __init__(self, size: int, batch_size: int | None, rule: Rule) -> None:
        super().__init__(size, batch_size, rule)
        self._batches: dict[str, list[Batch]] = {}  # of this step; several where gradients are accumulated

    def projected(self, gradient: Tensor, references: Tensor) -> Tensor:
        """The gradient to step with: (P,) out of (P,) and (T, P)."""
        raise NotImplementedError

    def losses(self, context: StepContext) -> Mapping[str, Tensor]:
        for name, batch in context.side.items():
            if name.startswith(f"{self.name}/"):
                self._batches.setdefault(name, []).append(batch)
        return {}

    def on_gradients(self, context: StepContext) -> None:
        batches, self._batches = self._batches, {}
        if not batches:
            return
        params = {n: p for n, p in self.module.network.named_parameters() if p.grad is not None}
        if not params:
            raise RunError(f"{type(self).__name__}: no weight of the network trains, and adapters are not projected")
        references = torch.stack([self._reference(context, parts, params) for parts in batches.values()])
        before = flatten({n: p.grad for n, p in params.items() if p.grad is not None}, list(params))
        after = self.projected(before, references)
        context.log(f"{self.name}/violations", (references @ before < 0).sum())
        if after is before:
            return
        for param, part in zip(params.values(), torch.split(after, [p.numel() for p in params.values()]), strict=True):
            assert param.grad is not None
            param.grad.copy_(part.view_as(param))

    def _reference(self, context: StepContext, batches: list[Batch], params: Mapping[str, Tensor]) -> Tensor:
        """(P,) gradient of the module's own loss, the mean over a step's batches."""
        rows = []
        for batch in batches:
            found = context.gradients(batch)
            rows.append(flatten({n: found.get(n, torch.zeros_like(p)) for n, p in params.items()}, list(params)))
        return torch.stack(rows).mean(0) if len(rows) > 1 else rows[0]
