"""Tiny vision transformers: one of timm for a classifier, towers of open_clip for CLIP."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tiny
import torch
from torch import Tensor

from mmcl.modules import CLIPModule, ImageClassifierModule


def classifier(
    folder: Path, names: Sequence[str], depth: int = 4, weights: Mapping[str, Tensor] | None = None, **vit: Any
) -> ImageClassifierModule:
    """A classifier in float64 on a transformer of width 8 with two heads, 16 pixels and patches of 8.

    Args:
        folder: for its configuration.
        names: of the classes.
        depth: blocks.
        weights: timm's names -> values, the head among them.
        vit: further arguments of timm's transformer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    size = {"img_size": 16, "patch_size": 8, "embed_dim": 8, "depth": depth, "num_heads": 2, "mlp_ratio": 2}
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": len(names),
        "model_args": size | vit,
        "pretrained_cfg": {"input_size": [3, 16, 16], "num_classes": len(names)},
    }
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    module = ImageClassifierModule(f"local-dir:{folder}", random_init=True, class_names=names, augment=None)
    module.double().eval()
    if weights is not None:
        own = {n if n.startswith("head.") else f"backbone.{n}": value for n, value in weights.items()}
        module.network.load_state_dict(own)
    return module


def clip(folder: Path, vision: Mapping[str, Any] | None = None) -> CLIPModule:
    """CLIP with two blocks in the image tower, `vision` changed in its configuration."""
    tiny.write_model(folder)
    file = folder / "open_clip_config.json"
    config = json.loads(file.read_text())
    given = {"layers": 2} if vision is None else dict(vision)
    own = {"image_size": tiny.SIZE} if "timm_model_name" in given else config["model_cfg"]["vision_cfg"]
    config["model_cfg"]["vision_cfg"] = {**own, **given}
    file.write_text(json.dumps(config))
    torch.manual_seed(0)
    module = CLIPModule(f"local-dir:{folder}", random_init=True, augment=None)
    return module.eval()
