"""Image-text retrieval over an evaluation set, both ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mmcl.errors import ConfigError, RunError
from mmcl.metrics.probes import Encode, Probe, ProbeResult
from mmcl.metrics.retrieval import retrieval_recall
from mmcl.outputs import Batch, Outputs
from mmcl.stream import EvalSet


class RetrievalProbe(Probe):
    """Recall@k of captions by images and of images by captions, over the whole set.

    Several captions of an image come as ``text`` (N, L) with ``text_rows`` (N,), the row in the batch that each belongs
    to. The sets are put in the order of ``__index__`` first, so that ranks and batches cannot change the result.

    Args:
        k: the ks; 1 is always among them.
        chunk: queries that are compared with the whole gallery at once.
        pair: names of the two features.
    """

    metric = "mean_recall@1"

    def __init__(
        self, k: Sequence[int] = (1, 5, 10), chunk: int = 1024, pair: tuple[str, str] = ("image", "text")
    ) -> None:
        if isinstance(k, int) or not k or min(k) < 1:
            raise ConfigError(f"retrieval: option k is {k}; it must be a list of numbers from 1")
        if chunk < 1:
            raise ConfigError(f"retrieval: option chunk is {chunk}; it must be 1 or more")
        self.ks = sorted({1, *k})
        self.chunk = chunk
        self.pair = pair
        self.protocol = f"{'-'.join(pair)} retrieval, mean of R@1 both ways (R@{', '.join(map(str, self.ks))} reported)"
        self._parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    @classmethod
    def of(cls, evalset: EvalSet, module: Any) -> RetrievalProbe:
        return cls(pair=module.pair, **evalset.options)

    def start(self, encode: Encode) -> None:
        """Forget the last pass."""
        self._parts = []

    def update(self, batch: Batch, outputs: Outputs) -> None:
        """Keep the features of the rows that are no padding.

        Raises:
            RunError: samples without captions or without an index.
        """
        for key in ("text", "__index__"):
            if key not in batch:
                raise RunError(f"retrieval: the samples of {self.where} have no '{key}'")
        images, texts = (outputs.features[name] for name in self.pair)
        index = torch.as_tensor(batch["__index__"], device=images.device)
        rows: Tensor = batch.get("text_rows", torch.arange(len(images), device=images.device))
        valid: Tensor = batch.get("valid", torch.ones(len(images), dtype=torch.bool, device=images.device))
        kept = valid[rows]
        self._parts.append((images[valid].float(), index[valid], texts[kept].float(), index[rows][kept]))

    def compute(self, sum_over_ranks: Callable[[Tensor], Tensor], gather: Callable[[Tensor], Tensor]) -> ProbeResult:
        """Recall at every k in both directions and their means.

        Raises:
            RunError: no samples, or one sample that came twice.
        """
        if not self._parts:
            raise RunError(f"retrieval: {self.where} has no samples")
        images, image_ids, texts, text_ids = (gather(torch.cat(part)) for part in zip(*self._parts, strict=True))
        self._parts = []
        image_ids, order = image_ids.sort(stable=True)
        if len(image_ids) == 0 or bool((image_ids[1:] == image_ids[:-1]).any()):
            raise RunError(f"retrieval: {self.where} has no samples, or one came twice")
        text_ids, text_order = text_ids.sort(stable=True)  # an image's captions lie on one rank, in their order
        owner = torch.searchsorted(image_ids, text_ids)
        found = retrieval_recall(images[order], texts[text_order], owner, ks=self.ks, chunk=self.chunk)
        scores = {
            name.replace("R@", "recall@").replace("R_mean", "mean_recall"): s for name, s in found.scores().items()
        }
        return ProbeResult(scores[self.metric], found.images + found.texts, scores)
