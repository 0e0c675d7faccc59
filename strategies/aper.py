"""APER: adapt to the first task, then class means of old and new features."""

from __future__ import annotations

from collections.abc import Sequence

from mmcl.strategies.nearest_mean import NearestMean
from mmcl.strategy import Strategy


class APER(Strategy):
    """Adapt and merge (ADAM, later APER; Zhou et al., IJCV 2024): one adaptation, two networks, class means.

    The first task trains the network, or an adapter on it. From then on everything is frozen, and a class is the mean
    of [f_0(x), f(x)], the features of the pretrained and of the adapted network; logit_c = cos([f_0(x), f(x)], mu_c).

    Args:
        adapter: the strategy that is trained in the first task alone (low-rank weights, prompts); its later tasks train
            nothing. None tunes what the module's `trainable` says.
        feature: name among the module's features.

    Raises:
        ConfigError: the run's start-up refuses an adapter that brings something new for each task, which would change
            f(x) after the first one.

    Differences from the published code: the backbone's rate, schedule and batches are the module's and the task's; the
    classifier that trains the first task is the module's own head. A class that comes again is the mean over all its
    samples.
    """

    def __init__(self, adapter: Strategy | None = None, feature: str = "image") -> None:
        super().__init__()
        means = NearestMean(feature, trains="first", with_initial=True)
        self._parts = (means,) if adapter is None else (adapter, means)

    def parts(self) -> Sequence[Strategy]:
        return self._parts
