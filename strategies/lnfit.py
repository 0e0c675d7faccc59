"""Norms alone."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from mmcl.errors import ConfigError
from mmcl.strategies._adapters import Selective
from mmcl.stream import Stream, Task


class LNFit(Selective):
    """Train the normalisation layers' weights and biases and nothing else (Frankle et al., ICLR 2021; LN tuning).

    A norm is a layer whose class is called one (``LayerNorm``, ``RMSNorm``, ``BatchNorm2d``, ``LlamaRMSNorm``) and
    whose own parameters are vectors. Beside them only the module's own head over the tasks' classes or symbols trains,
    and what `also` names. Nothing is attached, and nothing is merged.

    Args:
        also: weights that train too, as regular expressions on their whole names.

    Raises:
        ConfigError: the network has no norms that train.

    Differences from the published code: FoMo-in-Flux takes every parameter with "ln_" in its name, which misses the
    norms of timm and transformers.
    """

    def __init__(self, also: Sequence[str] = ()) -> None:
        super().__init__(also)
        self._norms: frozenset[int] = frozenset()

    def keeps(self, name: str, parameter: nn.Parameter) -> bool:
        return id(parameter) in self._norms

    def setup(self, stream: Stream) -> None:
        super().setup(stream)
        if not any(p.requires_grad for p in self._parameters_of_norms()):
            raise ConfigError("LNFit: the network has no norms that the module trains; use LoRA")

    def grow(self, task: Task) -> None:
        self._norms = frozenset(map(id, self._parameters_of_norms()))
        super().grow(task)

    def _parameters_of_norms(self) -> list[nn.Parameter]:
        layers = (m for m in self.module.network.modules() if "norm" in type(m).__name__.lower())
        return [p for layer in layers for p in layer.parameters(recurse=False) if p.ndim == 1]
