"""What every module shares: the contract of `mmcl.strategy.ModuleContract`, the optimizer, and training on its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import lightning.pytorch as pl
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from mmcl import weights
from mmcl.collate import collate
from mmcl.errors import ConfigError, near
from mmcl.outputs import ATTACHED, MEMBERS, Batch, Objective, Outputs, Packing, Recorded, draws_to_augment
from mmcl.schedule import Schedule, WarmupCosine
from mmcl.strategy import Distillable
from mmcl.stream import Stream, Task

OptimizerBuilder = Callable[[Iterable[Any]], Optimizer]


class Module(Recorded, pl.LightningModule):
    """A LightningModule around one family of backbones.

    In a stream the runner trains it; alone it works in a plain `Trainer.fit` with batches of the same keys. What a
    subclass declares beside its methods is documented in `mmcl.strategy.ModuleContract`.

    Args:
        objective: the task's own loss.
        lr: learning rate; each task may scale it.
        weight_decay: of the default optimizer.
        betas: of the default optimizer.
        schedule: factor on the rate over a task's steps. None: 10 % warm-up, then cosine to 0.
        optimizer: takes parameter groups and returns an optimizer, in place of AdamW. `lr` and the groups' `lr_scale`
            are applied to it all the same.
    """

    provides: frozenset[str] = frozenset()
    probes: frozenset[str] = frozenset()
    distillable: tuple[Distillable, ...] = ()
    fresh_head: bool = False
    pair: tuple[str, str] | None = None
    pixel_statistics: tuple[Sequence[float], Sequence[float]] | None = None
    paddings: Mapping[str, float] = MappingProxyType({})
    packing: Packing | None = None
    formats: tuple[str, ...] = ("safetensors",)
    sample_tokens: int | None = None
    target_bytes: bool = False
    generation_options: tuple[str, ...] = ("max_new_tokens",)
    network: nn.Module

    def __init__(
        self,
        objective: Objective,
        lr: float = 1e-5,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        schedule: Schedule | None = None,
        optimizer: OptimizerBuilder | None = None,
    ) -> None:
        super().__init__()
        title = type(self).__name__
        if not 0 < lr < math.inf:
            raise ConfigError(f"{title}: lr is {lr}; it must be positive")
        if not 0 <= weight_decay < math.inf:
            raise ConfigError(f"{title}: weight_decay is {weight_decay}; it must be 0 or more")
        if not all(0 <= beta < 1 for beta in betas):
            raise ConfigError(f"{title}: betas are {list(betas)}; each must be 0 or more and below 1")
        self.objective = objective
        self.lr = lr
        self.weight_decay = weight_decay
        self.betas = betas
        self.schedule = schedule or WarmupCosine()
        self.optimizer_builder = optimizer

    # -- the contract ------------------------------------------------------------------------------------------------

    def compute(self, network: nn.Module, batch: Batch) -> Outputs:
        """Outputs of `network` (the live one or a teacher) for a batch; what the batch lacks, the outputs lack."""
        raise NotImplementedError

    def build_network(self) -> nn.Module:
        """A network of the same architecture and arbitrary weights, on the CPU; a teacher is filled from a snapshot."""
        raise NotImplementedError

    def transform(self, sample: dict[str, Any], augment: bool) -> dict[str, Any]:
        """Decoded sample (PIL image, str, int) -> tensors of one row of a batch. Runs in data workers."""
        raise NotImplementedError

    @draws_to_augment
    def collate(self, samples: Sequence[dict[str, Any]]) -> Batch:
        """Rows -> batch, in data workers: tensors are stacked, those named in `paddings` filled up to the longest."""
        return collate(samples, self.paddings)

    def generate(self, batch: Batch, **options: Any) -> Outputs:
        """Texts that the live network gives for a batch: `Outputs.texts`, one for each row.

        Raises:
            ConfigError: the module generates nothing.
        """
        raise ConfigError(f"{type(self).__name__} does not generate")

    def check_generation(self, options: Mapping[str, Any]) -> None:
        """Refuse what `generate` cannot use; probes ask at start-up, before anything is written.

        Args:
            options: of `generate`; `generation_options` are their names.

        Raises:
            ConfigError: an unknown option, or a value that it cannot have.
        """
        for name in sorted(options.keys() - set(self.generation_options)):
            hint = near(name, self.generation_options)
            raise ConfigError(f"{type(self).__name__}: option '{name}' of generation is unknown; {hint}")
        most = options.get("max_new_tokens", 1)
        if isinstance(most, bool) or not isinstance(most, int) or most < 1:
            raise ConfigError(f"{type(self).__name__}: option max_new_tokens is {most!r}; give a whole number from 1")

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Texts -> (len(texts), L) token ids."""
        raise NotImplementedError

    def sites(self, kind: str) -> list[Any]:
        """Places of one kind: ``linear`` (`Site`), ``attention`` (`AttentionSite`), ``input`` (`InputSite`).

        Raises:
            ConfigError: the module has no sites of that kind.
        """
        kinds = sorted(p.removeprefix("sites.") for p in self.provides if p.startswith("sites."))
        raise ConfigError(f"{type(self).__name__} has no sites of kind '{kind}'; {near(kind, kinds)}")

    def is_head(self, name: str) -> bool:
        """Whether a weight is of the head over the classes or symbols that the tasks bring.

        What freezes the pretrained model leaves that training.

        Args:
            name: canonical name of a parameter of the network.
        """
        return False

    def columns(self, task: Task) -> Sequence[int]:
        """The columns of ``logits`` that a task's own samples train: the rows of the head for its classes.

        Args:
            task: one of the stream.

        Returns:
            None where the loss reaches other rows too, or where logits are not of classes that the tasks bring.
        """
        return ()

    def train(self, mode: bool = True) -> Self:
        """A batch norm whose own weights do not train keeps its running statistics."""
        super().train(mode)
        if mode:
            for layer in self.network.modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    own = list(layer.parameters(recurse=False))
                    layer.train(not own or any(p.requires_grad for p in own))
        return self

    def export(self, folder: Path, format: str) -> None:
        """Write the network for its peer library, adapters folded in.

        Args:
            folder: exists and is empty.
            format: one of `formats`; every module offers ``safetensors``, the bare weights by name.

        Raises:
            ConfigError: a format that the module does not offer.
        """
        if format not in self.formats:
            raise ConfigError(f"{type(self).__name__} is not exported as '{format}'; {near(format, self.formats)}")
        found = weights.read(self.network)
        save_file({k: v.detach().cpu().contiguous().clone() for k, v in found.items()}, folder / "model.safetensors")

    def check(self, stream: Stream) -> None:
        """Refuse a stream that this module cannot serve, before anything is written.

        Raises:
            ConfigError: a task without what the objective needs.
        """
        for task in stream.tasks:
            self.objective.check(task)

    def needed(self, probe: str = "") -> frozenset[str]:
        """Fields that every sample must have, out of ``image``, ``audio``, ``text`` and ``labels``.

        Args:
            probe: of an evaluation set; empty means training.
        """
        needs = frozenset() if probe else self.objective.needs & MEMBERS.keys()
        return needs | {self.pair[0]} if self.pair is not None and "labels" in needs else needs  # labels of pictures

    def grow(self, task: Task) -> None:
        """Structure and `requires_grad` for a task; a pure function of (seed, task), replayed when a run is resumed."""

    def after_step(self) -> None:
        """After an optimizer step: keep parameters in their range."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Named groups of what trains, with `lr_scale`; vectors and scalars are not decayed, as in open_clip."""
        groups: dict[str, dict[str, Any]] = {}
        for name, parameter in self.network.named_parameters():
            if not parameter.requires_grad:
                continue
            scale = self.lr_scale(name)
            decayed = parameter.ndim >= 2
            key = f"{'decay' if decayed else 'no_decay'}@{scale:g}"
            group = groups.setdefault(
                key,
                {
                    "params": [],
                    "param_names": [],
                    "name": key,
                    "lr_scale": scale,
                    "weight_decay": self.weight_decay if decayed else 0.0,
                },
            )
            group["params"].append(parameter)
            group["param_names"].append(name)
        return list(groups.values())

    @property
    def classifier(self) -> nn.Module | None:
        """The layer of `network` that makes `logits` over classes out of one vector of features, where there is one."""
        return None

    def lr_scale(self, name: str) -> float:
        """Factor on the learning rate of one parameter (layer-wise rates)."""
        return 1.0

    def build_optimizer(self, groups: list[dict[str, Any]]) -> Optimizer:
        """The optimizer over groups. Rates are set at every step from `lr`, the schedule and the groups' `lr_scale`."""
        if self.optimizer_builder is not None:
            return self.optimizer_builder(groups)
        fused = all(p.is_cuda for g in groups for p in g["params"])
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, weight_decay=self.weight_decay, fused=fused)

    # -- the only entry, and training on its own ---------------------------------------------------------------------

    def forward(self, batch: Batch) -> Outputs:
        """Outputs of the live network, with what strategies put at its sites for this forward."""
        with ExitStack() as stack:
            for attach in batch.get(ATTACHED, ()):
                stack.enter_context(attach())
            return self.compute(self.network, batch)

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """The objective's named terms."""
        return self.objective.terms(outputs, batch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step in a plain `Trainer.fit`, outside a stream."""
        batch = self.objective.prepare(batch)
        terms = self.loss(self(batch), batch)
        total = torch.stack(list(terms.values())).sum()
        self.log("loss", total, prog_bar=True)
        return total

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Outside a stream: what the runner does after each optimizer step."""
        self.after_step()

    def configure_optimizers(self) -> Any:
        """Outside a stream: the same optimizer, with the schedule over the trainer's own number of steps."""
        groups = self.parameter_groups()
        for group in groups:
            group["lr"] = self.lr * group["lr_scale"]
        optimizer = self.build_optimizer(groups)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.schedule(step, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
