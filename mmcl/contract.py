"""What modules offer to strategies, metrics and the runner, and what a strategy's hooks are given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mmcl.outputs import Batch, Objective, Outputs, Packing
from mmcl.schedule import Schedule

if TYPE_CHECKING:
    from mmcl.stream import Source, Stream, Task

Distillable = Literal["similarities", "logits", "tokens", "features"]
Stage = Literal["fit", "validate", "test", "predict"]
ParameterGroup = dict[str, Any]
BuildOptimizer = Callable[[list[ParameterGroup]], Optimizer]


class ModuleContract(Protocol):
    """What strategies, metrics and the runner may ask of a module; none of them asks which modality it is.

    Attributes:
        network: the one `nn.Module` that is trained, averaged, snapshotted, copied as a teacher and exported.
        objective: the task's own loss.
        provides: output names (``features``, ``logits``, ``tokens``, ``logit_scale``, ``features.image``, ...), site
            kinds (``sites.linear``, ...) and the kind of its head (``head.linear``, ``head.cosine``).
        classifier: the layer of `network` that makes `logits` over classes out of one vector of features, or None.
        probes: kinds of evaluation that it can do.
        distillable: which of its outputs a teacher can hold a student to, the usual one first: ``similarities`` of the
            features in `pair`, ``logits`` over classes, tokens or frames, ``tokens`` (vectors of tokens or frames),
            ``features``.
        fresh_head: whether the columns of ``logits`` are learned in the stream alone, so that the initial model's say
            nothing.
        pair: names of the two features that a contrastive module compares, the text's second; None elsewhere.
        pixel_statistics: mean and standard deviation of each channel by which pictures in a batch are normalised; None
            without pictures.
        paddings: batch keys of rows of different lengths, and what fills them up.
        packing: how documents become samples; None where a sample of the shards is one of the module's.
        sample_tokens: tokens of one sample, where that is fixed.
        target_bytes: whether batches say how many bytes of text each target stands for (``target_bytes``).
        formats: what `export` writes, the peer library's own form first.
        lr: the learning rate before schedule and task have scaled it.
        schedule: factor on it over a task's steps.
    """

    network: nn.Module
    objective: Objective
    provides: frozenset[str]
    probes: frozenset[str]
    distillable: tuple[Distillable, ...]
    fresh_head: bool
    pair: tuple[str, str] | None
    pixel_statistics: tuple[Sequence[float], Sequence[float]] | None
    paddings: Mapping[str, float]
    packing: Packing | None
    sample_tokens: int | None
    target_bytes: bool
    formats: tuple[str, ...]
    lr: float
    schedule: Schedule

    @property
    def classifier(self) -> nn.Module | None: ...
    def __call__(self, batch: Batch) -> Outputs: ...
    def compute(self, network: nn.Module, batch: Batch) -> Outputs: ...
    def generate(self, batch: Batch, **options: Any) -> Outputs: ...
    def check_generation(self, options: Mapping[str, Any]) -> None: ...
    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]: ...
    def build_network(self) -> nn.Module: ...
    def transform(self, sample: dict[str, Any], augment: bool) -> dict[str, Any]: ...
    def collate(self, samples: Sequence[dict[str, Any]]) -> Batch: ...
    def tokenize(self, texts: Sequence[str]) -> Tensor: ...
    def sites(self, kind: str) -> list[Any]: ...
    def is_head(self, name: str) -> bool: ...
    def columns(self, task: Task) -> Sequence[int]: ...
    def check(self, stream: Stream) -> None: ...
    def needed(self, probe: str = "") -> frozenset[str]: ...
    def grow(self, task: Task) -> None: ...
    def export(self, folder: Path, format: str) -> None: ...
    def after_step(self) -> None: ...
    def parameter_groups(self) -> list[ParameterGroup]: ...
    def build_optimizer(self, groups: list[ParameterGroup]) -> Optimizer: ...


class DataPass(Protocol):
    """A finite pass over the task's own training data in fixed order, every sample once over all ranks."""

    def __call__(
        self, augment: bool = False, batch_size: int | None = None, limit: int | None = None
    ) -> Iterator[Batch]: ...


class StepContext(Protocol):
    """What a hook inside a step may look at and ask for.

    Attributes:
        stage: fit, validate, test or predict.
        task: the task in training; None in the evaluation before the first.
        step: optimizer steps that really happened in the run, before this one.
        task_step: the same within the task.
        task_steps: the task's budget in steps.
        batch: the prepared training batch of this rank.
        side: name -> side batch of this rank.
        outputs: the network's outputs for `batch`.
        lr: learning rate of the step, before a group's `lr_scale`.
        grads: name -> gradient (canonical names), in `on_gradients` only.
        source: the source that an evaluation reads, which gives its samples in the same batches every time; None in
            fit and elsewhere.
        generator: random numbers equal on all ranks, a function of (seed, task, step).
    """

    stage: Stage
    task: Task | None
    step: int
    task_step: int
    task_steps: int
    batch: Batch
    side: Mapping[str, Batch]
    outputs: Outputs
    lr: float
    grads: Mapping[str, Tensor]
    source: Source | None

    @property
    def generator(self) -> torch.Generator: ...

    def forward(self, batch: Batch, bare: bool = False) -> Outputs:
        """Outputs of the live network, computed once a step for each batch; `bare` skips the strategies' wraps.

        What was computed without gradients, or in eval mode, is kept apart from what was computed with them.
        """

    def teacher(self, snapshot: str, batch: Batch) -> Outputs:
        """Outputs of the frozen network that holds a snapshot, without gradients, once a step for each batch."""

    def generate(self, batch: Batch, **options: Any) -> Outputs:
        """What the live network generates for a batch, with the strategies' wraps, without gradients."""

    def module_loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        """The module's own loss."""

    def gradients(self, batch: Batch) -> dict[str, Tensor]:
        """Gradients of the module's own loss, averaged over ranks; `.grad` is left alone."""

    def reduce(self, tensor: Tensor) -> Tensor:
        """Mean over ranks."""

    def gather(self, tensor: Tensor) -> Tensor:
        """Rows of all ranks, in rank order; gradients flow back to their owners."""

    def log(self, name: str, value: float | Tensor) -> None:
        """Record a figure in metrics.jsonl at the next logged step."""


class Batches(NamedTuple):
    """How the batches of a fit are made.

    Attributes:
        size: samples of an optimizer step, over all processes and accumulated batches, without side batches.
        at_once: those of them that are in memory at a time, over all processes.
        processes: how many there are.
    """

    size: int
    at_once: int
    processes: int
