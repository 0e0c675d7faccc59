"""Samples to one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmcl.errors import RunError


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stack samples into a batch.

    Tensors and arrays are stacked, whole numbers become a LongTensor, other numbers a float tensor, anything else a
    list. Where a sample's ``text`` is (n, L), several captions of one image, the batch's is (sum of n, L) and
    ``text_rows`` says for each caption the row of its image.

    Args:
        samples: dictionaries with the same keys.

    Raises:
        RunError: samples of different keys or of shapes that do not stack; names the sample.
    """
    keys = samples[0].keys()
    for sample in samples:
        if sample.keys() != keys:
            lacking = ", ".join(sorted(keys ^ sample.keys()))
            raise RunError(
                f"samples '{samples[0]['__key__']}' and '{sample['__key__']}' share a batch, but one lacks {lacking}; "
                "the sources of a batch need the same fields"
            )
    batch: dict[str, Any] = {}
    for key in keys:
        values = [sample[key] for sample in samples]
        if key == "text" and any(isinstance(v, Tensor) and v.dim() == 2 for v in values):
            texts = [v if v.dim() == 2 else v[None] for v in values]
            batch["text"] = torch.cat(texts)
            batch["text_rows"] = torch.arange(len(texts)).repeat_interleave(torch.tensor([len(t) for t in texts]))
        else:
            batch[key] = _stack(key, values, samples)
    return batch


def _stack(key: str, values: list[Any], samples: Sequence[dict[str, Any]]) -> Any:
    first = values[0]
    if isinstance(first, np.ndarray):
        values = [torch.from_numpy(np.ascontiguousarray(v)) for v in values]
        first = values[0]
    if isinstance(first, Tensor):
        for value, sample in zip(values, samples, strict=True):
            if not isinstance(value, Tensor) or value.shape != first.shape:
                shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise RunError(
                    f"'{key}' of sample '{sample['__key__']}' is {shape}, but {tuple(first.shape)} in sample "
                    f"'{samples[0]['__key__']}' of the same batch; the transform must give equal shapes"
                )
        return torch.stack(values)
    if isinstance(first, (bool, np.bool_)):
        return torch.tensor(values)
    if isinstance(first, (int, np.integer)):
        return torch.tensor(values, dtype=torch.long)
    if isinstance(first, (float, np.floating)):
        return torch.tensor(values, dtype=torch.float32)
    return values
