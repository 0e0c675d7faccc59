"""A run in plain torch: a network with two small towers, and just enough of the runner to call every hook."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmcl import weights
from mmcl.compose import Composition, check, expand
from mmcl.outputs import Batch, Outputs
from mmcl.reach import RunReach
from mmcl.strategy import Strategy
from mmcl.stream import Budget, Source, Stream, Task

PARITY = Path(__file__).resolve().parent.parent / "parity"
STEPS, WARMUP, BASE_LR = 8, 2, 3e-2


class Towers(nn.Module):
    """The network of the ZSCL trajectories: a linear image tower, a mean of token embeddings as text tower."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = nn.Linear(6, 4)
        self.tok = nn.Embedding(20, 5)
        self.tproj = nn.Linear(5, 4, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(10.0), dtype=torch.float64))
        self.register_buffer("seen", torch.tensor(0))
        self.double()


class TowersModule:
    """The module's contract around `Towers`; captions are token ids written out ("3 4 5 6")."""

    provides = frozenset({"features", "logit_scale"})
    probes: frozenset[str] = frozenset()
    distillable = ("similarities",)
    pair = ("image", "text")
    fresh_head = False

    def __init__(self) -> None:
        self.network = Towers()
        self.text_calls = 0

    def compute(self, network: Any, batch: Batch) -> Outputs:
        outputs = Outputs(logit_scale=network.logit_scale.exp())
        if "image" in batch:
            outputs.features["image"] = network.visual(batch["image"])
        for key in {"text", "class_text"} & set(batch):
            outputs.features[key] = network.tproj(network.tok(batch[key]).mean(dim=1))
            self.text_calls += network is not self.network
        return outputs

    def __call__(self, batch: Batch) -> Outputs:
        return self.compute(self.network, batch)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([[int(word) for word in text.split()] for text in texts])


