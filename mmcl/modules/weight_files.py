"""Files of weights: safetensors, torch's format without code, mmcl's snapshots and checkpoints."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mmcl.errors import ConfigError

PREFIXES = ("module.network.", "network.", "module.")
"""Where the network lies in a checkpoint of mmcl, of a module trained alone, of DDP."""


def read_weights(file: Path) -> dict[str, Tensor]:
    """The network's tensors in a safetensors file or a torch file (read with ``weights_only=True``), in float32.

    Raises:
        ConfigError: there is no such file, or it holds no weights.
    """
    if not file.is_file():
        raise ConfigError(f"checkpoint '{file}': there is no such file")
    try:
        if file.suffix == ".safetensors":
            content: Any = load_file(file)
        else:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, pickle.UnpicklingError, SafetensorError, EOFError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise ConfigError(f"checkpoint '{file}' cannot be read: {reason}") from error
    for key in ("state_dict", "network"):  # of Lightning and others; of mmcl's checkpoints
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
    for prefix in PREFIXES:
        inner = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        if inner:
            tensors = inner
            break
    if not tensors:
        raise ConfigError(f"checkpoint '{file}' holds no weights")
    return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}


def fill(network: nn.Module, weights: Mapping[str, Tensor], file: Path, model: str, spare: str | None = None) -> None:
    """Fill a network; every tensor must be there and fit. Tied weights may be named once.

    Args:
        network: receives the weights.
        weights: by name.
        file: for messages.
        model: the architecture's name, for messages.
        spare: end of the names of weights that the network is not called with; the file may lack them.

    Raises:
        ConfigError: the weights are of another architecture; names the first tensor that differs.
    """
    expected = network.state_dict()
    shared = {tensor.data_ptr(): weights[name] for name, tensor in expected.items() if name in weights}
    whole = dict(weights)
    for name, tensor in expected.items():
        if name not in whole and tensor.data_ptr() in shared:
            whole[name] = shared[tensor.data_ptr()]
        elif name not in whole and spare is not None and name.endswith(spare):
            whole[name] = tensor
    found = difference(expected, whole)
    if found:
        raise ConfigError(f"checkpoint '{file}' is of another architecture than '{model}': {found}")
    network.load_state_dict(whole)


def difference(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str | None:
    """The first tensor in which weights differ from what a network expects; None where they fit."""
    for name, tensor in expected.items():
        if name in weights and weights[name].shape != tensor.shape:
            return f"'{name}' is {tuple(weights[name].shape)} in the file and {tuple(tensor.shape)} in the model"
    for name, tensor in expected.items():
        if name not in weights:
            return f"'{name}' is missing in the file and {tuple(tensor.shape)} in the model"
    for name, tensor in weights.items():
        if name not in expected:
            return f"'{name}' is {tuple(tensor.shape)} in the file and missing in the model"
    return None
