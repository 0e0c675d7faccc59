"""Mean average precision of a gallery of which several items are right, as P9D's multi-modal retrieval measures it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from mmcl.errors import MmclError, near
from mmcl.metrics.retrieval import KS

Divisor = Literal["relevant", "found"]


def mean_average_precision(
    similarity: Tensor,
    query_labels: Tensor | Sequence[int],
    gallery_labels: Tensor | Sequence[int],
    *,
    ks: Sequence[int] = KS,
    divisor: Divisor = "relevant",
    own: Tensor | Sequence[int] | None = None,
) -> dict[int, float]:
    """mAP@k: the mean over queries of the precision at each rank that holds an item of the query's label.

    ``relevant`` sums over the first k ranks and divides by min(k, R), R the items of the query's label in the gallery.
    ``found`` is that of CTP's code (Zhu et al., ICCV 2023), which is larger: it looks at the first min(k, R) ranks and
    divides by what it found there. A query without an item of its label counts as 0. Equal scores are ordered by
    lowest index.

    Args:
        similarity: (Q, G).
        query_labels: (Q,) the category of each query.
        gallery_labels: (G,) the category of each item.
        ks: the k of mAP@k.
        divisor: ``relevant`` or ``found``.
        own: (Q,) the item that is the query itself and is left out, -1 for none.

    Returns:
        For each k a share, from 0 to 1.

    Raises:
        MmclError: shapes do not fit, there is no query, a k below 1, or an unknown divisor.

    >>> scores = torch.tensor([[0.9, 0.8, 0.7]])
    >>> mean_average_precision(scores, [1], [0, 1, 1], ks=(1, 2, 3))
    {1: 0.0, 2: 0.25, 3: 0.5833333333333333}
    """
    queries, items = (torch.as_tensor(x, device=similarity.device) for x in (query_labels, gallery_labels))
    if similarity.shape != (*queries.shape, *items.shape) or similarity.ndim != 2 or not len(queries):
        raise MmclError(
            f"mean_average_precision: similarity {tuple(similarity.shape)}, query labels {tuple(queries.shape)} and "
            f"gallery labels {tuple(items.shape)} do not fit together"
        )
    if not ks or min(ks) < 1 or divisor not in get_args(Divisor):
        raise MmclError(
            f"mean_average_precision: ks {list(ks)}, divisor '{divisor}'; {near(divisor, get_args(Divisor))}"
        )
    order = similarity.argsort(dim=1, descending=True, stable=True)
    right = (items == queries[:, None]).gather(1, order)
    if own is not None:
        left = order != torch.as_tensor(own, device=similarity.device)[:, None]
        right, place = right & left, left.double().cumsum(dim=1)
    else:
        left, place = torch.ones_like(right), torch.arange(1, len(items) + 1, device=similarity.device).double()
    precision = right.double().cumsum(dim=1) / place.clamp(min=1) * right
    relevant = right.sum(dim=1, keepdim=True)
    found = {}
    for k in ks:
        within = left & (place <= (relevant.clamp(max=k) if divisor == "found" else k))
        count = (right & within).sum(dim=1) if divisor == "found" else relevant[:, 0].clamp(max=k)
        found[k] = float(((precision * within).sum(dim=1) / count.clamp(min=1)).mean())
    return found
