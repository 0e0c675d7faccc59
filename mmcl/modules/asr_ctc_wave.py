"""CTC on encoders that read waveforms: wav2vec 2.0 and HuBERT."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from mmcl import weights
from mmcl.errors import ConfigError
from mmcl.modules import speech_network
from mmcl.modules.alphabets import SPACE, UNKNOWN, Alphabet
from mmcl.modules.asr_ctc import CTCRecogniser, Unknown, refuse_adapter, targets_padding
from mmcl.modules.hf_source import HFSource
from mmcl.modules.weight_files import fill, read_weights
from mmcl.modules.whisper_network import settle
from mmcl.outputs import Batch

KINDS = {"wav2vec2": "Wav2Vec2ForCTC", "hubert": "HubertForCTC"}
EPSILON = 1e-7
SPARE = "masked_spec_embed"
"""The vector of masked frames. Nothing is masked here, and files of published recognisers lack it."""


class WaveCTC(CTCRecogniser):
    """`mmcl.modules.asr_parts.Recogniser`: ``Wav2Vec2ForCTC`` and ``HubertForCTC``.

    A model that was already trained for CTC keeps its head and its vocabulary; one that was only pretrained gets a new
    head for the language's alphabet.

    Args:
        source: the model.
        max_seconds: recordings longer than this are not trained on; None trains on all.
        language: see `CTCRecogniser`.
        alphabets: see `CTCRecogniser`.
        unknown: see `CTCRecogniser`.
    """

    key = "audio"

    def __init__(
        self,
        source: HFSource,
        max_seconds: int | None,
        language: str,
        alphabets: Mapping[str, str],
        unknown: Unknown,
    ) -> None:
        refuse_adapter(source.config, source.model)
        settle(source.config)
        self.source, self.max_seconds = source, max_seconds
        self.kind: Any = getattr(transformers, KINDS[source.config.model_type])
        self.trained = any("ForCTC" in name for name in source.config.architectures or ())
        self.paddings = {**targets_padding(), "audio": 0.0}
        self.least = speech_network.window_of(source.config)[0]
        self.extractor = self._extractor()
        self.rate = self.extractor.sampling_rate
        super().__init__(language, alphabets, unknown)
        source.config.vocab_size, source.config.pad_token_id = len(self.alphabet), self.alphabet.blank

    def _extractor(self) -> Any:
        place = self.source.place
        if place is None or (self.source.local and not (Path(place) / "preprocessor_config.json").is_file()):
            return transformers.Wav2Vec2FeatureExtractor()
        return self.source.part(transformers.Wav2Vec2FeatureExtractor, "feature extractor")

    def first_alphabet(self) -> Alphabet:
        if not self.trained or self.source.place is None:
            return super().first_alphabet()
        tokenizer = self.source.part(transformers.Wav2Vec2CTCTokenizer, "vocabulary")
        vocabulary = {i: symbol for symbol, i in tokenizer.get_vocab().items() if i < self.source.config.vocab_size}
        if sorted(vocabulary) != list(range(self.source.config.vocab_size)):
            raise ConfigError(
                f"model '{self.source.model}' has {self.source.config.vocab_size} symbols, but its vocabulary "
                f"{len(vocabulary)}; it is another model's"
            )
        return Alphabet(tuple(vocabulary[i] for i in sorted(vocabulary)), self.source.config.pad_token_id)

    def load(self, checkpoint: str | None, random_init: bool) -> nn.Module:
        self.fresh_head = random_init or not (checkpoint or self.trained)
        if checkpoint and not random_init:
            file = Path(checkpoint).expanduser()
            found, network = read_weights(file), self.source.build(self.kind)
            if any(name[-26:] == "pos_conv_embed.conv.weight" for name in found):
                speech_network.fold_weight_norm(network)
            fill(network, found, file, self.source.model, SPARE)
        elif self.trained or random_init or self.source.place is None:
            network = self.source.create(self.kind, checkpoint, random_init, SPARE)
        else:
            network = self.source.build(self.kind)
            whole: Any = network
            setattr(network, whole.base_model_prefix, self.source.create(transformers.AutoModel, spare=SPARE))
            whole.lm_head = self.new_head(self.source.config.hidden_size)
        return speech_network.fold_weight_norm(network)

    def build(self) -> nn.Module:
        network: Any = self.source.build(self.kind)
        with torch.no_grad():
            network.lm_head = self.new_head(network.lm_head.in_features)
        return speech_network.fold_weight_norm(network)

    def head(self, network: nn.Module) -> nn.Linear:
        head = network.lm_head
        assert isinstance(head, nn.Linear)
        return head

    def hear(self, waveform: Tensor) -> tuple[Tensor, int, str | None]:
        fault = None
        seconds = len(waveform) / self.rate
        if self.max_seconds is not None and seconds > self.max_seconds:
            fault = f"the recording is {seconds:.1f} s long, more than max_seconds {self.max_seconds}"
        if self.extractor.do_normalize:
            waveform = (waveform - waveform.mean()) / (waveform.var(correction=0) + EPSILON).sqrt()
        return waveform, int(speech_network.frame_count(len(waveform), self.source.config)), fault

    def encode(self, network: nn.Module, batch: Batch) -> Tensor:
        whole: Any = network
        encoded = speech_network.encode(whole.base_model, batch["audio"], batch["audio_lengths"], None)
        dropped: Tensor = whole.dropout(encoded.tokens)
        return dropped

    def part(self, name: str) -> str:
        if name.startswith("lm_head"):
            return "head"
        return "features" if ".feature_extractor." in name else "encoder"

    def export(self, network: nn.Module, folder: Path) -> None:
        """What ``Wav2Vec2ForCTC`` (``HubertForCTC``) and ``Wav2Vec2Processor`` load."""
        fresh: Any = self.source.build(self.kind)
        head = self.head(network)
        fresh.lm_head = nn.Linear(head.weight.shape[1], head.weight.shape[0])
        speech_network.unfold_into(fresh, {k: v.cpu() for k, v in weights.read(network).items()})
        fresh.config.vocab_size = len(self.alphabet)
        fresh.save_pretrained(folder)
        vocabulary = {symbol: i for i, symbol in enumerate(self.alphabet.symbols)}
        (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
        blank = self.alphabet.symbols[self.alphabet.blank]
        tokenizer = transformers.Wav2Vec2CTCTokenizer(
            str(folder / "vocab.json"),
            pad_token=blank,
            unk_token=UNKNOWN if UNKNOWN in vocabulary else blank,
            bos_token=None,
            eos_token=None,
            word_delimiter_token=SPACE,
        )
        transformers.Wav2Vec2Processor(self.extractor, tokenizer).save_pretrained(folder)
