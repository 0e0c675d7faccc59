"""Preprocessing gives open_clip's and timm's own tensors, bit for bit."""

import copy
import pickle

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from timm.data import create_transform
from torchvision.transforms import CenterCrop, Compose, Normalize, PILToTensor, RandomResizedCrop, ToTensor

from mmcl.modules.clip_transform import ImageAugment, SampleTransform, training_transform
from mmcl.modules.image_transform import ImageTransform
from mmcl.modules.pixels import Preprocess

SIZES = [(1, 1), (32, 32), (32, 24), (24, 32), (33, 32), (7, 90), (300, 200)]


def noise(height, width):
    random = np.random.default_rng(height + 1000 * width)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("target", [32, (32, 32), (32, 24)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_evaluation_is_open_clips(size, mode, target, interpolation):
    config = {"size": target, "resize_mode": mode, "interpolation": interpolation}
    image = noise(*size)
    transform = SampleTransform(config, None, None)
    found = transform({"image": image}, False)["image"]
    assert torch.equal(found, transform({"image": np.asarray(image)}, False)["image"])
    assert torch.equal(found, image_transform_v2(PreprocessCfg(**config), is_train=False)(image))
    assert found.is_contiguous() and found.dtype == torch.float32


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("crop", [1.0, 0.875])
@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_evaluation_is_timms(size, crop, mode):
    config = {
        "input_size": (3, 32, 32),
        "mean": (0.4, 0.5, 0.6),
        "std": (0.2, 0.3, 0.4),
        "interpolation": "bicubic",
        "crop_pct": crop,
        "crop_mode": mode,
    }
    image = noise(*size)
    transform = ImageTransform(config, None, None, None)
    assert torch.equal(transform(image, False), create_transform(**config)(image))
    assert torch.equal(transform(np.asarray(image), False), transform(image, False))


@pytest.mark.parametrize("size", [(32, 32), (40, 90)])
def test_training_is_torchvisions(size):
    settings, augment, image = PreprocessCfg(size=32), ImageAugment(hflip=True, color_jitter=0.3), noise(*size)
    ours = training_transform(settings, augment)
    theirs = Compose([*ours.steps, ToTensor(), Normalize(settings.mean, settings.std)])
    assert isinstance(ours.steps[0], RandomResizedCrop)
    for seed in range(3):
        found = []
        for transform, given in ((ours, image), (ours, np.asarray(image)), (theirs, image)):
            torch.manual_seed(seed)
            found.append(transform(given))
        assert torch.equal(found[0], found[2]) and torch.equal(found[1], found[2])


def test_the_picture_is_left_alone_and_the_transform_travels():
    image = noise(32, 32)
    before = np.array(image)
    transform = pickle.loads(pickle.dumps(SampleTransform({"size": 32}, None, None)))
    row = transform({"image": image}, False)["image"]
    expected = copy.deepcopy(row)
    row.zero_()
    assert np.array_equal(image, before)
    assert torch.equal(transform({"image": image}, False)["image"], expected)


def test_modes_other_than_rgb_are_converted():
    transform = SampleTransform({"size": 32}, None, None)
    image = noise(32, 32).convert("L")
    assert torch.equal(
        transform({"image": image}, False)["image"], transform({"image": image.convert("RGB")}, False)["image"]
    )


def test_other_pipelines_are_refused():
    with pytest.raises(TypeError, match="does not end in ToTensor and Normalize"):
        Preprocess(Compose([CenterCrop(4), PILToTensor(), Normalize((0.0,) * 3, (1.0,) * 3)]))
