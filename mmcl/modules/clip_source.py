"""Where a CLIP model comes from: architecture, tokenizer and weights, all read by open_clip."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
from torch import nn

from mmcl.errors import ConfigError, near
from mmcl.modules import places
from mmcl.modules.clip_weights import load_weights
from mmcl.modules.places import line
from mmcl.modules.weight_files import read_weights

CONFIG = "open_clip_config.json"
WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
)
CLIP_VOCABULARY = 49408
FAULTS = (OSError, RuntimeError, ValueError, TypeError, KeyError, AssertionError, ImportError)


@dataclass(frozen=True)
class CLIPSource:
    """An architecture, found; `build` makes networks of it.

    Attributes:
        model: what the user wrote.
        config: ``model_cfg`` and ``preprocess_cfg`` where they come from a file; None for open_clip's own and the hub.
        folder: of the configuration file.
        weights: the weights that lie in the folder.
    """

    model: str
    config: dict[str, Any] | None = None
    folder: Path | None = None
    weights: Path | None = None

    @property
    def on_hub(self) -> bool:
        """Whether configuration and weights are fetched from the Hugging Face hub."""
        return self.model.startswith("hf-hub:")

    def build(self, pretrained: str | None = None) -> nn.Module:
        """A network in float32; random weights but for a `pretrained` tag of open_clip.

        Raises:
            ConfigError: open_clip cannot build it.
        """
        with _quiet(), tempfile.TemporaryDirectory() as folder:
            name = self.model
            if self.config is not None:
                (Path(folder) / CONFIG).write_text(json.dumps(self._resolved()), encoding="utf-8")
                name = f"local-dir:{folder}"
            try:
                network: nn.Module = open_clip.create_model(
                    name, pretrained=pretrained, load_weights=pretrained is not None, pretrained_text=False
                )
            except FAULTS as error:
                raise ConfigError(f"model '{self.model}': open_clip cannot build it: {line(error)}") from error
        return network.float()

    def _resolved(self) -> dict[str, Any]:
        """The configuration with a text tower that lies beside it (``hf_model_name``) under its full path."""
        assert self.config is not None and self.folder is not None
        config: dict[str, Any] = json.loads(json.dumps(self.config))
        text = config["model_cfg"]["text_cfg"]
        name = text.get("hf_model_name")
        if name and (self.folder / name / "config.json").is_file():
            text["hf_model_name"] = str(self.folder / name)
        return config

    def create(
        self, pretrained: str | None = None, checkpoint: str | None = None, random_init: bool = False
    ) -> nn.Module:
        """The network with the weights that were asked for.

        Args:
            pretrained: tag of open_clip, for its own architectures.
            checkpoint: file of weights; it takes the place of those in the folder or on the hub.
            random_init: no weights at all.

        Raises:
            ConfigError: the arguments contradict each other, or the weights are missing or of another architecture.
        """
        self._check(pretrained, checkpoint, random_init)
        if self.on_hub and not (checkpoint or random_init):
            return self._from_hub()
        network = self.build(pretrained)
        file = Path(checkpoint).expanduser() if checkpoint else None if random_init else self.weights
        if file is not None:
            load_weights(network, read_weights(file), file, self.model)
        elif pretrained is None and not random_init:
            places.warn_random(self.model)
        return network

    def _from_hub(self) -> nn.Module:
        try:
            with _quiet():
                network: nn.Module = open_clip.create_model(self.model, require_pretrained=True)
        except FAULTS as error:
            raise ConfigError(
                f"model '{self.model}' cannot be fetched from the hub: {line(error)}; without a network give a "
                "`local-dir:` folder"
            ) from error
        return network.float()

    def _check(self, pretrained: str | None, checkpoint: str | None, random_init: bool) -> None:
        if sum((pretrained is not None, checkpoint is not None, random_init)) > 1:
            raise ConfigError(f"model '{self.model}': give only one of `pretrained`, `checkpoint` and `random_init`")
        if pretrained is not None:
            if self.config is not None or self.on_hub:
                raise ConfigError(f"model '{self.model}': `pretrained` is a tag of open_clip's own architectures")
            tags = open_clip.list_pretrained_tags_by_model(self.model)
            if pretrained not in tags:
                hint = near(pretrained, tags)
                raise ConfigError(
                    f"model '{self.model}' has no pretrained tag '{pretrained}'; {hint} (a file: `checkpoint`)"
                )
        if self.model.startswith(places.KINDS) and not (checkpoint or random_init or self.weights):
            raise ConfigError(
                f"model '{self.model}': no weights in {self.folder} (looked for {', '.join(WEIGHTS)}); "
                "give `checkpoint` or `random_init: true`"
            )

    def tokenizer(self) -> Any:
        """The tokenizer: list of texts -> (n, context length) ids.

        Raises:
            ConfigError: its files are missing, or it does not fit the vocabulary.
        """
        # The tokenizers library warns in each data worker once it has run threads before a fork.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        try:
            if self.config is None:
                return open_clip.get_tokenizer(self.model)
            text: dict[str, Any] = self.config["model_cfg"]["text_cfg"]
            length = text.get("context_length", 77)
            extra = text.get("tokenizer_kwargs", {})
            name = text.get("hf_tokenizer_name")
            if name:
                mode = text.get("tokenizer_mode")
                found = open_clip.tokenizer.HFTokenizer(
                    str(self._tokenizer_folder(name)), length, tokenizer_mode=mode, **extra
                )
                self._check_end(found.tokenizer, text)
                return found
        except FAULTS as error:
            raise ConfigError(f"model '{self.model}': its tokenizer cannot be loaded: {line(error)}") from error
        if text.get("vocab_size", CLIP_VOCABULARY) < CLIP_VOCABULARY:
            raise ConfigError(
                f"model '{self.model}': vocab_size {text['vocab_size']} is too small for CLIP's own tokenizer "
                f"({CLIP_VOCABULARY}); name `hf_tokenizer_name` in text_cfg and put its files beside the configuration"
            )
        return open_clip.SimpleTokenizer(context_length=length, **extra)

    def _check_end(self, tokenizer: Any, text: dict[str, Any]) -> None:
        """open_clip's default pooling takes the token with the highest id, which must be the one that ends a text."""
        if text.get("pool_type", "argmax") != "argmax" or "hf_model_name" in text:
            return
        end = tokenizer.eos_token_id
        if end is None or end < max(tokenizer.get_vocab().values()):
            raise ConfigError(
                f"model '{self.model}': text pooling takes the highest token id, but the end token is {end}; "
                "give it the highest id, or set `pool_type` and `eos_id` in text_cfg"
            )

    def _tokenizer_folder(self, name: str) -> Path | str:
        assert self.folder is not None
        for folder in (self.folder / name, self.folder):
            if (folder / "tokenizer.json").is_file() or (folder / "tokenizer_config.json").is_file():
                return folder
        return name


