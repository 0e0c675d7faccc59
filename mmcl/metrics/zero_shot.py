"""Zero-shot classification as CLIP defines it: a classifier of class texts, and counts that add up over batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmcl.errors import MmclError
from mmcl.functional._precision import no_autocast, unit, widen

TOP_K = 5


def zero_shot_classifier(text_features: Tensor, *, class_index: Tensor | Sequence[int] | None = None) -> Tensor:
    """Class weights by template ensembling (Radford et al., 2021): normalise each text, average per class, normalise.

    Args:
        text_features: (C, K, D) features of K templates per class, or (N, D) of all texts in any order; not normalised.
        class_index: (N,) the class 0..C-1 of each text, for the second form.

    Returns:
        (C, D) rows of length 1, in float32 or the input's wider type.

    Raises:
        MmclError: a class without a text, or shapes that do not fit.
    """
    features = unit(*widen(text_features))
    if class_index is None:
        if features.ndim != 3 or 0 in features.shape:
            raise MmclError(
                f"text features have shape {tuple(features.shape)}: give (classes, templates, D), or (N, D) and the "
                "class of each text"
            )
        return unit(features.mean(dim=1))
    index = torch.as_tensor(class_index, device=features.device)
    if features.ndim != 2 or index.shape != features.shape[:1] or not len(index) or index.is_floating_point():
        raise MmclError(
            f"text features {tuple(features.shape)} and class index {tuple(index.shape)} do not match: give one whole "
            "number per text"
        )
    counts = _class_counts(index)
    ordered = features[torch.argsort(index, stable=True)]
    return unit(torch.stack([texts.mean(dim=0) for texts in torch.split(ordered, counts)]))


def zero_shot_logits(image_features: Tensor, classifier: Tensor, *, scale: float = 100.0) -> Tensor:
    """`scale` x cosine of images and classes: (B, D) features, not normalised, and (C, D) weights give (B, C).

    The factor is CLIP's fixed 100, not the learned one: it changes probabilities, never an order.
    """
    images, weights = widen(image_features, classifier)
    with no_autocast(images):
        return scale * (unit(images) @ weights.T)


def score_ranks(scores: Tensor, positive: Tensor) -> Tensor:
    """How many candidates come before the positive one: by score, equal scores by lowest index.

    Args:
        scores: (Q, G) scores of Q queries against G candidates.
        positive: (Q,) index of each query's positive.

    Returns:
        (Q,) int64, 0 for the first place. A score that is not a number never comes before one that is; a positive
        without a number has rank 2^62: it is never found.
    """
    own = scores.gather(1, positive[:, None])
    position = torch.arange(scores.shape[1], device=scores.device)
    before = (scores > own) | ((scores == own) & (position < positive[:, None]))
    return before.sum(dim=1).masked_fill(own[:, 0].isnan(), 2**62)


@dataclass(frozen=True)
class ClassificationCounts:
    """Whole numbers that add up over batches and ranks, so that the result does not depend on how data were cut.

    Attributes:
        table: (C, 3) int64: per class the samples whose label is first, among the first five, and all samples. A sum
            over ranks of this tensor is the whole synchronization.
    """

    table: Tensor

    @classmethod
    def empty(cls, classes: int, device: torch.device | str | None = None) -> ClassificationCounts:
        """Counts of no sample over `classes` classes."""
        return cls(torch.zeros(classes, 3, dtype=torch.int64, device=device))

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor, *, valid: Tensor | None = None) -> ClassificationCounts:
        """Counts of one batch: (B, C) logits, (B,) labels, (B,) booleans that are false for padding."""
        if logits.ndim != 2 or labels.shape != logits.shape[:1]:
            raise MmclError(f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} do not match")
        if valid is not None:
            logits, labels = logits[valid], labels[valid]
        classes = logits.shape[1]
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise MmclError(f"labels {int(labels.min())}..{int(labels.max())} do not fit {classes} class names")
        ranks = score_ranks(logits, labels)
        columns = [
            torch.bincount(labels[chosen], minlength=classes)
            for chosen in (ranks < 1, ranks < TOP_K, torch.ones_like(ranks, dtype=torch.bool))
        ]
        return cls(torch.stack(columns, dim=1))

    def __add__(self, other: ClassificationCounts) -> ClassificationCounts:
        return ClassificationCounts(self.table + other.table)

    @property
    def correct1(self) -> int:
        """Samples whose label has the highest score."""
        return int(self.table[:, 0].sum())

    @property
    def correct5(self) -> int:
        """Samples whose label is among the five highest scores (all of them with five classes or fewer)."""
        return int(self.table[:, 1].sum())

    @property
    def total(self) -> int:
        """Samples."""
        return int(self.table[:, 2].sum())

    @property
    def top1(self) -> float | None:
        """Share of samples whose label is first; ``None`` without samples."""
        return self.correct1 / self.total if self.total else None

    @property
    def top5(self) -> float | None:
        """Share of samples whose label is among the first five; ``None`` without samples."""
        return self.correct5 / self.total if self.total else None

    @property
    def mean_per_class_recall(self) -> float | None:
        """Mean over the classes present of the share of their samples that is right; ``None`` without samples."""
        present = self.table[self.table[:, 2] > 0].double()
        return float((present[:, 0] / present[:, 2]).mean()) if len(present) else None


def _class_counts(index: Tensor) -> list[int]:
    if int(index.min()) < 0:
        raise MmclError("class index holds a negative number")
    counts: list[int] = torch.bincount(index.long()).tolist()
    if 0 in counts:
        raise MmclError(f"class {counts.index(0)} has no text; every class needs at least one template")
    return counts
