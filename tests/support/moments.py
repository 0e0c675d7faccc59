"""A strategy that sends its own process a signal at a chosen moment, once, and changes nothing else."""

from __future__ import annotations

import os
from pathlib import Path

from mmcl import StepContext, Strategy, distributed
from mmcl.outputs import Batch, Forward, Outputs


class SignalAt(Strategy):
    """Signal at the `count`-th forward of a stage, unless the file `done` is there.

    Args:
        signum: the signal.
        stage: ``fit`` or ``test``.
        count: which forward of this process.
        done: made before the signal is sent; each process leaves its id beside it as ``rank-N``.
        rank: which process sends it.
    """

    def __init__(self, signum: int, stage: str, count: int, done: str, rank: int = 0) -> None:
        super().__init__()
        self.signum, self.stage, self.count, self.done, self.rank = signum, stage, count, done, rank
        self._seen = 0

    def wrap_forward(self, next: Forward, batch: Batch, context: StepContext) -> Outputs:
        done = Path(self.done)
        if context.stage == self.stage and not done.exists():
            self._seen += 1
            (done.parent / f"rank-{distributed.rank()}").write_text(str(os.getpid()))
            if self._seen == self.count and distributed.rank() == self.rank:
                done.touch()
                os.kill(os.getpid(), self.signum)
        return next(batch)
