"""SimpleCIL is the nearest class mean of a frozen network."""

from __future__ import annotations

from collections.abc import Sequence

from mmcl.strategies.nearest_mean import NearestMean
from mmcl.strategy import Strategy


class SimpleCIL(Strategy):
    """Class means of a frozen network as a cosine classifier (Zhou et al., IJCV 2024).

    The name under which the literature knows `NearestMean` at its defaults; it is nothing else.

    Args:
        feature: name among the module's features.

    Differences from the published code: those of `NearestMean`.
    """

    def __init__(self, feature: str = "image") -> None:
        super().__init__()
        self._parts = (NearestMean(feature),)

    def parts(self) -> Sequence[Strategy]:
        return self._parts
