"""Pictures for multimodal language models: pixels, and how many tokens stand for them in the prompt."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from PIL import Image
from torch import Tensor, nn

from mmcl.errors import ConfigError, SampleError
from mmcl.modules.hf_source import FAULTS, HFSource
from mmcl.modules.places import line

GRIDS = ("qwen2_vl", "qwen2_5_vl")
TILES = ("idefics3", "smolvlm")
SPANS = ("gemma3",)
"""Kinds whose tokens of one picture see each other in both directions."""
KEYS = ("pixel_values", "pixel_attention_mask", "image_grid_thw")
"""What pictures are in a batch: all rows' images, tiles or patches one after another."""


class Pictures:
    """A light, picklable function for data workers: it holds the image processor and no weights.

    Three kinds of architectures differ in what stands for a picture: a fixed number of features (LLaVA and its kin), a
    grid of patches as large as the picture (Qwen2-VL), tiles with their own marks (Idefics3, SmolVLM).

    Args:
        config: of the model.
        processor: image processor of transformers.
        token: text of the placeholder.
        features: tokens of a picture, or of one tile; None for grids.
    """

    def __init__(self, config: Any, processor: Any, token: str, features: int | None) -> None:
        self.kind = config.model_type
        self.processor = processor
        self.token = token
        self.features = features

    def __call__(self, image: Any) -> tuple[dict[str, Tensor], str]:
        """A picture -> its tensors (with a leading dimension) and the placeholders that stand for it.

        Raises:
            SampleError: the image processor cannot take it.
        """
        image = image if image.mode == "RGB" else image.convert("RGB")
        options = {"return_row_col_info": True} if self.kind in TILES else {}
        try:
            found = self.processor(images=[image], return_tensors="pt", **options)
        except FAULTS as error:
            raise SampleError(f"has a picture that the image processor cannot take: {line(error)}") from error
        tensors = {key: found[key] for key in KEYS if key in found}
        if self.kind in GRIDS:
            count = int(tensors["image_grid_thw"][0].prod()) // self.processor.merge_size**2
            return tensors, self.token * count
        assert self.features is not None
        if self.kind in TILES:
            tensors = {key: value[0] for key, value in tensors.items()}
            return tensors, self._tiles(int(found["rows"][0][0]), int(found["cols"][0][0]))
        return tensors, self.token * self.features

    def _tiles(self, rows: int, columns: int) -> str:
        """The prompt of a picture cut into tiles, each with its place, and the whole of it at the end."""
        assert self.features is not None
        fake, tile = "<fake_token_around_image>", self.token * self.features
        text = ""
        for row in range(1, rows + 1):
            text += "".join(f"{fake}<row_{row}_col_{column}>{tile}" for column in range(1, columns + 1)) + "\n"
        return f"{text}{chr(10) if rows else ''}{fake}<global-img>{tile}{fake}"


def find(source: HFSource, beside: HFSource | None, network: nn.Module, token: str) -> Pictures:
    """The picture reader of a model.

    Args:
        source: of the model.
        beside: where the processor lies; None builds the architecture's standard one.
        network: of the model; it is asked how many features a picture has.
        token: text of the placeholder.

    Raises:
        ConfigError: the image processor is missing, damaged, or of another model.
    """
    config = source.config
    _check_kind(source, network)
    try:
        processor = standard(config) if beside is None else beside.part(transformers.AutoImageProcessor, "processor")
    except FAULTS as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"model '{source.model}': no image processor for it: {line(error)}") from error
    if config.model_type in GRIDS:
        _check_grid(source, processor)
        return Pictures(config, processor, token, None)
    return Pictures(config, processor, token, _count(source, processor, network))


def standard(config: Any) -> Any:
    """The image processor that a model of this configuration is published with.

    Raises:
        ConfigError: the configuration does not tell the size of its pictures.
    """
    vision = config.vision_config
    if config.model_type in GRIDS:
        return transformers.Qwen2VLImageProcessor(
            patch_size=vision.patch_size,
            temporal_patch_size=vision.temporal_patch_size,
            merge_size=vision.spatial_merge_size,
        )
    size = getattr(vision, "image_size", None)
    if not isinstance(size, int):
        raise ConfigError("the configuration does not tell the size of its pictures; put a preprocessor_config.json")
    if config.model_type in TILES:
        return transformers.Idefics3ImageProcessor(
            size={"longest_edge": 4 * size}, max_image_size={"longest_edge": size}
        )
    if "siglip" in vision.model_type:
        return transformers.SiglipImageProcessor(size={"height": size, "width": size})
    return transformers.CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


def _check_kind(source: HFSource, network: nn.Module) -> None:
    """Refuse kinds that must be told of each token what it is, but for those that `mllm_batch.pictures` tells it."""
    told = sorted({"token_type_ids", "mm_token_type_ids"} & inspect.signature(network.forward).parameters.keys())
    if told and source.config.model_type not in (*GRIDS, *SPANS):
        raise ConfigError(
            f"model '{source.model}' is a {source.config.model_type}, which needs {told[0]}; MLLMModule gives them to "
            f"{', '.join((*GRIDS, *SPANS))} alone"
        )


def _check_grid(source: HFSource, processor: Any) -> None:
    vision = source.config.vision_config
    for own, theirs in (("patch_size",) * 2, ("temporal_patch_size",) * 2, ("merge_size", "spatial_merge_size")):
        if getattr(processor, own, None) != getattr(vision, theirs):
            raise ConfigError(
                f"model '{source.model}': its image processor's {own} is {getattr(processor, own, None)}, the model's "
                f"is {getattr(vision, theirs)}; it is of another model"
            )


def unused(source: HFSource, processor: Any, network: nn.Module) -> frozenset[str]:
    """Names of parameters beside a picture's features, which no training reaches (LLaVA leaves out its last layers).

    Args:
        source: of the model.
        processor: its image processor.
        network: whose parameters are looked at; all that lead to its features have `requires_grad`.
    """
    named = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    with torch.enable_grad():
        total = _features(source, processor, network).sum()
        grads = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    return frozenset(name for name, grad in zip(named, grads, strict=True) if grad is None)


@torch.no_grad()
def _count(source: HFSource, processor: Any, network: Any) -> int:
    """Features of one picture, or of one tile, as the network itself makes them."""
    return len(_features(source, processor, network))


def _features(source: HFSource, processor: Any, network: Any) -> Tensor:
    """(N, D) features of a grey picture, one tile where pictures are cut into tiles."""
    blank = Image.new("RGB", (64, 64), "grey")
    tiles = {"do_image_splitting": False} if source.config.model_type in TILES else {}
    was = network.training
    network.eval()
    try:
        found = processor(images=[blank], return_tensors="pt", **tiles)
        features = network.get_image_features(**{key: found[key] for key in KEYS if key in found}).pooler_output
    except FAULTS as error:
        raise ConfigError(
            f"model '{source.model}': its image processor gives pictures that the model cannot take: {line(error)}"
        ) from error
    finally:
        network.train(was)
    first: Tensor = features[0] if isinstance(features, Sequence) else features.reshape(-1, features.shape[-1])
    return first
