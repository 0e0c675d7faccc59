"""What lies beside a multimodal language model: its tokenizer with the image token, its image processor."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from mmcl.errors import ConfigError
from mmcl.modules import places
from mmcl.modules.hf_source import HFSource

COMBINED = "processor_config.json"
FILES = ("preprocessor_config.json", COMBINED)


def processor_place(source: HFSource, name: str | None) -> HFSource | None:
    """Where the image processor lies: in the named folder, beside the model, or (None) nowhere.

    Raises:
        ConfigError: there is no such folder.
    """
    if name is None:
        if source.place is None:
            return None
        return source if not source.local or _has_processor(Path(source.place)) else None
    folder = places.folder(name) or Path(name).expanduser().resolve()
    if not folder.is_dir():
        raise ConfigError(f"processor '{name}': there is no such folder")
    return HFSource(source.model, source.config, str(folder)) if _has_processor(folder) else None


def _has_processor(folder: Path) -> bool:
    return any((folder / file).is_file() for file in FILES)


def save_processor(place: HFSource | None, images: Any, folder: Path) -> None:
    """Write the image processor, and the file that tells transformers how it goes with the tokenizer."""
    images.save_pretrained(folder)
    combined = Path(place.place) / COMBINED if place is not None and place.place is not None else None
    if combined is not None and combined.is_file():
        shutil.copyfile(combined, folder / COMBINED)


def check_image_token(source: HFSource, tokenizer: Any) -> str:
    """The text of the placeholder for pictures.

    Raises:
        ConfigError: the model reads no pictures, or the tokenizer is of another model.
    """
    token = getattr(source.config, "image_token_id", None)
    if not isinstance(token, int) or not hasattr(source.config, "vision_config"):
        raise ConfigError(
            f"model '{source.model}' is a {source.config.model_type}, which reads no pictures; MLLMModule "
            "takes models of AutoModelForImageTextToText"
        )
    known = tokenizer.added_tokens_decoder
    if token not in known:
        text = tokenizer.convert_ids_to_tokens(token) if token < len(tokenizer) else None
        what = f"'{text}' there" if text else f"beyond its {len(tokenizer)} tokens"
        raise ConfigError(
            f"model '{source.model}': its image token is {token}, which is {what} in the tokenizer; that is of "
            "another model"
        )
    return str(known[token].content)
