"""Biases alone."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from mmcl.errors import ConfigError
from mmcl.strategies._adapters import Selective
from mmcl.stream import Stream
from mmcl.weights import canonical

BIAS = re.compile(r"(.*[._])?(?<!logit_)bias")
"""Names of biases of layers: ``bias``, ``in_proj_bias``, ``q_bias``; SigLIP's ``logit_bias`` is one of the logits."""


class BitFit(Selective):
    """Train the biases and nothing else (Ben Zaken et al., ACL 2022).

    All vectors called ``bias`` that the module would train: of linear layers, convolutions, attention and norms. Beside
    them only the module's own head over the tasks' classes or symbols trains, and what `also` names. Nothing is
    attached, and nothing is merged.

    Args:
        also: weights that train too, as regular expressions on their whole names.

    Raises:
        ConfigError: the network has no biases that train, as most language models.

    Differences from the published code: FoMo-in-Flux takes every parameter with "bias" in its name, and so the bias of
    SigLIP's logits and tables of relative positions, which are no biases of layers.
    """

    def __init__(self, also: Sequence[str] = ()) -> None:
        super().__init__(also)

    def keeps(self, name: str, parameter: nn.Parameter) -> bool:
        return parameter.ndim == 1 and BIAS.fullmatch(name) is not None

    def setup(self, stream: Stream) -> None:
        super().setup(stream)
        if not any(p.requires_grad and self.keeps(canonical(n), p) for n, p in self.module.network.named_parameters()):
            raise ConfigError("BitFit: the network has no biases that the module trains; use LNFit or LoRA")
