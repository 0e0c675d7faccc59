"""What the runner lends to strategies: effective weights, snapshots, teachers, collectives, random numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmcl import checkpoint, distributed, seeds, weights
from mmcl.errors import ConfigError
from mmcl.outputs import Batch, Forward, Weights, move
from mmcl.stream import Source, Stream, Task, TaskSamples

STABLE = ("initial", "start")
EVERY_TASK = "task-*"
TEXTS_AT_ONCE = 256


class RunReach:
    """`mmcl.strategy.Reach` for one run.

    Snapshots are files in the run folder, written once by rank 0 and read by all; a teacher is a network built anew and
    filled from a snapshot, one per name, shared by all strategies.

    Args:
        module: the module in training.
        data: the stream's data.
        folder: ``snapshots/`` of the run folder.
        declared: snapshots that some strategy reads.
        seed: of the run.
    """

    def __init__(self, module: Any, data: Any, folder: Path, declared: frozenset[str], seed: int) -> None:
        for name in declared:
            if name not in STABLE and not name.startswith("task-"):
                raise ConfigError(f"unknown snapshot '{name}'; known: initial, start, task-K")
        self.module = module
        self.data = data
        self.stream: Stream = data.stream
        self.task: Task | None = None
        self.seed = seed
        self.convert: Callable[[Batch], Batch] = lambda batch: batch
        self._folder = folder
        self._declared = declared
        self._snapshots: dict[str, Weights] = {}
        self._teachers: dict[str, nn.Module] = {}
        self._answers: dict[tuple[str, int, str], tuple[Any, Tensor]] = {}
        self.evaluating: Callable[[], AbstractContextManager[Forward]]
        self.parameters: Callable[[], Iterator[nn.Parameter]]
        self.wrapped: Forward

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        found: torch.device = next(self.module.network.parameters()).device
        return found

    def weights(self, copy: bool, dtype: torch.dtype | None) -> Weights:
        return weights.read(self.module.network, copy, dtype)

    def load(self, values: Mapping[str, Tensor]) -> None:
        weights.write(self.module.network, values)

    def swap(self, values: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        return weights.swapped(self.module.network, values)

    def grown(self, values: Mapping[str, Tensor]) -> Weights:
        return weights.grown(self.weights(copy=True, dtype=None), values)

    def reduce(self, tensor: Tensor) -> Tensor:
        return distributed.mean(tensor)

    def generator(self, task: Task, name: str) -> torch.Generator:
        return seeds.generator(self.seed, "task", self.stream.position(task), name)

    def captions(self, source: Source) -> list[str]:
        """Every distinct caption of a source, in the order of its samples."""
        return list(dict.fromkeys(self.data.captions(source)))

    def samples(self, source: Source) -> Iterator[Batch]:
        """A training source in fixed order without augmentation, every sample once over all ranks, on the device.

        A sample that cannot be decoded is replaced, with ``valid`` False.
        """
        for batch in self.data.eval_loader(source, strict=False):
            yield self.convert(move(batch, self.device))

    def task_samples(self, task: Task) -> TaskSamples:
        """Keys and labels of a task's own samples, out of the index alone."""
        found: TaskSamples = self.data.task_samples(task)
        return found

    # -- snapshots and teachers -----------------------------------------------------------------------------------

    def take(self, name: str) -> None:
        """Write a snapshot of the live network, if somebody reads it. Called by the runner on all ranks."""
        if not self._is_read(name):
            return
        if distributed.rank() == 0:
            checkpoint.save_weights(self._folder / f"{name}.safetensors", self.weights(copy=False, dtype=None))
        distributed.barrier()
        self._snapshots.pop(name, None)
        self._teachers.pop(name, None)
        self._answers = {key: answer for key, answer in self._answers.items() if key[0] != name}

    def snapshot(self, name: str) -> Weights:
        self._require(name)
        if name not in self._snapshots:
            loaded = checkpoint.load_weights(self._folder / f"{name}.safetensors")
            self._snapshots[name] = {k: v.to(self.device) for k, v in loaded.items()}
        return self._snapshots[name]

    def stored(self, name: str) -> Mapping[str, Tensor]:
        self._require(name)
        return checkpoint.StoredWeights(self._folder / f"{name}.safetensors")

    def teacher(self, name: str) -> nn.Module:
        self._require(name)
        if name not in self._teachers:
            self._teachers[name] = self.frozen(checkpoint.load_weights(self._folder / f"{name}.safetensors"))
        return self._teachers[name]

    def frozen(self, values: Mapping[str, Tensor]) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            network: nn.Module = self.module.build_network()
        weights.resize(network, values)
        weights.write(network, values)
        live = next(self.module.network.parameters())
        return network.requires_grad_(False).eval().to(live.device, live.dtype)

    def teacher_texts(self, name: str, texts: Sequence[str]) -> Tensor:
        """(N, D) features that a teacher gives the distinct ones of `texts`, computed once."""
        return self._once((name, id(texts), "text"), texts, lambda teacher: self._encode(teacher, texts))

    def teacher_table(self, name: str, source: Source, feature: str) -> Tensor:
        """(N, D) features that a teacher gives a source's samples, by their ``__index__``, computed once.

        The pass has a fixed order and fixed batches, so that a resumed run finds the same numbers.
        """
        return self._once((name, id(source), feature), source, lambda teacher: self._table(teacher, source, feature))

    def _once(self, key: tuple[str, int, str], of: Any, make: Callable[[nn.Module], Tensor]) -> Tensor:
        if key not in self._answers:
            with torch.inference_mode(False), torch.no_grad():
                self._answers[key] = (of, make(self.teacher(key[0])))  # what lives keeps its id to itself
        return self._answers[key][1]

    def _encode(self, teacher: nn.Module, texts: Sequence[str]) -> Tensor:
        chunks = self.module.tokenize(list(dict.fromkeys(texts))).to(self.device).split(TEXTS_AT_ONCE)
        return torch.cat([self.module.compute(teacher, {"text": chunk}).features["text"] for chunk in chunks])

    def _table(self, teacher: nn.Module, source: Source, feature: str) -> Tensor:
        rows: list[Tensor] = []
        places: list[Tensor] = []
        for batch in self.samples(source):
            found = self.module.compute(teacher, {k: v for k, v in batch.items() if k != "text"}).features[feature]
            rows.append(found[batch["valid"]])
            places.append(batch["__index__"][batch["valid"]])
        answers, index = distributed.gather(torch.cat(rows)), distributed.gather(torch.cat(places))
        # Training does not draw what cannot be decoded here; if it did, the loss would tell.
        table = answers.new_full((int(index.max()) + 1, answers.shape[1]), torch.nan)
        table[index] = answers
        return table

    def _is_read(self, name: str) -> bool:
        return name in self._declared or (EVERY_TASK in self._declared and name.startswith("task-"))

    def _require(self, name: str) -> None:
        if not self._is_read(name):
            raise ConfigError(f"snapshot '{name}' is read but not declared; add it to the strategy's `snapshots`")
