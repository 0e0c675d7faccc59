"""A backbone of timm with a head that can grow, and its export as one model of timm."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mmcl import weights
from mmcl.errors import ConfigError
from mmcl.modules import image_heads
from mmcl.modules.image_heads import HeadKind, LinearHead
from mmcl.modules.places import line

STD = 0.01
"""Standard deviation of new rows of a head."""


class ImageNetwork(nn.Module):
    """Backbone and head.

    Args:
        backbone: pictures (B, 3, H, W) -> features (B, D); of timm, without its own head.
        classes: rows of the head, filled at random.
        kind: of the head.
        scale: of a cosine head.
        learned: whether a cosine head's scale is a parameter.
    """

    def __init__(
        self, backbone: nn.Module, classes: int, kind: HeadKind = "linear", scale: float = 1.0, learned: bool = True
    ) -> None:
        super().__init__()
        self.backbone = backbone
        size: Any = getattr(backbone, "head_hidden_size", None) or backbone.num_features
        self.head = image_heads.make(kind, int(size), scale, learned)
        self.extend(classes)

    @property
    def classes(self) -> int:
        """Rows of the head."""
        return self.head.out_features

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, D) and logits (B, classes)."""
        features: Tensor = self.backbone(image)
        return features, self.head(features)

    def extend(self, classes: int) -> None:
        """Append rows to the head, up to so many; those that are there keep their values.

        New rows are a function of the seed that the random state started from, and leave that state alone.
        """
        generator = torch.Generator().manual_seed(torch.initial_seed())
        self.head.append(torch.randn(classes - self.classes, self.head.in_features, generator=generator) * STD)

    def restart(self, classes: int) -> None:
        """A new head of so many rows."""
        self.head.clear()
        self.extend(classes)


def export(
    network: ImageNetwork, name: str, names: Sequence[str], data: Mapping[str, Any], fixed: bool, folder: Path
) -> None:
    """Write one model of timm: ``timm.create_model("local-dir:FOLDER", pretrained=True)`` gives equal logits.

    Args:
        network: with the evaluation weights.
        name: of the architecture, as timm was asked for it.
        names: of the classes, by column; there may be more than the head has rows yet.
        data: timm's data configuration of the pictures.
        fixed: the architecture is built for pictures of one size.
        folder: exists and is empty.

    Raises:
        ConfigError: the head is a cosine one or has no rows yet, or timm's own one of this architecture is no single
            linear layer.
    """
    if not isinstance(network.head, LinearHead):
        raise ConfigError("export: timm's models have no cosine head; --format safetensors has the weights")
    if not network.classes:
        raise ConfigError("export: the head has no classes before the first task; choose a later --ckpt_path")
    size = {"img_size": data["input_size"][-1]} if fixed else {}
    with torch.random.fork_rng(devices=[]):
        model: Any = timm.create_model(name, num_classes=network.classes, **size)
    head = model.pretrained_cfg.get("classifier")
    if not isinstance(head, str) or not isinstance(model.get_submodule(head), nn.Linear):
        raise ConfigError(f"export: timm's head of '{name}' is no linear layer; --format safetensors has the weights")
    found = weights.read(network)
    values = {key.removeprefix("backbone."): value for key, value in found.items() if key.startswith("backbone.")}
    values |= {f"{head}.{part}": found[f"head.{part}"] for part in ("weight", "bias")}
    values = {key: value.detach().cpu().contiguous().clone() for key, value in values.items()}
    try:
        model.load_state_dict(values)
    except RuntimeError as error:
        raise ConfigError(f"export: the weights are not those of timm's '{name}': {line(error)}") from error
    save_file(values, folder / "model.safetensors")
    described = {key: data[key] for key in ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")}
    kept = {key: model.pretrained_cfg[key] for key in ("first_conv", "classifier") if key in model.pretrained_cfg}
    arguments = {key: value for key, value in getattr(model, "_model_args", {}).items() if key != "num_classes"} | size
    classes = network.classes
    config = {
        "architecture": model.pretrained_cfg["architecture"],
        "num_classes": classes,
        "num_features": network.head.in_features,
        "pretrained_cfg": {**described, **kept, "fixed_input_size": fixed, "num_classes": classes},
        "label_names": list(names[:classes]),
        **({"model_args": arguments} if arguments else {}),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
