"""CTC on Whisper's encoder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from mmcl import weights
from mmcl.errors import ConfigError
from mmcl.modules import whisper_network
from mmcl.modules.alphabets import Alphabet
from mmcl.modules.asr_ctc import CTCRecogniser, Unknown, targets_padding
from mmcl.modules.hf_source import HFSource
from mmcl.modules.log_mel import LogMel
from mmcl.modules.weight_files import fill, read_weights
from mmcl.outputs import Batch

ALPHABET, HEAD = "alphabet.json", "head.safetensors"


class WhisperCTCNetwork(nn.Module):
    """Whisper's encoder and a linear head.

    Args:
        encoder: a `WhisperEncoder`.
        head: (D -> symbols).
    """

    def __init__(self, encoder: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head


class WhisperCTC(CTCRecogniser):
    """`mmcl.modules.asr_parts.Recogniser`: CTC on the encoder of a Whisper model, or of a folder that `export` wrote.

    Args:
        source: the model.
        max_seconds: length of the window.
        language: see `CTCRecogniser`.
        alphabets: see `CTCRecogniser`.
        unknown: see `CTCRecogniser`.
    """

    key = "input_features"

    def __init__(
        self,
        source: HFSource,
        max_seconds: int | None,
        language: str,
        alphabets: Mapping[str, str],
        unknown: Unknown,
    ) -> None:
        whisper_network.settle(source.config)
        self.source = source
        place = Path(source.place) if source.place is not None else None
        self.own = place if place is not None and (place / ALPHABET).is_file() else None
        self.seconds = whisper_network.window_of(source, max_seconds)
        self.extractor = whisper_network.extractor_of(source)
        self.mel = LogMel(source.config.num_mel_bins, self.seconds, self.extractor)
        self.rate, self.paddings = self.mel.rate, targets_padding()
        super().__init__(language, alphabets, unknown)

    def first_alphabet(self) -> Alphabet:
        if self.own is None:
            return super().first_alphabet()
        try:
            content = json.loads((self.own / ALPHABET).read_text(encoding="utf-8"))
            return Alphabet(tuple(content["symbols"]), int(content["blank"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"model '{self.source.model}': its {ALPHABET} cannot be read: {error}") from error

    def load(self, checkpoint: str | None, random_init: bool) -> nn.Module:
        self.fresh_head = self.own is None or checkpoint is not None or random_init
        if self.own is not None and not self.fresh_head:
            encoder = whisper_network.shorten(self.source.create(WhisperEncoder), self.seconds)
            network = WhisperCTCNetwork(encoder, self.new_head(self.source.config.d_model))
            fill(network.head, read_weights(self.own / HEAD), self.own / HEAD, self.source.model)
            return network
        whole: Any = whisper_network.load(self.source, checkpoint, random_init, self.seconds)
        return WhisperCTCNetwork(whole.model.encoder, self.new_head(self.source.config.d_model))

    def build(self) -> nn.Module:
        encoder = whisper_network.shorten(self.source.build(WhisperEncoder), self.seconds)
        return WhisperCTCNetwork(encoder, self.new_head(self.source.config.d_model))

    def head(self, network: nn.Module) -> nn.Linear:
        assert isinstance(network, WhisperCTCNetwork)
        return network.head

    def hear(self, waveform: Tensor) -> tuple[Tensor, int, str | None]:
        fault = None
        if len(waveform) > self.mel.samples:
            fault = f"the recording is {len(waveform) / self.rate:.1f} s long, the window {self.seconds} s"
        return self.mel(waveform), self.mel.heard(len(waveform)), fault

    def encode(self, network: nn.Module, batch: Batch) -> Tensor:
        whole: Any = network
        states: Tensor = whole.encoder(batch[self.key]).last_hidden_state
        return states

    def part(self, name: str) -> str:
        return "head" if name.startswith("head.") else "encoder"

    def export(self, network: nn.Module, folder: Path) -> None:
        """The encoder for ``WhisperEncoder.from_pretrained``, the head's tensors and the alphabet beside it."""
        fresh: Any = self.build()
        head = self.head(network)
        fresh.head = nn.Linear(head.weight.shape[1], head.weight.shape[0])
        fresh.load_state_dict(weights.read(network))
        fresh.encoder.save_pretrained(folder)
        save_file({k: v.detach().contiguous() for k, v in fresh.head.state_dict().items()}, folder / HEAD)
        content = {"symbols": list(self.alphabet.symbols), "blank": self.alphabet.blank}
        (folder / ALPHABET).write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
        settings = {**self.extractor.to_dict(), "chunk_length": self.seconds}
        for derived in ("n_samples", "nb_max_frames", "mel_filters"):
            settings.pop(derived, None)
        transformers.WhisperFeatureExtractor(**settings).save_pretrained(folder)