class Run:
    """Walks strategies through tasks; it is the `Reach` and hands out the `StepContext`."""

    def __init__(self, strategies: Sequence[Strategy], initial: Mapping[str, Tensor] | None = None) -> None:
        self.module: Any = TowersModule()
        self.module.network.logit_scale.requires_grad_(False)
        self.strategies = expand(strategies)
        check(self.strategies, self.module)
        self.composition = Composition(self.strategies)
        self.seed = 0
        self.task: Task | None = None
        self.caption_list: list[str] = []
        self.reference_batches: list[Batch] = []
        self.passes = 0
        self._answers: dict[Any, Any] = {}
        self.images_by_teacher = 0
        self.logged: dict[str, float] = {}
        self.losses: list[dict[str, Tensor]] = []
        self.step = 0
        reference = {"reference": Source(["reference.tar"], augment=False)}
        self.stream = Stream("toy", [make_task("one"), make_task("two")], sources=reference)
        if initial:
            self.load(initial)
        self._snapshots = {"initial": self.weights(copy=True, dtype=None)}
        for strategy in self.strategies:
            strategy.attach_reach(self)
            strategy.setup(self.stream)

    # -- reach ----------------------------------------------------------------------------------------------------

    def weights(self, copy: bool = False, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        return weights.read(self.module.network, copy, dtype)

    def load(self, values: Mapping[str, Tensor]) -> None:
        weights.write(self.module.network, values)

    def swap(self, values: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        return weights.swapped(self.module.network, values)

    def snapshot(self, name: str) -> dict[str, Tensor]:
        assert any(name in s.snapshots for s in self.strategies), f"{name} is not declared"
        return self._snapshots[name]

    def teacher(self, name: str) -> nn.Module:
        return self.frozen(self.snapshot(name))

    def frozen(self, values: Mapping[str, Tensor]) -> nn.Module:
        network = Towers()
        weights.write(network, values)
        return network.requires_grad_(False).eval()

    def grown(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return weights.grown(self.weights(copy=True), values)

    device = torch.device("cpu")
    teacher_texts, teacher_table = RunReach.teacher_texts, RunReach.teacher_table
    _once, _encode, _table = RunReach._once, RunReach._encode, RunReach._table

    def captions(self, source: Source) -> list[str]:
        return self.caption_list

    def samples(self, source: Source) -> list[Batch]:
        self.passes += 1
        return self.reference_batches

    def parameters(self) -> Iterator[nn.Parameter]:
        return self.module.network.parameters()  # type: ignore[no-any-return]

    def reduce(self, tensor: Tensor) -> Tensor:
        return tensor

    def generator(self, task: Task) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    # -- the life of a task -----------------------------------------------------------------------------------------

    def begin(self, name: str = "one") -> None:
        self.task = make_task(name)
        self.task_step = 0
        for hook in ("grow", "on_task_start"):
            for strategy in self.composition.of(hook):
                getattr(strategy, hook)(self.task, *(() if hook == "grow" else (None,)))
        self._snapshots["start"] = self.weights(copy=True)
        self._answers = {key: answer for key, answer in self._answers.items() if key[0] != "start"}
        trained = [p for p in self.module.network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=BASE_LR, weight_decay=0.0) if trained else None

    def train_step(self, batch: Batch, side: Batch | None = None, lr: float = BASE_LR) -> Tensor:
        context = self._context(batch, side)
        outputs = context.outputs
        logits = (
            outputs.logit_scale * F.normalize(outputs.features["image"]) @ F.normalize(outputs.features["class_text"]).T
        )
        terms = {"loss": F.cross_entropy(logits, batch["labels"], label_smoothing=0.2)}
        for strategy in self.composition.of("losses"):
            terms |= strategy.losses(context)
        self.losses.append({name: value.detach() for name, value in terms.items()})
        total = torch.stack(list(terms.values())).sum()
        self.optimizer.zero_grad()
        total.backward()
        with torch.no_grad():
            named = self.module.network.named_parameters()
            context.grads = {name: p.grad for name, p in named if p.grad is not None}
            for strategy in self.composition.of("on_gradients"):
                strategy.on_gradients(context)
            self.optimizer.param_groups[0]["lr"] = lr
            self.optimizer.step()
            self.module.network.seen += 1
            for strategy in self.composition.of("on_step_end"):
                strategy.on_step_end(context)
        self.step, self.task_step = self.step + 1, self.task_step + 1
        return total.detach()

    def end(self) -> None:
        for strategy in self.composition.of("on_task_end"):
            strategy.on_task_end(self.task, None)

    def evaluated(self, variant: str = "") -> dict[str, Tensor]:
        """The weights that an evaluation would see; the live ones come back untouched."""
        before = self.weights(copy=True)
        with torch.no_grad(), self.composition.eval_weights(variant):
            seen = self.weights(copy=True)
        assert_same(self.weights(), before)
        return seen

    def _context(self, batch: Batch, side: Batch | None) -> Any:
        def teacher(snapshot: str, batch: Batch) -> Outputs:
            self.images_by_teacher += len(batch["image"])
            with torch.no_grad():
                return self.module.compute(self.teacher(snapshot), batch)

        return SimpleNamespace(
            stage="fit", task=self.task, step=self.step, task_step=self.task_step, task_steps=STEPS, batch=batch,
            lr=BASE_LR,
            side={"reference": side}, outputs=self.module(batch), forward=self.module, teacher=teacher,
            gather=lambda tensor: tensor, reduce=self.reduce, log=self.logged.__setitem__,
        )  # fmt: skip


def make_task(name: str) -> Task:
    return Task(name, [Source([f"{name}.tar"])], Budget(steps=STEPS))


def assert_same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], tolerance: float = 0.0) -> None:
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(
            found[name], value, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


class Data:
    """The arrays of one trajectory."""

    def __init__(self, path: Path) -> None:
        self.arrays = {k: torch.from_numpy(v) for k, v in np.load(path).items()}
        self.captions = [" ".join(map(str, row)) for row in self.arrays["ref_text_tokens"].tolist()]

    def __getitem__(self, name: str) -> Tensor:
        return self.arrays[name]

    def weights(self, prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(f"{prefix}."): v for k, v in self.arrays.items() if k.startswith(f"{prefix}.")}

    def batch(self, i: int) -> Batch:
        return {
            "image": self["images"][i % 3],
            "labels": self["labels"][i % 3],
            "class_text": self["class_text_tokens"],
        }

    def side(self, i: int) -> Batch:
        images = self["ref_images"][i % 2]
        indices, valid = torch.arange(4) + 4 * (i % 2), torch.ones(4, dtype=torch.bool)
        return {"image": images, "text": self["ref_text_tokens"], "__index__": indices, "valid": valid}

    def lr(self, i: int) -> float:
        if i < WARMUP:
            return BASE_LR * (i + 1) / WARMUP
        return BASE_LR / 2 * (1 + math.cos(math.pi * (i - WARMUP) / (STEPS - WARMUP)))

    def run(self, *strategies: Strategy) -> Run:
        """A run that stands at the start of the task of the trajectories: a stream's second one."""
        run = Run(strategies, self.weights("init"))
        run.caption_list = [*self.captions, self.captions[0]]
        run.reference_batches = [self.side(1), self.side(0)]
        run.load(self.weights("prev"))
        return run

    def train(self, run: Run, steps: int = STEPS + 1) -> list[Tensor]:
        """The total loss before each step."""
        return [run.train_step(self.batch(i), self.side(i), self.lr(i)) for i in range(steps)]


@pytest.fixture
def data() -> Data:
    return Data(PARITY / "zscl" / "traj_zscl_feature_only.npz")


@pytest.fixture
def toolbox() -> SimpleNamespace:
    """What tests take from here: test files of this suite cannot import one another."""
    return SimpleNamespace(Run=Run, Data=Data, Towers=Towers, PARITY=PARITY, assert_same=assert_same, task=make_task)
