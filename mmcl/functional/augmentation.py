"""Random views of pictures as tensor operations, for test-time adaptation."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torchvision.transforms.functional as V
from torch import Tensor
from torchvision.transforms import InterpolationMode

DEGREES, SHIFT, SCALE = (-15.0, 15.0), 1 / 16, (0.9, 1.1)
COLOURS: list[tuple[Callable[[Tensor, float], Tensor], float, float]] = [
    (V.adjust_brightness, 0.6, 1.4),
    (V.adjust_contrast, 0.7, 1.3),
    (V.adjust_saturation, 0.5, 1.5),
    (V.adjust_hue, -0.06, 0.06),
    (lambda pictures, gamma: V.adjust_gamma(pictures.clamp(1e-8, 1.0), gamma), 0.7, 1.3),
]
"""What changes colours, and the range of its factor."""
KERNEL, SIGMA, NOISE = 5, (0.001, 0.5), 0.005


def random_view(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """One random view of a batch of pictures, as CoTTA and RMT draw it (Wang et al., CVPR 2022).

    Brightness, contrast, saturation, hue and gamma in random order; on the picture padded by half of its size, a
    rotation of up to 15 degrees, a shift of up to 1/16 of the padded side and a scale of 0.9 to 1.1; a blur; the middle
    part again; a mirror image half of the time; noise. All pictures of the batch get the same draw, the noise too.

    Args:
        pictures: (B, 3, H, W) with values in [0, 1]; what lies outside is cut off first.
        generator: on the CPU; equal generators give equal views on all devices.

    Returns:
        (B, 3, H, W) in [0, 1].

    >>> view = random_view(torch.rand(2, 3, 8, 8), torch.Generator().manual_seed(0))
    >>> tuple(view.shape), bool(view.min() >= 0), bool(view.max() <= 1)
    ((2, 3, 8, 8), True, True)
    """

    def draw(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    height, width = pictures.shape[-2:]
    colours = [(change, draw(low, high)) for change, low, high in COLOURS]
    view = pictures.clamp(0.0, 1.0)
    for place in torch.randperm(len(colours), generator=generator).tolist():
        change, factor = colours[place]
        view = change(view, factor)
    sides = [width // 2, height // 2]
    view = torch.nn.functional.pad(view, (sides[0], sides[0], sides[1], sides[1]), mode="replicate")
    tall, wide = view.shape[-2:]
    view = V.affine(
        view,
        angle=draw(*DEGREES),
        translate=[round(draw(-SHIFT, SHIFT) * wide), round(draw(-SHIFT, SHIFT) * tall)],
        scale=draw(*SCALE),
        shear=[0.0, 0.0],
        interpolation=InterpolationMode.BILINEAR,
    )
    view = V.gaussian_blur(view, [KERNEL, KERNEL], [draw(*SIGMA)] * 2)
    view = V.center_crop(view, [height, width])
    if draw(0.0, 1.0) < 0.5:
        view = view.flip(-1)
    noise = torch.randn(pictures.shape[1:], generator=generator, dtype=torch.float32) * NOISE
    noisy: Tensor = view + noise.to(view)
    return noisy.clamp(0.0, 1.0)
