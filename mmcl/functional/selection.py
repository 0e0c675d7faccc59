"""Which samples stand for many: exemplars by herding and k-means, and how a memory is divided."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def quotas(sizes: Sequence[int], budget: int) -> list[int]:
    """Divide a memory over groups in proportion to their sizes.

    Largest remainders; the first of equals comes first. No group gets more than it has.

    Args:
        sizes: samples of each group.
        budget: samples of the memory.

    Returns:
        A quota for each group; they sum to the smaller one of `budget` and all samples.

    Raises:
        ValueError: a size or the budget is negative.

    Example:
        >>> quotas([100, 50, 50], 10)
        [5, 3, 2]
    """
    if budget < 0 or any(size < 0 for size in sizes):
        raise ValueError(f"sizes {list(sizes)} and budget {budget} must be 0 or more")
    total = sum(sizes)
    if total <= budget:
        return list(sizes)
    found = [size * budget // total for size in sizes]
    rest = sorted(range(len(sizes)), key=lambda i: (-(sizes[i] * budget % total), i))
    for i in rest[: budget - sum(found)]:
        found[i] += 1
    return found


def equal_quotas(sizes: Sequence[int], budget: int) -> list[int]:
    """Divide a memory over groups evenly; what a small group leaves goes to the others.

    Args:
        sizes: samples of each group.
        budget: samples of the memory.

    Returns:
        A quota for each group; they sum to the smaller one of `budget` and all samples.

    Example:
        >>> equal_quotas([100, 2, 100], 10)
        [4, 2, 4]
    """
    if budget < 0 or any(size < 0 for size in sizes):
        raise ValueError(f"sizes {list(sizes)} and budget {budget} must be 0 or more")
    found = [0] * len(sizes)
    for place, i in enumerate(sorted(range(len(sizes)), key=lambda i: (sizes[i], i))):
        found[i] = min(sizes[i], (budget - sum(found)) // (len(sizes) - place))
    return found


def herding(features: Tensor, count: int) -> Tensor:
    """Rows whose running mean stays closest to the mean of all, one after another (Welling, 2009; iCaRL, 2017).

    Any beginning of the result is the herding of that size, so an older memory is made smaller by cutting it.

    Args:
        features: (N, D); rows are normalised first, as in iCaRL.
        count: rows to choose; all where there are fewer.

    Returns:
        (min(N, count),) row numbers, in the order of their choice.
    """
    rows = F.normalize(features.double(), dim=1)
    mean = rows.mean(0)
    chosen: list[int] = []
    total = torch.zeros_like(mean)
    free = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    for k in range(1, min(count, len(rows)) + 1):
        distance = (mean - (total + rows) / k).norm(dim=1).masked_fill(~free, torch.inf)
        best = int(distance.argmin())
        chosen.append(best)
        total += rows[best]
        free[best] = False
    return torch.tensor(chosen, dtype=torch.int64)


def k_means_exemplars(features: Tensor, count: int, generator: torch.Generator, rounds: int = 50) -> Tensor:
    """The row nearest to each centre of k-means, those of large clusters first.

    Centres start by k-means++ and move by Lloyd's rule until nothing changes, or `rounds` times.

    Args:
        features: (N, D); rows are normalised first.
        count: clusters and rows to choose; all rows where there are fewer.
        generator: draws the first centres; on the CPU.
        rounds: most rounds.

    Returns:
        (min(N, count),) distinct row numbers.
    """
    rows = F.normalize(features.double(), dim=1).cpu()
    count = min(count, len(rows))
    if count == len(rows):
        return torch.arange(count)
    centres, owner = _lloyd(rows, _first_centres(rows, count, generator), rounds)
    sizes = torch.bincount(owner, minlength=count)
    # Of rows that are as near, the first one: rounding, which other batches and processes change, must not choose.
    distance = torch.cdist(rows, centres).round(decimals=5)
    chosen = []
    for cluster in sorted(range(count), key=lambda c: (-int(sizes[c]), c)):
        best = int(distance[:, cluster].argmin())
        distance[best] = torch.inf  # a row stands for one cluster only
        chosen.append(best)
    return torch.tensor(chosen)


def k_means(features: Tensor, count: int, generator: torch.Generator, rounds: int = 50) -> Tensor:
    """Centres of k-means over rows as they are; it starts and moves like `k_means_exemplars`.

    Args:
        features: (N, D).
        count: of centres.
        generator: draws the first centres; on the CPU.
        rounds: most rounds.

    Returns:
        (count, D) float64, on the CPU; where there are fewer rows, the rows, the last one repeated.
    """
    rows = features.double().cpu()
    if len(rows) <= count:
        return torch.cat([rows, rows[-1:].expand(count - len(rows), -1)])
    return _lloyd(rows, _first_centres(rows, count, generator), rounds)[0]


def _lloyd(rows: Tensor, centres: Tensor, rounds: int) -> tuple[Tensor, Tensor]:
    """Centres at rest, and the number of each row's."""
    owner = torch.full((len(rows),), -1)
    for _ in range(rounds):
        nearest = torch.cdist(rows, centres).argmin(1)
        if torch.equal(nearest, owner):
            break
        owner = nearest
        sizes = torch.bincount(owner, minlength=len(centres))
        sums = torch.zeros_like(centres).index_add_(0, owner, rows)
        centres = torch.where(sizes[:, None] > 0, sums / sizes.clamp(min=1)[:, None], centres)
    return centres, owner


def _first_centres(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """k-means++ (Arthur and Vassilvitskii, 2007): the next centre is drawn by squared distance to the nearest one."""
    chosen = [int(torch.randint(len(rows), (1,), generator=generator))]
    nearest = torch.full((len(rows),), torch.inf, dtype=rows.dtype)
    while len(chosen) < count:
        nearest = torch.minimum(nearest, (rows - rows[chosen[-1]]).square().sum(1))
        nearest[chosen[-1]] = 0
        if not bool(nearest.sum() > 0):  # the rest are copies of what is there
            chosen.append(next(i for i in range(len(rows)) if i not in chosen))
            continue
        chosen.append(int(torch.multinomial(nearest, 1, generator=generator)))
    return rows[chosen].clone()
