"""A strategy that lives outside of mmcl."""

import torch

from mmcl import StepContext, Strategy


class Anchor(Strategy):
    """Pull every weight to where the task began, after each step.

    Args:
        strength: part of the way back.
    """

    writes = frozenset({"on_step_end"})
    snapshots = frozenset({"start"})

    def __init__(self, strength: float = 0.1) -> None:
        super().__init__()
        self.strength = strength

    @torch.no_grad()
    def on_step_end(self, context: StepContext) -> None:
        start = self.snapshot("start")
        self.load({name: weight.lerp(start[name], self.strength) for name, weight in self.weights().items()})
