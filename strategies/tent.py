"""TENT: entropy minimisation of the normalising layers' scales and shifts, while testing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import nn

from mmcl.batch_norm import affine_parameters
from mmcl.errors import ConfigError, near
from mmcl.functional.adaptation import softmax_entropy
from mmcl.outputs import Batch, Forward, Outputs
from mmcl.strategies._test_time import Reset, _Adapter, _Descent

PRESETS = {"cifar": _Descent("adam", 1e-3), "imagenet": _Descent("sgd", 2.5e-4, 0.9)}


class TENT(_Adapter):
    """Fully test-time adaptation by entropy minimisation (Wang et al., ICLR 2021).

    For each batch of a test: the answers p of a forward are given, and the scales and shifts of the normalising layers
    take a gradient step on the mean over the batch of H = -sum_c p_c log p_c. Batch norms go by the batch at hand.

    Args:
        preset: values of the published code: ``cifar`` (Adam, 1e-3), ``imagenet`` (SGD, 2.5e-4, momentum 0.9).
        optimizer: ``adam`` or ``sgd``, in place of the preset's.
        lr: in place of the preset's.
        momentum: of ``sgd``, in place of the preset's.
        steps: forwards and steps for each batch; the answer is that of the last forward. The paper's is 1.
        reset: when the trained weights come back: ``never`` (continual), at every evaluation ``set``, at every
            ``batch`` (the published code's `episodic`).

    Raises:
        ConfigError: an argument that cannot be, or a network without normalising layers.

    Differences from the published code: layer, group and RMS norms adapt too. Dropout stays off. The entropy is over
    the classes that the evaluation set chooses among. Padding counts neither in the loss nor in batch statistics, and
    both span all processes.
    """

    def __init__(
        self,
        preset: Literal["cifar", "imagenet"] = "cifar",
        optimizer: Literal["adam", "sgd"] | None = None,
        lr: float | None = None,
        momentum: float | None = None,
        steps: int = 1,
        reset: Reset = "never",
    ) -> None:
        if preset not in PRESETS:
            raise ConfigError(f"TENT: preset '{preset}' is unknown; {near(preset, PRESETS)}")
        if steps < 1:
            raise ConfigError(f"TENT: steps is {steps}; it must be 1 or more")
        super().__init__(PRESETS[preset].changed("TENT", optimizer=optimizer, lr=lr, momentum=momentum), reset)
        self.steps = steps

    def chosen(self, network: nn.Module) -> Mapping[str, nn.Parameter]:
        """Scales and shifts."""
        found = affine_parameters(network)
        if not found:
            raise ConfigError("TENT adapts normalising layers, and the network has none with scales and shifts")
        return found

    def adapt(self, next: Forward, batch: Batch) -> Outputs:
        for _ in range(self.steps):
            outputs = self.respond(next, batch)
            assert outputs.logits is not None
            self.descend(self.mean(softmax_entropy(outputs.logits), batch["valid"]))
        return outputs
