"""The pretrained model as it is: the row that every table needs."""

from __future__ import annotations

from mmcl.strategy import Strategy
from mmcl.stream import Task


class Frozen(Strategy):
    """Train nothing, so that every row of the score matrix is the pretrained model.

    Differences from the published code: there is none; this is the zero-shot row of the papers' tables. Parameters of
    other strategies in the list are left as they are.
    """

    idle = True

    def grow(self, task: Task) -> None:
        self.module.network.requires_grad_(False)
