"""Image-text retrieval: recall at k in both directions, with several captions per image, over the full gallery.

Image to text: share of images with at least one of their own captions among the k most similar captions. Text to image:
share of captions whose image is among the k most similar images. Equal scores are ordered by lowest index; a positive
counts only if it is before the others by that rule. A k above the gallery's size finds every query.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmcl.errors import MmclError
from mmcl.functional._precision import no_autocast, unit, widen
from mmcl.metrics.zero_shot import score_ranks

KS = (1, 5, 10)


@dataclass(frozen=True)
class RetrievalRecall:
    """Whole counts of found queries, and the shares made of them.

    Attributes:
        images: image queries.
        texts: text queries.
        image_to_text: by k, images that found one of their captions.
        text_to_image: by k, captions that found their image.
    """

    images: int
    texts: int
    image_to_text: dict[int, int]
    text_to_image: dict[int, int]

    def scores(self) -> dict[str, float]:
        """``image_to_text_R@k``, ``text_to_image_R@k``, their mean ``mean_R@k``, and ``R_mean`` over all of them."""
        result: dict[str, float] = {}
        for k in self.image_to_text:
            forth, back = self.image_to_text[k] / self.images, self.text_to_image[k] / self.texts
            result |= {f"image_to_text_R@{k}": forth, f"text_to_image_R@{k}": back, f"mean_R@{k}": (forth + back) / 2}
        means = [value for name, value in result.items() if name.startswith("mean_")]
        return {**result, "R_mean": sum(means) / len(means)}


def retrieval_recall(
    image_features: Tensor,
    text_features: Tensor,
    owner: Tensor | Sequence[int],
    *,
    ks: Sequence[int] = KS,
    chunk: int = 1024,
) -> RetrievalRecall:
    """Recall of (I, D) images and (T, D) texts, not normalised, by cosine.

    Args:
        image_features: (I, D) of the whole gallery.
        text_features: (T, D) of the whole gallery.
        owner: (T,) image of each caption; every image has at least one.
        ks: the k of R@k.
        chunk: queries at a time: memory is `chunk` x gallery.
    """
    if image_features.ndim != 2 or text_features.shape[1:] != image_features.shape[1:]:
        raise MmclError(
            f"retrieval: image features {tuple(image_features.shape)} and text features {tuple(text_features.shape)} "
            "do not match"
        )
    images, texts = (unit(features) for features in widen(image_features, text_features))
    with no_autocast(images):
        return _recall(
            lambda rows: images[rows] @ texts.T,
            lambda columns: texts[columns] @ images.T,
            (len(images), len(texts)),
            torch.as_tensor(owner, device=images.device),
            ks,
            chunk,
        )


def retrieval_recall_from_similarity(
    similarity: Tensor, owner: Tensor | Sequence[int], *, ks: Sequence[int] = KS, chunk: int = 1024
) -> RetrievalRecall:
    """Recall of a given (I, T) similarity matrix; see `retrieval_recall`."""
    if similarity.ndim != 2:
        raise MmclError(f"retrieval: similarity has shape {tuple(similarity.shape)}, expected (images, texts)")
    return _recall(
        lambda rows: similarity[rows],
        lambda columns: similarity[:, columns].T,
        (similarity.shape[0], similarity.shape[1]),
        torch.as_tensor(owner, device=similarity.device),
        ks,
        chunk,
    )


def _recall(
    image_rows: Callable[[slice], Tensor],
    text_rows: Callable[[slice], Tensor],
    size: tuple[int, int],
    owner: Tensor,
    ks: Sequence[int],
    chunk: int,
) -> RetrievalRecall:
    images, texts = size
    _check(images, texts, owner, ks, chunk)
    forth = torch.zeros(len(ks), dtype=torch.int64, device=owner.device)
    back = torch.zeros_like(forth)
    limits = torch.tensor(list(ks), device=owner.device)
    for begin in range(0, images, chunk):
        rows = slice(begin, min(begin + chunk, images))
        scores = image_rows(rows)
        own = owner == torch.arange(rows.start, rows.stop, device=owner.device)[:, None]
        forth += (score_ranks(scores, _best_own(scores, own))[:, None] < limits).sum(dim=0)
    for begin in range(0, texts, chunk):
        columns = slice(begin, min(begin + chunk, texts))
        back += (score_ranks(text_rows(columns), owner[columns])[:, None] < limits).sum(dim=0)
    found, found_back = (dict(zip(ks, counts.tolist(), strict=True)) for counts in (forth, back))
    return RetrievalRecall(images, texts, found, found_back)


def _best_own(scores: Tensor, own: Tensor) -> Tensor:
    """Index of each query's best own candidate: the first of the highest scores."""
    kept = scores.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).masked_fill(~own, -torch.inf)
    best = kept.max(dim=1, keepdim=True).values
    return ((kept == best) & own).int().argmax(dim=1)


def _check(images: int, texts: int, owner: Tensor, ks: Sequence[int], chunk: int) -> None:
    if owner.shape != (texts,) or owner.is_floating_point():
        raise MmclError(
            f"retrieval: owner has shape {tuple(owner.shape)}, expected the image of each of {texts} captions"
        )
    if not texts or not 0 <= int(owner.min()) <= int(owner.max()) < images:
        raise MmclError(f"retrieval: owner must name images 0..{images - 1}")
    bare = (torch.bincount(owner, minlength=images) == 0).nonzero()
    if len(bare):
        raise MmclError(f"retrieval: image {int(bare[0])} has no caption")
    if not ks or min(ks) < 1 or len(set(ks)) < len(ks) or chunk < 1:
        raise MmclError(f"retrieval: ks {list(ks)} must be different numbers from 1, and chunk {chunk} at least 1")
