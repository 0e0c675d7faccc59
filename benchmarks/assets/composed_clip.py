"""An image-text model composed of two pretrained towers; only its projections are untrained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmcl.assets import Asset, folder
from mmcl.errors import RunError

VISION, TEXT = "mobilenetv2", "minilm"
CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 256,
        "vision_cfg": {
            "timm_model_name": "mobilenetv2_100",
            "timm_pool": "avg",
            "timm_proj": "mlp",
            "image_size": 128,
        },
        "text_cfg": {
            "hf_model_name": "text",  # a folder beside this configuration
            "hf_tokenizer_name": ".",
            "hf_pooler_type": "mean_pooler",
            "hf_proj_type": "linear",
            "context_length": 32,
            "vocab_size": 30522,
        },
    },
    "preprocess_cfg": {
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "interpolation": "bilinear",
        "resize_mode": "shortest",
    },
}
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def build(unpacked: Mapping[str, Path], out: Path) -> None:
    """Put the two assets together."""
    compose(folder(VISION), folder(TEXT), CONFIG, out)


def compose(vision: Path, text: Path, config: Mapping[str, Any], out: Path, seed: int = 0) -> None:
    """Write a folder of open_clip with pretrained towers and random projections.

    Args:
        vision: folder of timm with the image tower.
        text: folder of transformers with the text tower and its tokenizer.
        config: for ``open_clip_config.json``; its ``hf_model_name`` is a folder below `out`.
        out: folder that is filled.
        seed: of the projections.

    Raises:
        RunError: the towers are not those of the configuration.
    """
    import torch
    from safetensors.torch import load_file, save_file

    from mmcl.modules.clip_source import find

    inner = out / config["model_cfg"]["text_cfg"]["hf_model_name"]
    inner.mkdir()
    shutil.copyfile(text / "config.json", inner / "config.json")
    for name in TOKENIZER:
        if (text / name).is_file():
            shutil.copyfile(text / name, out / name)
    (out / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = find(f"local-dir:{out}").build()
    own = network.state_dict()
    taken = {f"visual.trunk.{name}": value for name, value in load_file(vision / "model.safetensors").items()}
    taken |= {f"text.transformer.{name}": value for name, value in load_file(text / "model.safetensors").items()}
    # The towers' own heads (ImageNet's classes, BERT's pooler) have no place in the composition.
    own |= {name: value for name, value in taken.items() if name in own}
    random = ("visual.head.", "text.proj", "logit_scale")
    lacking = [name for name in own if name not in taken and not name.startswith(random)]
    if lacking:
        raise RunError(f"the towers lack {len(lacking)} weights of the configuration, among them {lacking[0]}")
    network.load_state_dict(own)
    save_file({name: value.contiguous() for name, value in own.items()}, out / "open_clip_model.safetensors")


MOBILENET_MINILM = Asset(
    name="mobilenet-minilm",
    title="image-text model of the two: mobilenetv2 and minilm with untrained projections to 256 (open_clip)",
    licence="BSD-3-Clause AND Apache-2.0",
    source="composed here of the assets mobilenetv2 and minilm",
    megabytes=0.0,
    packages=(),
    needs=(VISION, TEXT),
    build=build,
    use="contrastive training",
)
