"""How sources share a training batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

_ROUNDING = 1e-9
"""0.29 * 100 is 28.999999999999996: a product this close below an integer is that integer."""


def mixture_counts(batch_size: int, shares: Sequence[float]) -> list[int]:
    """Split a batch over pools: ``floor(batch_size * share)`` each, the remainder one by one in the pools' order.

    The rule of FoMo-in-Flux (Roth et al., NeurIPS 2024). A pool with share 0 receives nothing.

    Args:
        batch_size: samples to split.
        shares: share of each pool, in the order in which the remainder is given; they sum to 1.

    Returns:
        Samples of each pool; they sum to `batch_size`.

    Raises:
        ValueError: `batch_size` or a share is negative, or the shares do not sum to 1.

    Example:
        >>> mixture_counts(512, [0.33, 0.34, 0.33])
        [169, 175, 168]
    """
    if batch_size < 0:
        raise ValueError(f"batch_size {batch_size} is negative")
    if any(share < 0 for share in shares):
        raise ValueError(f"a share is negative: {list(shares)}")
    if abs(math.fsum(shares) - 1.0) > 1e-6:
        raise ValueError(f"shares {list(shares)} sum to {math.fsum(shares):g}; they must sum to 1")
    counts = [math.floor(batch_size * share + _ROUNDING) for share in shares]
    takers = [i for i, share in enumerate(shares) if share > 0]
    remainder = batch_size - sum(counts)
    for i in range(remainder):
        counts[takers[i % len(takers)]] += 1
    return counts
