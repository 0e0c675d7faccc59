"""A small network in the place of a module, and just enough of a test around a strategy that adapts in it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from mmcl.outputs import ANSWERS, Batch, Outputs
from mmcl.stream import EvalSet, Source

SET = EvalSet("set", Source(["set.tar"]))


def network() -> nn.Sequential:
    """That of the trajectories, the same at every call."""
    torch.manual_seed(3)
    layers = [
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
    ]
    return nn.Sequential(*layers).double().eval()


class Classes:
    """`mmcl.outputs.Answers` of a head that answers by itself."""

    def answers(self, outputs: Outputs) -> Tensor:
        assert outputs.logits is not None
        return outputs.logits

    def places(self, labels: Tensor) -> Tensor:
        return labels


class Bench:
    """A network in the place of a module, and just enough of a test around a strategy."""

    def __init__(self, strategy: Any, net: nn.Module | None = None, source: Any = None) -> None:
        self.network = network() if net is None else net
        module = SimpleNamespace(
            network=self.network, pair=None, pixel_statistics=((0.0,) * 3, (1.0,) * 3), compute=None
        )
        task = SimpleNamespace(class_names=tuple("abcde"))
        stream = SimpleNamespace(tasks=(task,))
        self.strategy, self.source = strategy, source
        strategy.attach_reach(SimpleNamespace(module=module, seed=0, stream=stream))
        self.sets = 0
        self.next_set()

    def next_set(self) -> None:
        self.strategy.on_evalset_start(SET, self.sets, self.source)
        self.sets += 1

    def forward(self, batch: Batch) -> Outputs:
        features = self.network[:-1](batch["image"])
        return Outputs(features={"image": features}, logits=self.network[-1](features))

    def step(self, image: Tensor, valid: Tensor | None = None) -> Tensor:
        batch = {"image": image, "valid": torch.ones(len(image), dtype=torch.bool) if valid is None else valid}
        with torch.no_grad():
            found = self.strategy.wrap_forward(self.forward, batch | {ANSWERS: Classes()}, SimpleNamespace())
        assert found.logits is not None
        return found.logits.detach()

    def weights(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.network.named_parameters()}
