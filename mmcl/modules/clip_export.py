"""A CLIP network as a folder that open_clip alone reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import open_clip
from open_clip.pretrained import download_pretrained_from_hf
from safetensors.torch import save_file
from torch import nn

from mmcl import weights
from mmcl.modules.clip_source import CONFIG, CLIPSource


def export(network: nn.Module, source: CLIPSource, tokenizer: Any, folder: Path) -> None:
    """Write configuration, effective weights and tokenizer: ``open_clip.create_model("local-dir:FOLDER")``.

    The configuration of a text tower of transformers that lay in a folder is copied into one of the same name.
    open_clip looks for that folder from the working directory, so such a model is loaded from within its folder; mmcl
    loads it from anywhere.

    Args:
        network: with the weights to write, adapters included.
        source: where it came from.
        tokenizer: open_clip's; one with files of its own leaves them in the folder.
        folder: exists and is empty.
    """
    visual: Any = network.visual
    config = {"model_cfg": model_config(source), "preprocess_cfg": dict(visual.preprocess_cfg)}
    text: dict[str, Any] = config["model_cfg"]["text_cfg"]
    name = text.get("hf_model_name")
    if name and source.folder is not None and (source.folder / name / "config.json").is_file():
        text["hf_model_name"] = Path(name).name
        (folder / Path(name).name).mkdir()
        shutil.copyfile(source.folder / name / "config.json", folder / Path(name).name / "config.json")
    if text.get("hf_tokenizer_name"):
        tokenizer.save_pretrained(str(folder))
    found = weights.read(network)
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in found.items()}
    save_file(tensors, folder / "open_clip_model.safetensors")
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def model_config(source: CLIPSource) -> dict[str, Any]:
    """A copy of the architecture's configuration."""
    if source.config is not None:
        config: Any = source.config["model_cfg"]
    elif source.on_hub:
        file = download_pretrained_from_hf(source.model.removeprefix("hf-hub:"), filename=CONFIG)
        config = json.loads(Path(file).read_text(encoding="utf-8"))["model_cfg"]
    else:
        config = open_clip.get_model_config(source.model)
    return dict(json.loads(json.dumps(config)))
