"""Which precision the mathematics runs in: float32, or the inputs' wider type, whatever autocast says."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def wider_dtype(*tensors: Tensor) -> torch.dtype:
    """The widest dtype of `tensors`, at least float32."""
    return functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)


def widen(*tensors: Tensor) -> tuple[Tensor, ...]:
    """All tensors in `wider_dtype`; no copy where that is what they are."""
    dtype = wider_dtype(*tensors)
    return tuple(tensor.to(dtype) for tensor in tensors)


def no_autocast(tensor: Tensor) -> torch.autocast:
    """A context in which matrix products keep the precision of their inputs."""
    return torch.autocast(device_type=tensor.device.type, enabled=False)


def unit(features: Tensor) -> Tensor:
    """`features` (..., D) divided by their L2 norm over the last axis; zeros give what is not a number.

    In metrics, where that is never found. Losses take `torch.nn.functional.normalize`, which leaves zeros as they are.
    """
    length: Tensor = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
    return features / length
