"""The strategy plug-in: one continual-learning method.

A strategy declares what it needs before anything is built and overrides only the hooks that it uses. The hooks stand
below in the order in which they fire:

    setup -> for each task: grow -> on_task_start -> [sources -> each step: wrap_forward -> losses -> on_gradients
    -> on_step_end] -> on_task_end -> eval_weights around the evaluation -> on_scores

and in `mmcl test`, where a strategy adapts: on_evalset_start -> wrap_forward for each batch of the set
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mmcl.contract import (
    Batches,
    BuildOptimizer,
    DataPass,
    Distillable,
    ModuleContract,
    ParameterGroup,
    Stage,
    StepContext,
)
from mmcl.errors import ConfigError
from mmcl.outputs import Batch, Forward, Outputs, Recorded, SourcePass, Weights

if TYPE_CHECKING:
    from mmcl.stream import EvalSet, Source, Stream, Task, TaskSamples

__all__ = [
    "CLAIMS",
    "PHASES",
    "READS",
    "Batches",
    "BuildOptimizer",
    "Claim",
    "DataPass",
    "Distillable",
    "ModuleContract",
    "ParameterGroup",
    "Phase",
    "Reach",
    "SourcePass",
    "Stage",
    "StepContext",
    "Strategy",
    "overriders",
    "overrides",
]

Claim = Literal["eval_weights", "start_weights", "optimizer", "prefix", "prompts", "adapters", "classifier"]
Phase = Literal["observe", "add", "project", "mask"]

CLAIMS: frozenset[str] = frozenset(
    {"eval_weights", "start_weights", "optimizer", "prefix", "prompts", "adapters", "classifier"}
)
PHASES: tuple[Phase, ...] = ("observe", "add", "project", "mask")
READS: frozenset[str] = frozenset({"samples", "labels", "keys", "sources"})


class Reach(Protocol):
    """What the runner lends a strategy; `Strategy` offers it under short names."""

    module: Any
    stream: Stream
    task: Task | None
    seed: int

    def weights(self, copy: bool, dtype: torch.dtype | None) -> Weights: ...
    def load(self, weights: Mapping[str, Tensor]) -> None: ...
    def swap(self, weights: Mapping[str, Tensor]) -> AbstractContextManager[None]: ...
    def grown(self, weights: Mapping[str, Tensor]) -> Weights: ...
    def snapshot(self, name: str) -> Weights: ...
    def stored(self, name: str) -> Mapping[str, Tensor]: ...
    def frozen(self, values: Mapping[str, Tensor]) -> nn.Module: ...
    def teacher(self, name: str) -> nn.Module: ...
    def teacher_texts(self, name: str, texts: Sequence[str]) -> Tensor: ...
    def teacher_table(self, name: str, source: Source, feature: str) -> Tensor: ...
    def captions(self, source: Source) -> list[str]: ...
    def samples(self, source: Source) -> Iterator[Batch]: ...
    def task_samples(self, task: Task) -> TaskSamples: ...
    def evaluating(self) -> AbstractContextManager[Forward]: ...
    def wrapped(self, batch: Batch) -> Outputs: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def reduce(self, tensor: Tensor) -> Tensor: ...
    def generator(self, task: Task, name: str) -> torch.Generator: ...


class Strategy(Recorded, nn.Module):
    """Base class of every continual-learning method.

    What trains is an `nn.Parameter`; all other state is declared by `add_state`. Two strategies that claim one resource
    are refused at start-up.
    """

    claims: frozenset[str] = frozenset()
    """Exclusive resources that it takes (`Claim`)."""
    needs: frozenset[str] = frozenset()
    """Output names and site kinds that the module, or another strategy of the list, must provide."""
    offers: frozenset[str] = frozenset()
    """What it adds to what strategies beside it may need."""
    snapshots: frozenset[str] = frozenset()
    """Named weights that it reads: ``initial``, ``start``, ``task-K``, ``task-*`` for those of every task."""
    gradients: ClassVar[Phase | None] = None
    """The phase of its `on_gradients`."""
    writes: ClassVar[frozenset[str]] = frozenset()
    """Hooks in which it writes the network's weights; there it runs before those that only read them."""
    variants: tuple[str, ...] = ()
    """Named evaluation weights beside the default one, for `test` and export."""
    adapts_at_test: ClassVar[bool] = False
    """Whether it adapts while it is tested: its `wrap_forward` is called in `mmcl test` alone, with gradients on."""
    freezes: bool = False
    """Whether it freezes the whole network but for what `ModuleContract.is_head` names."""
    freezes_head: bool = False
    """Whether it freezes that as well, since heads of its own answer."""
    idle: bool = False
    """Whether nothing of the network trains beside it, so that samples may lack what only the objective reads."""
    holds: bool = False
    """Whether it works on weights of the network that train; refused beside what leaves none."""
    reads: frozenset[str] = frozenset()
    """What it goes through outside of training steps, which takes an index: ``samples`` of every task, their
    ``labels``, their ``keys`` where it finds them by these, the ``sources`` that it asks for."""
    by_task: bool = False
    """Whether forwards go through a part of its own for each task, trained or not; refused beside what `settles`."""
    moves: bool = False
    """Whether the weights that it evaluates or hands on change at each task once something has trained, although
    nothing trains any more; refused beside what `settles`."""
    settles: bool = False
    """Whether it keeps what it measured of features in a task, and wants none of them to change once nothing trains."""
    unsupported: frozenset[str] = frozenset()
    """What it cannot do: ``accumulation``."""
    unexported: str = ""
    """What of it evaluations go through and exported folders lack, in the plural: ``prompts``."""
    listed: str = ""
    """The strategy of the user's list that it is a part of, by its class; set when presets give way to their parts."""

    def __init__(self) -> None:
        super().__init__()
        self._states: dict[str, torch.dtype | None] = {}
        self.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(self).__name__).lower()

    # -- what it is made of -------------------------------------------------------------------------------------

    def parts(self) -> Sequence[Strategy]:
        """A preset returns the strategies that take its place; anything else returns itself."""
        return (self,)

    @property
    def title(self) -> str:
        """What messages call it, for who wrote the list: its class, and as a part of a preset that too.

        A part of a private class is known to nobody but its preset, whose name alone stands for it.
        """
        own = type(self).__name__
        if not self.listed:
            return own
        return self.listed if own.startswith("_") else f"{own} of {self.listed}"

    def add_state(self, name: str, default: Any, dtype: torch.dtype | None = torch.float32) -> None:
        """Declare state that is saved and restored: a tensor, a number, a string, None, or dicts and lists of these.

        It becomes an attribute. It is no buffer: DDP broadcasts buffers at every forward, and they are cast with the
        module.

        Args:
            name: the attribute.
            default: the value before anything is loaded.
            dtype: floating tensors are kept in this type; None keeps theirs.
        """
        if hasattr(self, name):
            raise ConfigError(f"strategy '{type(self).__name__}' declares state '{name}' twice or over an attribute")
        self._states[name] = dtype
        setattr(self, name, _cast(default, dtype))

    def export_state(self) -> dict[str, Any]:
        """The declared state, for a checkpoint."""
        return {name: getattr(self, name) for name in self._states}

    def import_state(self, state: Mapping[str, Any]) -> None:
        """Take back what `export_state` gave.

        Raises:
            ConfigError: the names differ from the declared ones.
        """
        if set(state) != set(self._states):
            raise ConfigError(
                f"strategy '{self.name}': the checkpoint has state {sorted(state)}, this version {sorted(self._states)}"
            )
        for name, value in state.items():
            setattr(self, name, _cast(value, self._states[name]))

    # -- what the runner lends it -------------------------------------------------------------------------------

    def attach_reach(self, reach: Reach) -> None:
        """Called by the runner before `setup`."""
        object.__setattr__(self, "_reach", reach)  # past nn.Module, which would register what holds this strategy

    @property
    def reach(self) -> Reach:
        """The runner's side.

        Raises:
            ConfigError: the strategy is not part of a run.
        """
        reach: Reach | None = self.__dict__.get("_reach")
        if reach is None:
            raise ConfigError(f"strategy '{self.title}' is not part of a run; pass it to mmcl.run or `mmcl fit`")
        return reach

    @property
    def module(self) -> Any:
        """The module in training (see `ModuleContract`)."""
        return self.reach.module

    @property
    def stream(self) -> Stream:
        """The stream."""
        return self.reach.stream

    @property
    def task(self) -> Task | None:
        """The task at hand; None before the first."""
        return self.reach.task

    def weights(self, copy: bool = False, dtype: torch.dtype | None = None) -> Weights:
        """Effective weights of the network under canonical names, buffers included; `dtype` is for floating ones."""
        return self.reach.weights(copy, dtype)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Write effective weights into the network; names that are absent keep their values."""
        self.reach.load(weights)

    def swap(self, weights: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        """Weights in place for a while, the old ones restored exactly."""
        return self.reach.swap(weights)

    def grown(self, weights: Mapping[str, Tensor]) -> Weights:
        """A copy of older weights in the shapes of today: rows that the network gained since have its own values."""
        return self.reach.grown(weights)

    def snapshot(self, name: str) -> Weights:
        """A declared snapshot, on the network's device."""
        return self.reach.snapshot(name)

    def evaluating(self) -> AbstractContextManager[Forward]:
        """What evaluation sees, for a while: evaluation weights and all wraps, no gradients; batches give outputs."""
        return self.reach.evaluating()

    def wrapped(self, batch: Batch) -> Outputs:
        """What a step in training sees, between tasks: live weights and all wraps; gradients, where they are on."""
        return self.reach.wrapped(batch)

    def stored(self, name: str) -> Mapping[str, Tensor]:
        """A declared snapshot that stays on the disk: a tensor is read whenever it is asked for, onto the CPU."""
        return self.reach.stored(name)

    def frozen(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """A network of its own that holds these weights: without gradients, in eval mode, beside the one in training.

        Keep it where `nn.Module` does not register it (`object.__setattr__`): it is neither trained nor saved.
        """
        return self.reach.frozen(weights)

    def reduce(self, tensor: Tensor) -> Tensor:
        """Mean over ranks."""
        return self.reach.reduce(tensor)

    def generator(self, task: Task) -> torch.Generator:
        """Random numbers that are a function of (seed, task, this strategy's name)."""
        return self.reach.generator(task, self.name)

    # -- the hooks, in the order in which they fire ---------------------------------------------------------------

    def setup(self, stream: Stream) -> None:
        """Once, before anything is wrapped: attach to sites, allocate. Attaching must leave the outputs as they are."""

    def grow(self, task: Task) -> None:
        """Before each task, and replayed when a checkpoint is loaded: new parameters, what trains, what is frozen."""

    def on_task_start(self, task: Task, data: DataPass) -> None:
        """Once a task, after `grow`: start weights, importance passes, resets."""

    def sources(self, task: Task) -> Sequence[Source]:
        """When a segment's loader is built, and on resume: replay, reference and pretraining sources."""
        return ()

    def foresee(self, task: Task, batches: Batches) -> Sequence[Source]:
        """Before a fit, after every `setup`, for each task: what `sources` will ask for, at most, with memories filled.

        Here it refuses batch sizes that it cannot work with.
        """
        return self.sources(task)

    def wrap_optimizer(self, build: BuildOptimizer, groups: list[ParameterGroup]) -> Optimizer:
        """When a task's optimizer is built; nests like forwards."""
        return build(groups)

    def wrap_forward(self, next: Forward, batch: Batch, context: StepContext) -> Outputs:
        """Every forward, as an onion in list order. No side effects in fit."""
        return next(batch)

    def losses(self, context: StepContext) -> Mapping[str, Tensor]:
        """After the forward: named, weighted terms that need data."""
        return {}

    def on_gradients(self, context: StepContext) -> None:
        """Once an optimizer step: gradients reduced and unscaled, before clipping."""

    def on_step_end(self, context: StepContext) -> None:
        """After an optimizer step that really happened: averages, queues, thresholds, buffers."""

    def on_task_end(self, task: Task, data: DataPass) -> None:
        """Once a task, after its training: Fisher, merging, class statistics, routers."""

    def eval_weights(self, variant: str = "") -> AbstractContextManager[None]:
        """Around evaluation and export: averaged, interpolated or merged weights, in place and restored exactly."""
        return nullcontext()

    def on_evalset_start(self, evalset: EvalSet, position: int, source: SourcePass) -> None:
        """In `mmcl test`, if it adapts: before each evaluation set that it may adapt on, in their order.

        Args:
            evalset: what is measured next.
            position: 0 at the start, with the trained weights in place; later ones find what the last set left.
            source: passes over the tasks' own data.
        """

    def on_scores(self, scores: Mapping[str, float], context: StepContext | None) -> None:
        """After an evaluation, also the one before the first task: mixture weights, guards. `context` is None."""

    def shares(self) -> Mapping[str, float]:
        """At the end of a task, for the report: its training in parts of 1, such as the prompts that it selected."""
        return {}


def _cast(value: Any, dtype: torch.dtype | None) -> Any:
    if isinstance(value, Tensor):
        wider = dtype is not None and value.is_floating_point() and value.dtype != dtype
        return value.to(dtype) if wider else value
    if isinstance(value, Mapping):
        return {k: _cast(v, dtype) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_cast(v, dtype) for v in value)
    return value


def overrides(strategy: Strategy, hook: str) -> bool:
    """Whether a strategy brings its own version of a hook."""
    return getattr(type(strategy), hook) is not getattr(Strategy, hook)


def overriders(strategies: Iterable[Strategy], hook: str) -> list[Strategy]:
    """The strategies that a hook is dispatched to; writers of the network's weights come first."""
    found = [s for s in strategies if overrides(s, hook)]
    return sorted(found, key=lambda s: hook not in s.writes)