def find(model: str) -> CLIPSource:
    """The source behind a model's name.

    Args:
        model: an open_clip architecture (``ViT-B-32``), a JSON file with its configuration, ``local-dir:PATH``
            (relative to the working directory), ``asset:NAME`` (fetched by `mmcl data get`),
            ``package:some.package/FOLDER`` (data of an installed package) or ``hf-hub:ORGANISATION/NAME``.

    Raises:
        ConfigError: nothing of that name.
    """
    if model.startswith("hf-hub:"):
        return CLIPSource(model)
    folder = places.folder(model)
    if folder is not None:
        config = _read_config(model, folder / CONFIG)
        weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
        return CLIPSource(model, config, folder, weights)
    if model.endswith(".json"):
        file = Path(model).expanduser().resolve()
        return CLIPSource(model, _read_config(model, file), file.parent)
    if model.replace("/", "-") in open_clip.list_models():
        return CLIPSource(model.replace("/", "-"))
    hint = near(model, open_clip.list_models())
    raise ConfigError(f"model '{model}' is no architecture of open_clip; {hint} (a folder: local-dir:PATH)")


def _read_config(model: str, file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"model '{model}': {file} cannot be read: {line(error)}") from error
    config = config if "model_cfg" in config else {"model_cfg": config}
    missing = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in config["model_cfg"]]
    if missing:
        raise ConfigError(f"model '{model}': {file} lacks {', '.join(missing)}; it is no configuration of open_clip")
    return dict(config)


@contextmanager
def _quiet() -> Iterator[None]:
    """open_clip says on the root logger that weights are random; what it refuses, it raises as well."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)
