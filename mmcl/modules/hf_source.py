"""Where a transformers model comes from: a folder, a configuration, a GGUF file or the hub."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from mmcl.errors import ConfigError
from mmcl.modules import places
from mmcl.modules.places import line
from mmcl.modules.weight_files import fill, read_weights

FAULTS = (
    *(OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, ImportError),
    struct.error,
)
"""What transformers raises at folders and files that it cannot read; `struct.error` at GGUF files that end early."""
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class HFSource:
    """An architecture of transformers, found; `build` makes networks of it.

    Attributes:
        model: what the user wrote.
        config: its configuration.
        place: folder or hub name that transformers loads from; None for a bare configuration.
        gguf: name of the GGUF file in `place`.
    """

    model: str
    config: Any
    place: str | None = None
    gguf: str | None = None

    @property
    def local(self) -> bool:
        """Whether nothing is fetched."""
        return self.place is None or Path(self.place).is_dir()

    def build(self, kind: Any) -> nn.Module:
        """A network in float32 with random weights; the caller's random numbers are left alone.

        Args:
            kind: the model class, or one of transformers' ``AutoModel...`` classes.

        Raises:
            ConfigError: transformers cannot build it.
        """
        try:
            with torch.random.fork_rng(devices=[]):
                make = kind.from_config if hasattr(kind, "from_config") else kind
                network: nn.Module = make(self.config)
        except FAULTS as error:
            raise ConfigError(f"model '{self.model}': transformers cannot build it: {line(error)}") from error
        return network.float()

    def create(
        self, kind: Any, checkpoint: str | None = None, random_init: bool = False, spare: str | None = None
    ) -> nn.Module:
        """The network with the weights that were asked for, in float32.

        Args:
            kind: the model class, or one of transformers' ``AutoModel...`` classes.
            checkpoint: file of weights, in place of those of the folder.
            random_init: no weights at all.
            spare: end of the names of weights that the network is not called with; files may lack them.

        Raises:
            ConfigError: the arguments contradict each other, or weights are missing or of another architecture.
        """
        if checkpoint and random_init:
            raise ConfigError(f"model '{self.model}': give only one of `checkpoint` and `random_init`")
        if checkpoint or random_init:
            network = self.build(kind)
            if checkpoint:
                file = Path(checkpoint).expanduser()
                fill(network, read_weights(file), file, self.model, spare)
            return network
        if self.place is None:
            raise ConfigError(
                f"model '{self.model}' is a bare configuration; give `checkpoint`, or `random_init: true` to pretrain"
            )
        extra = {"gguf_file": self.gguf} if self.gguf else {}
        try:
            loaded: tuple[nn.Module, Any] = kind.from_pretrained(
                self.place,
                dtype=torch.float32,
                local_files_only=self.local,
                output_loading_info=True,
                **({} if self.gguf else {"config": self.config}),
                **extra,
            )
        except FAULTS as error:
            raise ConfigError(f"model '{self.model}' cannot be loaded: {line(error)}") from error
        network, report = loaded
        self._check(report, spare)
        return self._plain(kind, network) if self.gguf else network.float()

    def _plain(self, kind: Any, network: Any) -> nn.Module:
        """What a GGUF file gave, without the mark by which transformers refuses to cast and save it."""
        plain: Any = self.build(kind)
        plain.load_state_dict(network.state_dict())
        plain.generation_config = network.generation_config
        return plain  # type: ignore[no-any-return]

    def _check(self, report: Any, spare: str | None) -> None:
        """Transformers fills weights that are missing at random and only warns."""
        missing = sorted(key for key in report["missing_keys"] if spare is None or not key.endswith(spare))
        misfits = sorted(str(k) for k in report["mismatched_keys"])
        if missing or misfits:
            what = f"has no '{missing[0]}'" if missing else f"does not fit at {misfits[0]}"
            more = len(missing) + len(misfits) - 1
            raise ConfigError(
                f"model '{self.model}': its file of weights {what}{f' and {more} more' if more else ''}; it is of "
                "another architecture than its configuration"
            )

    def part(self, kind: Any, what: str) -> Any:
        """A tokenizer, feature extractor or processor that lies beside the model.

        Args:
            kind: the class to load with, for instance ``transformers.AutoTokenizer``.
            what: its name for messages.

        Raises:
            ConfigError: its files are missing or damaged.
        """
        # The tokenizers library warns in each data worker once it has run threads before a fork.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        if self.place is None:
            raise ConfigError(f"model '{self.model}' is a bare configuration; name its {what} as well")
        extra = {"gguf_file": self.gguf} if self.gguf else {}
        try:
            return kind.from_pretrained(self.place, local_files_only=self.local, **extra)
        except FAULTS as error:
            raise ConfigError(f"model '{self.model}': its {what} cannot be loaded: {line(error)}") from error


def find(model: str) -> HFSource:
    """The source behind a model's name.

    Args:
        model: ``local-dir:PATH`` or a folder's path, ``asset:NAME``, ``package:some.package/FOLDER``, a ``.json`` file
            with a configuration, a ``.gguf`` file, or ``hf-hub:ORGANISATION/NAME``.

    Raises:
        ConfigError: nothing of that name, or no configuration of transformers.
    """
    if model.endswith(".json"):
        return HFSource(model, _read_config(model, Path(model).expanduser()))
    if model.endswith(".gguf"):
        return _of_gguf(model, Path(model).expanduser().resolve())
    place = places.folder(model)
    if place is None and Path(model).expanduser().is_dir():
        place = Path(model).expanduser().resolve()
    if place is not None:
        return HFSource(model, _config_of(model, str(place), local=True), str(place))
    if not model.startswith("hf-hub:"):
        raise ConfigError(
            f"model '{model}': there is no such folder; give a folder, asset:NAME, a .json configuration, a .gguf file "
            "or hf-hub:ORGANISATION/NAME"
        )
    name = model.removeprefix("hf-hub:")
    return HFSource(model, _config_of(model, name, local=False), name)


def _config_of(model: str, place: str, local: bool) -> Any:
    try:
        return transformers.AutoConfig.from_pretrained(place, local_files_only=local)
    except FAULTS as error:
        raise ConfigError(f"model '{model}': its configuration cannot be loaded: {line(error)}") from error


def _read_config(model: str, file: Path) -> Any:
    try:
        content = dict(json.loads(file.read_text(encoding="utf-8")))
        return transformers.AutoConfig.for_model(**content)
    except (*FAULTS, UnicodeDecodeError) as error:
        raise ConfigError(f"model '{model}' is no configuration of transformers: {line(error)}") from error


def _of_gguf(model: str, file: Path) -> HFSource:
    if not file.is_file():
        raise ConfigError(f"model '{model}': there is no such file")
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"model '{model}': reading GGUF files needs more: pip install 'mmcl[gguf]'") from error
    try:
        config = transformers.AutoConfig.from_pretrained(str(file.parent), gguf_file=file.name, local_files_only=True)
    except FAULTS as error:
        raise ConfigError(f"model '{model}': transformers cannot read this GGUF file: {line(error)}") from error
    return HFSource(model, config, str(file.parent), file.name)
