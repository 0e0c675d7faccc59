"""CLIP weights in open_clip's naming, or one that open_clip converts."""

from __future__ import annotations

from pathlib import Path

import open_clip
from open_clip.convert import convert_state_dict
from torch import Tensor, nn

from mmcl.errors import ConfigError
from mmcl.modules.weight_files import difference

NO_WEIGHTS = (
    "input_resolution",
    "context_length",
    "vocab_size",
    "attn_mask",
    "text.transformer.embeddings.position_ids",
)


def load_weights(network: nn.Module, weights: dict[str, Tensor], file: Path, model: str) -> None:
    """Fill a network; every tensor must be there and fit.

    Args:
        network: receives the weights.
        weights: by name, in open_clip's naming or one that open_clip converts.
        file: for messages.
        model: the architecture's name, for messages.

    Raises:
        ConfigError: the weights are of another architecture; names the first tensor that differs.
    """
    weights = {k: v for k, v in convert_state_dict(network, weights).items() if k not in NO_WEIGHTS}
    if "positional_embedding" in weights and not hasattr(network, "positional_embedding"):
        weights = open_clip.model.convert_to_custom_text_state_dict(weights)
    expected = network.state_dict()
    for name in ("logit_scale", "logit_bias"):  # a scalar or one element, by the age of the file
        if name in weights and name in expected and weights[name].numel() == expected[name].numel():
            weights[name] = weights[name].reshape(expected[name].shape)
    found = difference(expected, weights)
    if found:
        raise ConfigError(f"checkpoint '{file}' is of another architecture than '{model}': {found}")
    network.load_state_dict(weights)
