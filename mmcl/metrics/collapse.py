"""Whether answers have collapsed: how sure they are, and how often they are the same."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmcl.functional.adaptation import softmax_entropy


class Collapse:
    """Mean entropy of the answers, and the share of samples that get the most frequent one.

    A model that adapts without labels may end by giving one answer to everything, and be sure of it: the entropy is
    then 0 and the share 1. With labels in equal numbers a good share is one over the number of classes.
    """

    def __init__(self) -> None:
        self._entropy = torch.zeros((), dtype=torch.float64)
        self._answered = torch.zeros(0, dtype=torch.int64)

    def update(self, answers: Tensor, valid: Tensor) -> None:
        """Count (B, K) answers in the rows that are no padding."""
        rows = answers.detach()[valid]
        if self._answered.shape[0] != answers.shape[1]:
            self._answered = torch.zeros(answers.shape[1], dtype=torch.int64, device=answers.device)
        self._entropy = self._entropy.to(answers.device) + softmax_entropy(rows).double().sum()
        self._answered += torch.bincount(rows.argmax(dim=1), minlength=answers.shape[1])

    def compute(self, sum_over_ranks: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """``entropy`` in nats and ``top_answer_share``, over all ranks."""
        answered = sum_over_ranks(self._answered)
        count = max(int(answered.sum()), 1)
        return {
            "entropy": float(sum_over_ranks(self._entropy)) / count,
            "top_answer_share": int(answered.max()) / count,
        }
