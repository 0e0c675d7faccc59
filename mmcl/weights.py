"""Effective weights of a network under canonical names.

A parametrized weight (an adapter attached by `torch.nn.utils.parametrize`) is spoken of by the name that it has without
the parametrization and by the value that the network computes with, so that averages, anchors and snapshots need not
know of adapters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mmcl.errors import RunError
from mmcl.outputs import Weights


def canonical(name: str) -> str:
    """The name that a parameter has without a parametrization.

    >>> canonical("block.attn.parametrizations.in_proj_weight.original")
    'block.attn.in_proj_weight'
    """
    return name.replace("parametrizations.", "").removesuffix(".original")


def _entries(network: nn.Module) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    """(canonical name, owner, attribute, raw tensor) of every weight and persistent buffer."""
    for prefix, owner in network.named_modules():
        if ".parametrizations" in f".{prefix}":
            continue
        own = dict(owner.named_parameters(recurse=False))
        persistent = (n for n in owner._buffers if n not in owner._non_persistent_buffers_set)
        own.update({n: b for n in persistent if (b := owner._buffers[n]) is not None})
        if parametrize.is_parametrized(owner):
            own.update({n: p.original for n, p in owner.parametrizations.items()})
        for attribute, raw in own.items():
            yield f"{prefix}.{attribute}".lstrip("."), owner, attribute, raw


def _parametrized(owner: nn.Module, attribute: str) -> bool:
    return parametrize.is_parametrized(owner, attribute)


@torch.no_grad()
def read(network: nn.Module, copy: bool = False, dtype: torch.dtype | None = None) -> Weights:
    """Effective weights and persistent buffers.

    Args:
        network: any network.
        copy: False gives the live tensors (detached) where no parametrization is in the way.
        dtype: type of floating tensors; None keeps theirs.
    """
    found: Weights = {}
    for name, owner, attribute, raw in _entries(network):
        value = getattr(owner, attribute).detach() if _parametrized(owner, attribute) else raw.detach()
        if dtype is not None and value.is_floating_point() and value.dtype != dtype:
            value = value.to(dtype)
        elif copy:
            value = value.clone()
        found[name] = value
    return found


@torch.no_grad()
def write(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give the network effective weights; names that `weights` lacks keep their values.

    Raises:
        RunError: a name that the network lacks, or a shape that differs.
    """
    entries = {name: (owner, attribute, raw) for name, owner, attribute, raw in _entries(network)}
    targets: list[Tensor] = []
    values: list[Tensor] = []
    for name, value in weights.items():
        if name not in entries:
            raise RunError(f"weights: the network has no '{name}'; the weights are of another architecture")
        owner, attribute, raw = entries[name]
        if raw.shape != value.shape:
            raise RunError(f"weights: '{name}' is {tuple(value.shape)}, the network's is {tuple(raw.shape)}")
        value = value.to(raw.device, raw.dtype)
        if _parametrized(owner, attribute):
            value = value - (getattr(owner, attribute) - raw)
        targets.append(raw)
        values.append(value)
    floating = [i for i, t in enumerate(targets) if t.is_floating_point()]
    if floating:
        torch._foreach_copy_([targets[i] for i in floating], [values[i] for i in floating])
    for i in set(range(len(targets))) - set(floating):
        targets[i].copy_(values[i])


@torch.no_grad()
def grown(live_weights: Weights, older: Mapping[str, Tensor]) -> Weights:
    """Older weights in the shapes of today, in place.

    Growth appends rows: the leading part of each tensor is the older weight, the rest is the live value, as is what
    the older weights lack.

    Args:
        live_weights: a copy of the network's.
        older: in any floating type; the wider one is kept.
    """
    found = live_weights
    for name, live in found.items():
        old = older.get(name)
        if old is None:
            continue
        found[name] = live = live.to(torch.promote_types(live.dtype, old.dtype))
        leading(live, old.shape).copy_(old)
    return found


def leading(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """The part of a tensor that was there before it grew to its present shape: a view of its first rows."""
    return tensor[tuple(slice(0, size) for size in shape)]


@torch.no_grad()
def resize(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give a new network the number of rows that older weights have, wherever only that differs."""
    for name, owner, attribute, raw in list(_entries(network)):
        old = weights.get(name)
        if old is None or old.shape == raw.shape or old.dim() == 0 or old.shape[1:] != raw.shape[1:]:
            continue
        fresh = raw.new_empty(old.shape)
        setattr(owner, attribute, nn.Parameter(fresh) if isinstance(raw, nn.Parameter) else fresh)


@contextmanager
def exchanged(network: nn.Module, parameters: Mapping[str, Tensor]) -> Iterator[None]:
    """Raw parameters by name for a while, by exchanging memory: nothing is copied where the types agree.

    A forward inside sees the others; what was recorded for gradients before or inside must not be differentiated until
    the network has its own again.
    """
    own = {name: parameter for name, parameter in network.named_parameters() if name in parameters}
    kept = {name: parameter.data for name, parameter in own.items()}
    try:
        for name, parameter in own.items():
            parameter.data = parameters[name].to(parameter.dtype)
        yield
    finally:
        for name, parameter in own.items():
            parameter.data = kept[name]


@contextmanager
def swapped(network: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Other effective weights for a while; the raw ones come back bit for bit, whatever happens inside."""
    raw = {name: tensor for name, _, _, tensor in _entries(network) if name in weights}
    with torch.no_grad():
        kept = {name: tensor.clone() for name, tensor in raw.items()}
    try:
        write(network, weights)
        yield
    finally:
        with torch.no_grad():
            for name, tensor in kept.items():
                raw[name].copy_(tensor)
