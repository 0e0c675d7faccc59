"""SLCA: a slow backbone, and a classifier aligned on features drawn from each class's Gaussian."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.optim import Optimizer

from mmcl.errors import ConfigError
from mmcl.functional.alignment import align_classifier
from mmcl.functional.prototypes import class_gaussians
from mmcl.outputs import Weights
from mmcl.strategies._class_features import ClassFeatures
from mmcl.strategy import BuildOptimizer, DataPass, ParameterGroup
from mmcl.stream import Task


class SLCA(ClassFeatures):
    """Slow learner with classifier alignment (Zhang et al., ICCV 2023).

    The backbone trains at a small part of the head's rate. When a task ends, each of its classes leaves the mean and
    the covariance (+ 1e-4 I) of its features; from the second task on, a copy of the head is trained on features drawn
    from N(s mu, Sigma) of all classes so far, s = 0.9 + 0.1 (t + 1) / (T + 1), with logits divided by their mean norm
    over the tasks' heads and by `temperature`. The copy answers; the head itself goes on into the next task as it is.

    Args:
        backbone_scale: factor on the rate of all that is not the head. The paper has 0.01 (rates 1e-4 and 0.01, SGD).
        epochs: of the alignment. The published repository has 5, a port of it 3. 0 aligns nothing.
        samples: drawn of each class in an epoch, and of a batch.
        temperature: tau; 0.05 on Cars. None: plain cross-entropy, without the normalisation.
        lr: of the alignment's SGD, with cosine annealing over the epochs.
        momentum: of it.
        weight_decay: of it.
        feature: name among the module's features that its head takes.

    Raises:
        ConfigError: an argument is out of range, the head is no linear layer, or a task has no class names.

    Differences from the published code: the aligned head is evaluation weights, so that nothing has to be restored
    before the next task, and `mmcl export` writes it; the state of a class takes 4 (D^2 + D) bytes, where there
    covariances are float64. In a stream whose classes come again each task leaves a Gaussian of its own.
    """

    claims = frozenset({"classifier", "eval_weights"})

    means: list[Tensor]
    covariances: list[Tensor]
    owners: list[list[int]]
    aligned: Weights

    def __init__(
        self,
        backbone_scale: float = 0.01,
        epochs: int = 5,
        samples: int = 256,
        temperature: float | None = 0.1,
        lr: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        feature: str = "image",
    ) -> None:
        super().__init__(feature)
        for name, value in (("backbone_scale", backbone_scale), ("lr", lr), ("temperature", temperature)):
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"SLCA: {name} is {value}; it must be positive")
        if not (0 <= momentum < 1 and 0 <= weight_decay < math.inf):
            raise ConfigError(
                f"SLCA: momentum is {momentum}, weight_decay {weight_decay}; momentum is 0..1, the other 0 or more"
            )
        if epochs < 0 or samples < 1:
            raise ConfigError(f"SLCA: epochs is {epochs} and samples {samples}; give at least 0 and 1")
        self.needs |= {"head.linear"}
        self.reads = self.reads if epochs else frozenset()
        self.backbone_scale, self.epochs, self.samples, self.temperature = backbone_scale, epochs, samples, temperature
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        for name in ("means", "covariances", "owners"):
            self.add_state(name, [])
        self.add_state("aligned", {}, dtype=None)

    def wrap_optimizer(self, build: BuildOptimizer, groups: list[ParameterGroup]) -> Optimizer:
        head = {id(p) for p in self.module.classifier.parameters()}
        backbone = {id(p) for p in self.module.network.parameters()} - head
        return build([part for group in groups for part in _parted(group, backbone, self.backbone_scale)])

    @torch.no_grad()
    def on_task_end(self, task: Task, data: DataPass) -> None:
        if not self.epochs:
            return
        features, columns = self.collect(task, data)
        present: list[int] = torch.unique(columns).tolist()
        means, covariances = class_gaussians(features, columns, classes=present)
        position = self.stream.position(task)
        self.means = [*self.means, means]
        self.covariances = [*self.covariances, covariances]
        self.owners = [*self.owners, present]
        if position > 0:
            self.aligned = self._align(task)

    def _align(self, task: Task) -> Weights:
        """Values of the head's leading rows, those of the classes seen."""
        head = self.module.classifier
        (prefix,) = (name for name, inner in self.module.network.named_modules() if inner is head)
        device = head.weight.device
        labels = torch.tensor([c for owners in self.owners for c in owners], device=device)
        tasks = torch.tensor([t for t, owners in enumerate(self.owners) for _ in owners], device=device)
        seen = int(labels.max()) + 1
        weight, bias, _ = align_classifier(
            head.weight[:seen],
            None if head.bias is None else head.bias[:seen],
            torch.cat(self.means),
            torch.cat(self.covariances),
            tasks,
            labels=labels,
            epochs=self.epochs,
            samples=self.samples,
            temperature=self.temperature,
            generator=self.generator(task),
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )
        values = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        return {f"{prefix}.{name}": self.reduce(value) for name, value in values.items()}  # equal on all ranks

    def eval_weights(self, variant: str = "") -> AbstractContextManager[None]:
        if not self.aligned:
            return nullcontext()
        live = self.weights()
        return self.swap({name: torch.cat([rows, live[name][len(rows) :]]) for name, rows in self.aligned.items()})


def _parted(group: ParameterGroup, slow: set[int], scale: float) -> Sequence[ParameterGroup]:
    """A group in two: what keeps its rate, and what is slow."""
    names = group.get("param_names")
    found: list[ParameterGroup] = []
    for is_slow in (False, True):
        chosen = [i for i, p in enumerate(group["params"]) if (id(p) in slow) == is_slow]
        if not chosen:
            continue
        part = {**group, "params": [group["params"][i] for i in chosen]}
        if names is not None:
            part["param_names"] = [names[i] for i in chosen]
        if is_slow:
            part |= {"name": f"{group['name']}/slow", "lr_scale": group["lr_scale"] * scale}
        found.append(part)
    return found
