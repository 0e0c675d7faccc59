"""The real path on pocket data: the runner, its Trainer and its engine over batches that lie in memory."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
import yaml

from mmcl import trainer as lightning
from mmcl.benchmarks.pocket import pocket
from mmcl.benchmarks.throughput.turns import Gate
from mmcl.datamodules import StreamDataModule
from mmcl.modules import CLIPModule
from mmcl.modules.base import Module
from mmcl.modules.contrastive_losses import ClassTextCrossEntropy, Contrastive
from mmcl.outputs import Batch
from mmcl.runner import Runner, RunOptions
from mmcl.strategy import Strategy
from mmcl.stream import Stream

MODEL = "package:mmcl.benchmarks.pocket/pocket-clip"
SHARDS = Path(__file__).resolve().parents[1] / "pocket" / "data"
PRELOADED = 8
"""Batches that are read before the measurement and used in turn."""


def preset(name: str) -> dict[str, Any]:
    """A ready configuration of the pocket benchmark, ``finetune`` or ``zscl``."""
    text = resources.files("mmcl.configs").joinpath("pocket", f"{name}.yaml").read_text(encoding="utf-8")
    found: dict[str, Any] = yaml.safe_load(text)
    return found


@dataclass(frozen=True)
class Setting:
    """What is trained: the pocket stream's first task, by a model with random weights.

    Args:
        batch_size: of a step; also of the reference batch.
        objective: ``contrastive`` on captions or ``classes``, the cross-entropy over class texts.
        save_every: steps between checkpoints; 0 leaves them out.
        model: any model that `mmcl.modules.CLIPModule` takes.
        as_preset: train the parts and in the memory format that the pocket presets name.
    """

    batch_size: int
    objective: Literal["contrastive", "classes"] = "contrastive"
    save_every: int = 0
    model: str = MODEL
    as_preset: bool = False

    def module(self) -> CLIPModule:
        """The module, the same in every process."""
        torch.manual_seed(0)
        objective = ClassTextCrossEntropy() if self.objective == "classes" else Contrastive()
        own: dict[str, Any] = {"random_init": self.model.startswith(("package:", "local-dir:"))}
        if self.as_preset:
            given = preset("finetune")["model"]["init_args"]
            own |= {key: given[key] for key in ("trainable", "channels_last")}
        return CLIPModule(self.model, objective=objective, lr=1e-4, **own)

    def data(self, steps: int) -> StreamDataModule:
        """One task of so many steps, with the stream's reference source and without evaluation sets."""
        stream = pocket(seed=0, steps=steps)
        task = replace(stream.tasks[0], evaluates=None)
        return StreamDataModule(Stream("throughput", [task], sources=stream.sources), self.batch_size)


class Trainable(Protocol):
    """What a measurement asks of a setting."""

    @property
    def save_every(self) -> int:
        """Steps between checkpoints."""

    def module(self) -> Module:
        """The module, the same in every process."""

    def data(self, steps: int) -> StreamDataModule:
        """One task of so many steps."""


class Preloaded:
    """A loader that hands out batches from memory and ticks before each one."""

    def __init__(self, batches: Sequence[Batch], gate: Gate) -> None:
        self._batches, self._gate = batches, gate

    def __len__(self) -> int:
        return self._gate.plan.total

    def __iter__(self) -> Iterator[Batch]:
        for step in range(len(self)):
            self._gate.tick()
            yield dict(self._batches[step % len(self._batches)])


class Measured(StreamDataModule):
    """The stream's data, with the first batches of its training loader kept in memory."""

    def __init__(self, data: StreamDataModule, gate: Gate) -> None:
        super().__init__(data.stream, data.batch_size)
        self._gate = gate

    def train_loader(self, *arguments: Any, **options: Any) -> Any:
        """`Preloaded` over what the stream's own loader reads."""
        return Preloaded(list(islice(super().train_loader(*arguments, **options), PRELOADED)), self._gate)


def preload(setting: Trainable, module: Module, gate: Gate) -> Preloaded:
    """The batches that `Measured` gives to the runner, for a loop of one's own."""
    data = Measured(setting.data(gate.plan.total), gate)
    data.bind(module.transform, seed=0, collate=module.collate, packing=module.packing)
    loader: Preloaded = data.train_loader(
        data.stream.tasks[0], positions={}, segment=0, first_step=0, steps=gate.plan.total
    )
    return loader


def fit(setting: Trainable, strategies: Callable[[], Sequence[Strategy]] = tuple) -> Callable[[Gate], str]:
    """A participant that trains through the runner, progress bar and metrics log included.

    Args:
        setting: what is trained.
        strategies: builds the strategies, in the participant's process.

    Returns:
        The participant; it returns a digest of the trained weights.
    """

    def work(gate: Gate) -> str:
        module = setting.module()
        with tempfile.TemporaryDirectory() as folder:
            options = RunOptions(run_dir=Path(folder) / "run", save_every=setting.save_every, command="throughput")
            data = Measured(setting.data(gate.plan.total), gate)
            Runner(data, module, list(strategies()), lightning.make(accelerator="cpu"), options).fit()
        return digest(module.network)

    return work


def digest(network: torch.nn.Module) -> str:
    """SHA-256 of all weights."""
    found = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        found.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
