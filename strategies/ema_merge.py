"""Merging over time by interpolation."""

from __future__ import annotations

from mmcl.errors import ConfigError
from mmcl.functional.averaging import interpolate
from mmcl.functional.merging import widened
from mmcl.outputs import Weights
from mmcl.strategies._merge import Merge, Rule
from mmcl.stream import Task


class EMAMerge(Merge):
    """Interpolate each task's weights into the merge of the tasks so far (Dziadzio et al., CVPR 2025).

    M_0 = theta_0, M_t = weight x theta_t + (1 - weight) x M_{t-1}. With the rule ``ema`` task t + 1 is trained from
    M_t, which is also what is evaluated. Two copies of the weights are kept, however many tasks there are.

    Args:
        weight: of the newest task's weights. 0.5 is our choice; the paper looks at values between 0.1 and 0.9.
        rule: ``ema`` is the paper's EMA-merge, ``zero_shot`` its ZeroShot-merge (each task from theta_0, all merged),
            ``fine_tuned`` its FT-merge (M_t = weight x theta_t + (1 - weight) x theta_0); ``sequential`` trains on
            without looking at the merge.

    Raises:
        ConfigError: an argument is out of range.

    Differences from the published code: floating buffers are interpolated too, integer ones are the live model's. The
    merge is kept in float32, or in the weights' own type where that is wider.
    """

    stays = frozenset({"ema"})
    merges_buffers = True

    def __init__(self, weight: float = 0.5, rule: Rule = "ema") -> None:
        super().__init__(rule)
        if not 0 <= weight <= 1:
            raise ConfigError(f"EMAMerge: weight is {weight}; it must be within 0..1")
        self.weight = weight

    def absorb(self, base: Weights, new: Weights, kept: Weights, task: Task) -> Weights:
        return interpolate(widened(kept or base), new, alpha=self.weight)
