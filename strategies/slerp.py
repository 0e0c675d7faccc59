"""Merging over time on the sphere."""

from __future__ import annotations

from mmcl.errors import ConfigError
from mmcl.functional.merging import slerp
from mmcl.outputs import Weights
from mmcl.strategies._merge import Merge, Rule
from mmcl.stream import Task


class SLERP(Merge):
    """Merge each task's weights with those so far along the great circle between them (Shoemake, SIGGRAPH 1985).

    For each tensor, with omega the angle between M_{t-1} and theta_t: M_t = sin((1 - w) omega) / sin(omega) x M_{t-1} +
    sin(w omega) / sin(omega) x theta_t, M_0 = theta_0; the straight line where |cos omega| is above 0.9995.

    Args:
        weight: w of the newest task's weights. The arrays of FoMo-in-Flux that this is held to use 0.3.
        rule: see `EMAMerge`.

    Raises:
        ConfigError: an argument is out of range.

    Differences from the published code: floating buffers are interpolated too, integer ones are the live model's.
    """

    stays = frozenset({"ema"})
    merges_buffers = True

    def __init__(self, weight: float = 0.3, rule: Rule = "ema") -> None:
        super().__init__(rule)
        if not 0 <= weight <= 1:
            raise ConfigError(f"SLERP: weight is {weight}; it must be within 0..1")
        self.weight = weight

    def absorb(self, base: Weights, new: Weights, kept: Weights, task: Task) -> Weights:
        return slerp(kept or base, new, self.weight)
