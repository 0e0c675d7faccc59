"""The vectors that a language model's output embedding reads: one for each token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def last_states(network: nn.Module) -> Iterator[list[Tensor]]:
    """Catch the last hidden states (B, L, D) of the forward inside, without asking for those of all layers.

    Args:
        network: a language model of transformers.
    """
    model: Any = network
    caught: list[Tensor] = []
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda _, given: caught.append(given[0]))
    try:
        yield caught
    finally:
        handle.remove()
