"""WiSE-FT: weights between an anchor and the trained model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

from mmcl.errors import ConfigError, near
from mmcl.functional.averaging import interpolate
from mmcl.outputs import Weights
from mmcl.strategy import DataPass, Strategy
from mmcl.stream import Task

BASES = ("initial", "start")


class WeightInterpolation(Strategy):
    """Evaluate (1 - alpha) x base + alpha x trained weights (WiSE-FT; Wortsman et al., CVPR 2022).

    Training is left alone. With `merge` the interpolation becomes the model at the end of each task and the next task
    starts from it; it is then evaluated as it is.

    Args:
        alpha: weight of the trained model. 0.5 is the paper's choice without tuning; the "WiSE merge" baseline of the
            ZSCL repository is ``alpha=0.8, base="start", merge=True``.
        base: ``initial``, the pretrained model, or ``start``, the model at the start of the task.
        alphas: further values, evaluated by `test` and exported as the variants ``alpha=0.3`` and so on, without
            training.
        merge: carry the interpolation into the next task.

    Raises:
        ConfigError: an alpha is outside 0..1, the base is unknown, or `alphas` goes with `merge`.

    Differences from the published code: floating buffers are interpolated too, integer ones come from the trained
    model; a head that the stream brings has no pretrained values and stays as it was trained. There the weights are
    interpolated once, after a single fine-tuning.
    """

    claims = frozenset({"eval_weights"})
    writes = frozenset({"on_task_end"})

    start: Weights

    def __init__(
        self,
        alpha: float = 0.5,
        base: Literal["initial", "start"] = "initial",
        alphas: Sequence[float] = (),
        merge: bool = False,
    ) -> None:
        super().__init__()
        for value in (alpha, *alphas):
            if not 0 <= value <= 1:
                raise ConfigError(f"WeightInterpolation: alpha is {value}; it must be within 0..1")
        if base not in BASES:
            raise ConfigError(f"WeightInterpolation: base '{base}' is unknown; {near(base, BASES)}")
        if merge and alphas:
            raise ConfigError("WeightInterpolation: after a merge there is nothing to sweep; leave out alphas or merge")
        self.base = base
        self.merge = self.moves = merge
        self.alphas = {"": alpha, **{f"alpha={value:g}": value for value in alphas}}
        self.variants = tuple(name for name in self.alphas if name)
        self.snapshots = frozenset({"initial"} if base == "initial" else ())
        # A state, since the snapshot `start` is gone when an earlier task's checkpoint is evaluated again.
        self.add_state("start", {}, dtype=None)

    def on_task_start(self, task: Task, data: DataPass) -> None:
        if self.base == "start":
            self.start = self.weights(copy=True)

    def eval_weights(self, variant: str = "") -> AbstractContextManager[None]:
        if variant not in self.alphas:
            raise ConfigError(f"WeightInterpolation has no variant '{variant}'; {near(variant, self.variants)}")
        if self.merge or self.task is None:  # before the first task all of them are the pretrained model
            return nullcontext()
        return self.swap(self._interpolated(self.alphas[variant]))

    def on_task_end(self, task: Task, data: DataPass) -> None:
        if self.merge:
            self.load(self._interpolated(self.alphas[""]))
            self.start = {}

    def _interpolated(self, alpha: float) -> Weights:
        anchor = self.start if self.base == "start" else self.snapshot("initial")
        if self.base == "initial" and self.module.fresh_head:
            anchor = {name: value for name, value in anchor.items() if not self.module.is_head(name)}
        return interpolate(self.grown(anchor), self.weights(), alpha=alpha)
