"""Where an image classifier comes from: architecture and weights, both read by timm."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from mmcl.errors import ConfigError, near
from mmcl.modules import places
from mmcl.modules.places import line
from mmcl.modules.weight_files import difference, read_weights

FAULTS = (OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, AssertionError, ImportError)
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class ImageSource:
    """An architecture of timm, found; `build` makes backbones of it, without a head.

    Attributes:
        model: what the user wrote.
        name: what timm calls it.
        folder: of its configuration and weights, where it comes from one.
    """

    model: str
    name: str
    folder: Path | None = None

    def build(self, image_size: int | None = None, pretrained: bool = False) -> nn.Module:
        """A backbone that gives (B, D) features, in float32; random weights unless `pretrained`.

        Args:
            image_size: of the pictures, where it is not the model's own.
            pretrained: timm's weights, downloaded.

        Raises:
            ConfigError: timm cannot build it.
        """
        try:
            with torch.random.fork_rng(devices=[]):
                network: nn.Module = timm.create_model(self.name, pretrained=pretrained, num_classes=0)
                config: Any = network.pretrained_cfg
                if config.get("fixed_input_size") and image_size not in (None, config["input_size"][-1]):
                    network = timm.create_model(self.name, pretrained=pretrained, num_classes=0, img_size=image_size)
        except FAULTS as error:
            fetched = "; without a network give a `local-dir:` folder" if pretrained else ""
            raise ConfigError(f"model '{self.model}': timm cannot build it: {line(error)}{fetched}") from error
        return network.float()

    def create(
        self,
        pretrained: bool = False,
        checkpoint: str | None = None,
        random_init: bool = False,
        image_size: int | None = None,
    ) -> nn.Module:
        """The backbone with the weights that were asked for.

        Args:
            pretrained: timm's own, downloaded; a folder brings its weights.
            checkpoint: file of weights, in place of those.
            random_init: no weights at all.
            image_size: of the pictures, where it is not the model's own.

        Raises:
            ConfigError: the arguments contradict each other, or the weights are missing or of another architecture.
        """
        if sum((pretrained, checkpoint is not None, random_init)) > 1:
            raise ConfigError(f"model '{self.model}': give only one of `pretrained`, `checkpoint` and `random_init`")
        if pretrained and self.folder is not None:
            raise ConfigError(f"model '{self.model}': `pretrained` is for timm's own names; a folder has its weights")
        network = self.build(image_size, pretrained)
        file = Path(checkpoint).expanduser() if checkpoint else None
        if file is None and self.folder is not None and not random_init:
            file = next((self.folder / name for name in WEIGHTS if (self.folder / name).is_file()), None)
            if file is None:
                raise ConfigError(
                    f"model '{self.model}': no weights in {self.folder} (looked for {', '.join(WEIGHTS)}); give "
                    "`checkpoint` or `random_init: true`"
                )
        if file is not None:
            _fill(network, read_weights(file), file, self.model)
        elif not (pretrained or random_init):
            places.warn_random(self.model)
        return network


def find(model: str) -> ImageSource:
    """The source behind a model's name.

    Args:
        model: an architecture of timm, with or without a tag of weights (``mobilenetv2_100.ra_in1k``), or a folder of
            timm (``config.json`` and ``model.safetensors``): ``local-dir:PATH``, ``asset:NAME``,
            ``package:some.package/FOLDER``.

    Raises:
        ConfigError: nothing of that name.
    """
    folder = places.folder(model)
    if folder is not None:
        if not (folder / "config.json").is_file():
            raise ConfigError(f"model '{model}': {folder} has no config.json of timm")
        return ImageSource(model, f"local-dir:{folder}", folder)
    if model.startswith("hf-hub:") or timm.is_model(model):
        return ImageSource(model, model)
    hint = near(model, timm.list_models())
    raise ConfigError(f"model '{model}' is no architecture of timm; {hint} (a folder: local-dir:PATH)")


def _fill(network: nn.Module, weights: Mapping[str, Tensor], file: Path, model: str) -> None:
    """Fill a backbone out of a whole classifier's weights; every tensor but the head's must be there and fit."""
    config: Any = network.pretrained_cfg
    heads = tuple(f"{name}." for name in _listed(config.get("classifier")))
    inner = {name.removeprefix("backbone."): value for name, value in weights.items() if name.startswith("backbone.")}
    kept = {name: value for name, value in (inner or weights).items() if not name.startswith(heads)}
    expected = network.state_dict()
    found = difference(expected, kept)
    convert: Callable[..., Any] | None = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if found and convert is not None:  # other names, or position embeddings of another size
        try:
            kept = {n: v for n, v in convert(dict(kept), network).items() if not n.startswith(heads)}
        except FAULTS as error:
            raise ConfigError(f"checkpoint '{file}' is of another architecture than '{model}': {found}") from error
        found = difference(expected, kept)
    if found:
        raise ConfigError(f"checkpoint '{file}' is of another architecture than '{model}': {found}")
    network.load_state_dict(kept)


def _listed(names: Any) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names or ())
