"""One decoded sample -> one row of a batch: open_clip's preprocessing, light augmentation, tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import Tensor
from torchvision.transforms import (
    ColorJitter,
    Compose,
    InterpolationMode,
    Normalize,
    RandomHorizontalFlip,
    RandomResizedCrop,
    ToTensor,
)

from mmcl.errors import ConfigError, RunError
from mmcl.modules.pixels import Preprocess

REMEMBERED_TEXTS = 8192


@dataclass(frozen=True)
class ImageAugment:
    """What training does to an image beside resizing; the defaults are open_clip's.

    Args:
        scale: part of the image's area that a random crop keeps.
        ratio: aspect ratio of the crop.
        hflip: mirror half of the images. Off by default: captions speak of left and right.
        color_jitter: strength of random brightness, contrast and saturation; 0 for none.
    """

    scale: tuple[float, float] = (0.9, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: bool = False
    color_jitter: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ConfigError(f"augment: scale {self.scale} must be a range within (0, 1]")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ConfigError(f"augment: ratio {self.ratio} must be a range of positive numbers")
        if not 0 <= self.color_jitter <= 1:
            raise ConfigError(f"augment: color_jitter {self.color_jitter} is outside [0, 1]")


class SampleTransform:
    """A light, picklable function for data workers: it holds the tokenizer and no weights.

    Args:
        preprocess: open_clip's preprocessing configuration.
        augment: the training transform; None trains on what evaluation sees.
        tokenizer: list of texts -> (n, L) ids.
    """

    def __init__(self, preprocess: Mapping[str, Any], augment: ImageAugment | None, tokenizer: Any) -> None:
        settings = PreprocessCfg(**preprocess)
        sides = (settings.size, settings.size) if isinstance(settings.size, int) else tuple(settings.size)
        self.plain = Preprocess(image_transform_v2(settings, is_train=False), keeps=sides)
        self.random = self.plain if augment is None else training_transform(settings, augment)
        self.tokenizer = tokenizer
        self._texts: dict[str, Tensor] = {}

    def __call__(self, sample: dict[str, Any], augment: bool) -> dict[str, Any]:
        """Image -> (3, H, W); a text -> (L,) ids; several texts -> (n, L), or a random one of them where `augment`.

        An image is a picture or its pixels. Random choices come from torch's global generator. What is neither image
        nor text passes.

        Raises:
            RunError: an empty text.
        """
        row = dict(sample)
        if "image" in row:
            row["image"] = (self.random if augment else self.plain)(row["image"])
        if "text" in row:
            texts = [row["text"]] if isinstance(row["text"], str) else list(row["text"])
            if not texts or not all(text.strip() for text in texts):
                raise RunError(f"sample '{sample.get('__key__', '?')}' has an empty caption; write one or leave it out")
            if isinstance(row["text"], str):
                row["text"] = self._tokens(texts[0])
            elif augment:
                row["text"] = self._tokens(texts[int(torch.randint(len(texts), ()))])
            else:
                row["text"] = torch.stack([self._tokens(text) for text in texts])
        return row

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Texts -> (n, L) ids."""
        tokens: Tensor = self.tokenizer(list(texts))
        return tokens.long()

    def _tokens(self, text: str) -> Tensor:
        if text not in self._texts:  # captions come back every epoch, and tokenizing costs as much as decoding
            if len(self._texts) >= REMEMBERED_TEXTS:
                self._texts.clear()
            self._texts[text] = self.tokenize([text])[0]
        return self._texts[text]


def training_transform(settings: PreprocessCfg, augment: ImageAugment) -> Preprocess:
    """RGB picture -> (3, H, W), cropped and changed at random."""
    mode = InterpolationMode.BILINEAR if settings.interpolation == "bilinear" else InterpolationMode.BICUBIC
    steps: list[Any] = [RandomResizedCrop(settings.size, scale=augment.scale, ratio=augment.ratio, interpolation=mode)]
    if augment.hflip:
        steps.append(RandomHorizontalFlip())
    if augment.color_jitter:
        steps.append(ColorJitter(augment.color_jitter, augment.color_jitter, augment.color_jitter))
    return Preprocess(Compose([*steps, ToTensor(), Normalize(settings.mean, settings.std)]))
