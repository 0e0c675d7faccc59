"""Samples to one batch: what every module does unless it brings its own `collate`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from mmcl.errors import RunError
from mmcl.outputs import draws_to_augment

_WHOLE = (bool, np.bool_, int, np.integer)
_NUMBERS: tuple[tuple[tuple[type, ...], torch.dtype], ...] = (
    ((bool, np.bool_), torch.bool),
    (_WHOLE, torch.long),
    ((*_WHOLE, float, np.floating), torch.float32),
)
"""Kinds of numbers, the narrowest first, and what a batch of them is."""
_PLACE = "_mmcl_place"
"""Attribute of a row's tensor: the block of its batch, and its number there."""


class BatchMemory:
    """Where the pictures of one batch are put as they come, so that stacking them is free.

    Rows that wait for their batch to be full would each take fresh memory, and be copied when they are long out of the
    processor's caches: for pictures of 224 pixels that costs as much as decoding them. In a worker of a DataLoader the
    memory is shared with the process that trains, which needs no copy either.

    Args:
        rows: of the batch.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._blocks: dict[str, tuple[Tensor, torch.Size, torch.dtype]] = {}

    def put(self, row: int, sample: dict[str, Any]) -> None:
        """Move a sample's pictures, tensors (C, H, W) on the CPU, to their row; the rest stays as it is."""
        for key, value in sample.items():
            if isinstance(value, Tensor) and value.dim() == 3 and value.is_cpu and value.numel():
                if key not in self._blocks:
                    block = _empty((self._rows, *value.shape), value.dtype)
                    self._blocks[key] = (block, value.shape, value.dtype)
                block, shape, dtype = self._blocks[key]
                if shape == value.shape and dtype == value.dtype:
                    sample[key] = place = block[row].copy_(value)
                    setattr(place, _PLACE, (block, row))


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if get_worker_info() is None:
        return torch.empty(shape, dtype=dtype)
    # As torch's own `default_collate` does: what is not shared yet is copied when it is sent.
    size = math.prod(shape) * dtype.itemsize
    shared = torch.UntypedStorage._new_shared(size, device="cpu")  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=dtype).set_(shared).view(shape)


@draws_to_augment
def collate(samples: Sequence[dict[str, Any]], paddings: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Stack samples into a batch.

    Tensors and arrays are stacked, whole numbers become a LongTensor, numbers of which some are not whole a float
    tensor, anything else a list. Where a sample's ``text`` is (n, L), several captions of one image, the batch's is
    (sum of n, L) and ``text_rows`` says for each caption the row of its image.

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
        return torch.stack(values) if (together := _together(values)) is None else together
    for kinds, dtype in _NUMBERS:
        if all(isinstance(value, kinds) for value in values):
            return torch.tensor(values, dtype=dtype)
    return values


def _together(rows: Sequence[Tensor]) -> Tensor | None:
    """The block of a `BatchMemory` that these rows fill in their order; None where they do not."""
    places = [getattr(row, _PLACE, None) for row in rows]
    if places[0] is None or len(block := places[0][0]) != len(rows):
        return None
    filled: bool = all(place is not None and place[0] is block and place[1] == i for i, place in enumerate(places))
    return block if filled else None
