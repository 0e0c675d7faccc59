"""Picture preprocessing as open_clip, timm and torchvision define it, in less time and equal to the last bit."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from open_clip.transform import MaybeConvertMode
from PIL import Image
from torch import Tensor
from torchvision.transforms import Compose, Normalize, ToTensor

Picture = Image.Image | npt.NDArray[np.uint8]
"""As Pillow has it, or its pixels (H, W, 3)."""


class Preprocess:
    """A pipeline that ends in ``ToTensor`` and ``Normalize``, for pictures.

    The two last steps are done in place, in one piece of memory; a picture that has its final size is neither resized,
    cropped nor copied on the way.

    Args:
        pipeline: torchvision steps.
        keeps: (height, width) of the pictures that the steps before the last two leave as they are; None: they change
            pictures of any size.

    Raises:
        TypeError: the pipeline ends otherwise.
    """

    def __init__(self, pipeline: Compose, keeps: tuple[int, int] | None = None) -> None:
        *steps, to_tensor, normalize = pipeline.transforms
        if not isinstance(to_tensor, ToTensor) or not isinstance(normalize, Normalize):
            raise TypeError(f"{pipeline} does not end in ToTensor and Normalize")
        self._pipeline = pipeline
        self.steps = [step for step in steps if not isinstance(step, MaybeConvertMode)]
        self._keeps = None if keeps is None else (keeps[1], keeps[0])
        self._mean = torch.as_tensor(normalize.mean, dtype=torch.float32).view(3, 1, 1)
        self._std = torch.as_tensor(normalize.std, dtype=torch.float32).view(3, 1, 1)

    def __repr__(self) -> str:
        return repr(self._pipeline)

    def __call__(self, image: Picture) -> Tensor:
        """Picture -> (3, H, W) float32."""
        if isinstance(image, Image.Image) and image.mode != "RGB":
            image = image.convert("RGB")
        if (image.size if isinstance(image, Image.Image) else image.shape[1::-1]) != self._keeps:
            image = image if isinstance(image, Image.Image) else Image.fromarray(image)
            for step in self.steps:
                image = step(image)
        planes = np.array(np.asarray(image).transpose(2, 0, 1), order="C")
        return torch.from_numpy(planes).float().div_(255).sub_(self._mean).div_(self._std)
