"""What all merges share: where a task starts, what is evaluated, and what is kept of the tasks so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar, Literal, get_args

from torch import Tensor

from mmcl.errors import ConfigError, near
from mmcl.functional.merging import StoredVector
from mmcl.outputs import Weights
from mmcl.strategy import DataPass, Strategy
from mmcl.stream import Stream, Task

Rule = Literal["sequential", "ema", "zero_shot", "fine_tuned"]
"""How training and merging alternate (Dziadzio et al., CVPR 2025, but for the first):

* ``sequential``: a task starts from the weights that the last one ended with; all tasks' weights are merged.
* ``ema``: it starts from the last merge; its weights are merged into that.
* ``zero_shot``: it starts from the pretrained weights; all tasks' weights are merged.
* ``fine_tuned``: it starts from the last merge; its weights alone are merged with the pretrained ones.
"""


class Merge(Strategy):
    """Evaluate a merge of the tasks' weights; subclasses say which.

    The merge is made whenever it is asked for, out of what is kept of earlier tasks and the live weights, so that it
    can be measured in the middle of a task. What a network has grown since the pretrained one is the live one's. So are
    the rows of a head for classes that one task alone trains, which no other task's weights say anything of.

    Args:
        rule: see `Rule`.

    Raises:
        ConfigError: an unknown rule.
    """

    claims = frozenset({"eval_weights", "start_weights"})
    writes = frozenset({"on_task_start"})
    snapshots = frozenset({"initial"})
    stays: ClassVar[frozenset[Rule]] = frozenset()
    """Rules with which a task without training leaves the merge as it is."""
    merges_buffers: ClassVar[bool] = False
    """Whether running statistics are merged too; what extrapolates could make a variance negative."""

    kept: Weights

    def __init__(self, rule: Rule) -> None:
        super().__init__()
        if rule not in get_args(Rule):
            raise ConfigError(f"{type(self).__name__}: rule '{rule}' is unknown; {near(rule, get_args(Rule))}")
        self.rule = rule
        self.moves = rule not in self.stays
        self.add_state("kept", {}, dtype=None)

    # -- what a subclass says ---------------------------------------------------------------------------------------

    def absorb(self, base: Weights, new: Weights, kept: Weights, task: Task) -> Weights:
        """What to keep after one more task's weights; `kept` is {} before the first, and always with ``fine_tuned``.

        Nothing of what is given may be written: it is merged again at the next evaluation.
        """
        raise NotImplementedError

    def result(self, base: Weights, kept: Weights, task: Task) -> Weights:
        """The merged weights out of what `absorb` gave after a task."""
        return kept

    def carried(self, base: Weights, merged: Weights) -> Weights:
        """With ``ema`` the merge in the form in which `absorb` takes what is kept."""
        return merged

    # -- the hooks --------------------------------------------------------------------------------------------------

    def setup(self, stream: Stream) -> None:
        tasks = Counter(column for task in stream.tasks for column in self.module.columns(task))
        self._own = [column for column in sorted(tasks) if tasks[column] == 1]

    def on_task_start(self, task: Task, data: DataPass) -> None:
        position = self.stream.position(task)
        if position == 0:  # the weights are the pretrained ones
            return
        base, last = self.base(), self.stream.tasks[position - 1]
        kept = self.absorb(base, self.live(), self.kept, last)
        if self.rule in ("ema", "fine_tuned"):
            merged = self.result(base, kept, last)
            self.load(self._whole(merged))
            kept = self.carried(base, merged) if self.rule == "ema" else {}
        elif self.rule == "zero_shot":
            self.load(self._whole(self.snapshot("initial")))  # running statistics too
        self.kept = kept

    def eval_weights(self, variant: str = "") -> AbstractContextManager[None]:
        if self.task is None:
            return nullcontext()
        base = self.base()
        kept = self.absorb(base, self.live(), self.kept, self.task)
        return self.swap(self._whole(self.result(base, kept, self.task)))

    def _whole(self, older: Weights) -> Weights:
        """Weights in the shapes of today, with the live rows of classes that one task alone trains."""
        live, found = self.weights(), self.grown(older)
        for name in filter(self.module.is_head, found):
            if found[name].dim():
                rows = [row for row in self._own if row < len(live[name])]
                found[name][rows] = live[name][rows].to(found[name])
        return found

    # -- weights of one shape ---------------------------------------------------------------------------------------

    def base(self) -> Weights:
        """The pretrained weights that are merged."""
        buffers = frozenset() if self.merges_buffers else {name for name, _ in self.module.network.named_buffers()}
        initial = self.snapshot("initial")
        return {n: value for n, value in initial.items() if value.is_floating_point() and n not in buffers}

    def live(self) -> Weights:
        """The live weights in the shapes of the pretrained ones."""
        live = self.weights()
        return {name: live[name][tuple(map(slice, value.shape))] for name, value in self.base().items()}

    def earlier(self, base: Mapping[str, Tensor], task: Task) -> Sequence[Mapping[str, Tensor]]:
        """Task vectors of the tasks before one, read from the run folder a tensor at a time."""
        names = [f"task-{i + 1}" for i in range(self.stream.position(task))]
        return [StoredVector(self.stored(name), base) for name in names]
