"""Batch norms that normalise by the batch at hand, in evaluation: over all processes, and without padding."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce  # differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from mmcl import distributed
from mmcl.errors import ConfigError

logger = logging.getLogger("mmcl")

NORMS: tuple[type[nn.Module], ...] = (_BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def batch_norms(network: nn.Module) -> list[tuple[str, _BatchNorm]]:
    """Name and layer of every batch norm.

    Raises:
        ConfigError: one without running statistics.
    """
    found = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, _BatchNorm)]
    for name, layer in found:
        if layer.running_mean is None or layer.running_var is None:
            raise ConfigError(f"batch norm '{name}' keeps no running statistics; its batch statistics are all it has")
    return found


def affine_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Scales and shifts of all normalising layers: batch, layer, group and RMS norms, and what builds on them."""
    return {
        f"{prefix}.{name}".lstrip("."): parameter
        for prefix, layer in network.named_modules()
        if isinstance(layer, NORMS)
        for name, parameter in layer.named_parameters(recurse=False)
    }


@contextmanager
def batch_statistics(network: nn.Module, valid: Tensor, prior: float = 0.0) -> Iterator[None]:
    """Inside, batch norms in evaluation mode normalise by the mean and variance of what they are given.

    Gradients flow through both. Running statistics neither change nor count, but for `prior`, and where a layer sees a
    single value a channel: one sample has no variance.

    Args:
        network: its batch norms are in evaluation mode.
        valid: (B,) rows of the batch that count. A layer that sees several rows for each of them takes them as
            neighbours.
        prior: N, samples that the running statistics stand for: both moments are N / (N + n) x running + n / (N + n) x
            batch for n valid rows over all processes (Schneider et al., NeurIPS 2020). 0: the batch alone.
    """
    layers = batch_norms(network)
    with ExitStack() as stack:
        if layers:
            count = float(distributed.total(valid.sum().float()))
            for name, layer in layers:
                stack.enter_context(_by_batch(_Norm(name, layer, valid, count, prior / (prior + count))))
        yield


@dataclass(frozen=True)
class _Norm:
    """A batch norm and the batch that it is to go by; `share` is the weight of its running statistics."""

    name: str
    layer: _BatchNorm
    valid: Tensor
    count: float
    share: float


@contextmanager
def _by_batch(norm: _Norm) -> Iterator[None]:
    """The input is normalised before the layer, whose own statistics are those of normalised values meanwhile."""
    layer = norm.layer
    mean, var = layer.running_mean, layer.running_var
    assert mean is not None and var is not None
    handle = layer.register_forward_pre_hook(lambda _, inputs: (_normalised(norm, mean, var, inputs[0]),))
    layer.running_mean, layer.running_var = torch.zeros_like(mean), torch.full_like(var, 1.0 - layer.eps)
    try:
        yield
    finally:
        handle.remove()
        layer.running_mean, layer.running_var = mean, var


def _normalised(norm: _Norm, running_mean: Tensor, running_var: Tensor, given: Tensor) -> Tensor:
    x = given.float() if given.dtype in (torch.float16, torch.bfloat16) else given
    copies = len(x) // max(len(norm.valid), 1)
    weight = norm.valid.repeat_interleave(copies).to(x.dtype).reshape(-1, *[1] * (x.dim() - 1))
    values = norm.count * copies * (x[0, 0].numel() if x.dim() > 2 else 1)
    share = norm.share
    if values < 2:
        share = 1.0
        _warn_of_one()
    axes = [axis for axis in range(x.dim()) if axis != 1]
    shape = (1, -1, *[1] * (x.dim() - 2))
    mean = _total((x * weight).sum(dim=axes)) / values
    var = _total(((x - mean.reshape(shape)).square() * weight).sum(dim=axes)) / values
    if share:
        mean = share * running_mean + (1 - share) * mean
        var = share * running_var + (1 - share) * var
    found = (x - mean.reshape(shape)) * torch.rsqrt(var + norm.layer.eps).reshape(shape)
    return found.to(given.dtype)


@cache
def _warn_of_one() -> None:
    logger.warning(
        "a batch of a single sample gives batch norms one value a channel, which has no variance: they go by their "
        "running statistics there; another data.eval_batch_size makes no such batch"
    )


def _total(tensor: Tensor) -> Tensor:
    """Sum over processes; gradients flow back to all of them."""
    if distributed.world_size() == 1:
        return tensor
    summed: Tensor = all_reduce(tensor)  # type: ignore[no-untyped-call]
    return summed
