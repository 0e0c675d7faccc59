"""Samples to one batch: what every module does unless it brings its own `collate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmcl.errors import RunError


def collate(samples: Sequence[dict[str, Any]], paddings: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Stack samples into a batch.

    Tensors and arrays are stacked, whole numbers become a LongTensor, other numbers a float tensor, anything else a
    list. Where a sample's ``text`` is (n, L), several captions of one image, the batch's is (sum of n, L) and
    ``text_rows`` says for each caption the row of its image.

    Args:
        samples: dictionaries with the same keys.
        paddings: keys whose tensors may differ in length (their first dimension), and what fills the shorter ones up
            at their end. The lengths come beside them under the key with ``_lengths`` (B,).

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
        if key in (paddings or {}):
            batch[key], batch[f"{key}_lengths"] = _pad(key, values, samples, (paddings or {})[key])
        elif key == "text" and any(isinstance(v, Tensor) and v.dim() == 2 for v in values):
            texts = [v if v.dim() == 2 else v[None] for v in values]
            batch["text"] = torch.cat(texts)
            batch["text_rows"] = torch.arange(len(texts)).repeat_interleave(torch.tensor([len(t) for t in texts]))
        else:
            batch[key] = _stack(key, values, samples)
    return batch


def _pad(key: str, values: list[Any], samples: Sequence[dict[str, Any]], filling: float) -> tuple[Tensor, Tensor]:
    tensors = [torch.as_tensor(v) for v in values]
    lengths = torch.tensor([len(t) for t in tensors])
    rest = tensors[0].shape[1:]
    padded = tensors[0].new_full((len(tensors), int(lengths.max()), *rest), filling)
    for row, tensor, sample in zip(padded, tensors, samples, strict=True):
        if tensor.shape[1:] != rest:
            raise RunError(
                f"'{key}' of sample '{sample['__key__']}' is {tuple(tensor.shape)}, but {tuple(tensors[0].shape)} in "
                f"sample '{samples[0]['__key__']}'; only lengths may differ"
            )
        row[: len(tensor)] = tensor
    return padded, lengths


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
