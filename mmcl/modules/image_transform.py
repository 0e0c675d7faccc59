"""One decoded picture -> one row of a classifier's batch: timm's preprocessing, light augmentation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from open_clip.transform import PreprocessCfg
from timm.data import create_transform
from torch import Tensor

from mmcl.errors import ConfigError
from mmcl.modules.clip_transform import ImageAugment, training_transform
from mmcl.modules.pixels import Picture, Preprocess


class ImageTransform:
    """A light, picklable function for data workers.

    Args:
        config: timm's data configuration of the model (``input_size``, ``mean``, ``std``, ``interpolation``,
            ``crop_pct``, ``crop_mode``).
        size: side of the pictures that the network sees, in pixels; None takes the model's own.
        crop: part of the resized picture's side that evaluation keeps; None takes the model's own.
        augment: the training transform; None trains on what evaluation sees.

    Raises:
        ConfigError: a size or crop that cannot be, or a model that takes no RGB pictures.
    """

    def __init__(
        self, config: Mapping[str, Any], size: int | None, crop: float | None, augment: ImageAugment | None
    ) -> None:
        channels, *own = config["input_size"]
        if channels != 3:
            raise ConfigError(f"ImageClassifierModule: the model takes {channels} channels; only RGB models are served")
        if size is not None and size < 1:
            raise ConfigError(f"ImageClassifierModule: image_size is {size}; it must be 1 or more pixels")
        if crop is not None and not 0 < crop <= 1:
            raise ConfigError(f"ImageClassifierModule: crop is {crop}; it must be within (0, 1]")
        height, width = own if size is None else (size, size)
        self.config = {
            "input_size": (3, height, width),
            "crop_pct": config["crop_pct"] if crop is None else crop,
            **{key: config[key] for key in ("mean", "std", "interpolation", "crop_mode")},
        }
        keeps = (height, width) if self.config["crop_pct"] == 1 else None
        self.plain = Preprocess(create_transform(**self.config), keeps)
        settings = PreprocessCfg(
            size=(height, width), mean=config["mean"], std=config["std"], interpolation=config["interpolation"]
        )
        self.random = self.plain if augment is None else training_transform(settings, augment)

    def __call__(self, image: Picture, augment: bool) -> Tensor:
        """Picture -> (3, H, W) float32. Random choices come from torch's global generator."""
        return (self.random if augment else self.plain)(image)
