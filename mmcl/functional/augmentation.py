"""Random views of pictures as tensor operations, for test-time adaptation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torchvision.transforms.functional as V
from torch import Tensor
from torchvision.transforms import InterpolationMode

BRIGHTNESS, CONTRAST, SATURATION = (0.6, 1.4), (0.7, 1.3), (0.5, 1.5)
HUE, GAMMA = (-0.06, 0.06), (0.7, 1.3)
DEGREES, SHIFT, SCALE = (-15.0, 15.0), 1 / 16, (0.9, 1.1)
KERNEL, SIGMA, NOISE = 5, (0.001, 0.5), 0.005


def test_time_view(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """One random view of a batch of pictures, as CoTTA and RMT draw it (Wang et al., CVPR 2022).

    Brightness, contrast, saturation, hue and gamma in random order; on the picture padded by half of its size, a
    rotation of up to 15 degrees, a shift of up to 1/16 of the padded side and a scale of 0.9 to 1.1; a blur; the middle
    part again; a mirror image half of the time; noise. All pictures of the batch get the same draw, the noise too.

    Args:
        pictures: (B, 3, H, W) with values in [0, 1]; what lies outside is cut off first.
        generator: on the CPU; equal generators give equal views on all devices.

    Returns:
        (B, 3, H, W) in [0, 1].

    >>> view = test_time_view(torch.rand(2, 3, 8, 8), torch.Generator().manual_seed(0))
    >>> tuple(view.shape), bool(view.min() >= 0), bool(view.max() <= 1)
    ((2, 3, 8, 8), True, True)
    """

    def draw(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    height, width = pictures.shape[-2:]
    colours: Sequence[Callable[[Tensor], Tensor]] = [
        lambda x, f=draw(*BRIGHTNESS): V.adjust_brightness(x, f),
        lambda x, f=draw(*CONTRAST): V.adjust_contrast(x, f),
        lambda x, f=draw(*SATURATION): V.adjust_saturation(x, f),
        lambda x, f=draw(*HUE): V.adjust_hue(x, f),
        lambda x, f=draw(*GAMMA): V.adjust_gamma(x.clamp(1e-8, 1.0), f),
    ]
    view = pictures.clamp(0.0, 1.0)
    for place in torch.randperm(len(colours), generator=generator).tolist():
        view = colours[place](view)
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
    return (view + noise.to(view)).clamp(0.0, 1.0)
