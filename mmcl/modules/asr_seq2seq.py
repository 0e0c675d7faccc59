"""Whisper as it was trained: an encoder over log-mel features and a decoder that writes tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from mmcl import weights
from mmcl.errors import ConfigError
from mmcl.modules import whisper_network
from mmcl.modules.asr_parts import MOST_TOKENS
from mmcl.modules.hf_source import HFSource
from mmcl.modules.log_mel import LogMel
from mmcl.modules.objectives import IGNORED
from mmcl.outputs import SKIP, Batch, Outputs

MULTILINGUAL = 51_865
"""From this size of the vocabulary on, Whisper's tokens name languages."""


class Seq2Seq:
    """`mmcl.modules.asr_parts.Recogniser` of whole Whisper models.

    Args:
        source: the model.
        tokenizer: name of another model whose tokenizer is used.
        max_seconds: length of the window.
        language: of recordings that do not say theirs.
    """

    least = 1
    fresh_head = False

    def __init__(self, source: HFSource, tokenizer: Any, max_seconds: int | None, language: str) -> None:
        whisper_network.settle(source.config)
        self.source, self.language, self.tokenizer = source, language, tokenizer
        self.seconds = whisper_network.window_of(source, max_seconds)
        self.extractor = whisper_network.extractor_of(source)
        self.mel = LogMel(source.config.num_mel_bins, self.seconds, self.extractor)
        self.rate = self.mel.rate
        self.generation = whisper_network.generation_of(source)
        self.end: int = source.config.eos_token_id
        self.paddings: Mapping[str, float] = {"input_ids": float(source.config.pad_token_id), "targets": float(IGNORED)}
        multilingual = getattr(self.generation, "is_multilingual", source.config.vocab_size >= MULTILINGUAL)
        self.multilingual = bool(multilingual)
        self._check_tokenizer()
        self.check(None)

    def _check_tokenizer(self) -> None:
        size = self.source.config.vocab_size
        if len(self.tokenizer) > size:
            raise ConfigError(
                f"model '{self.source.model}' has {size} tokens, but its tokenizer {len(self.tokenizer)}; "
                "it is another model's"
            )
        start = self.source.config.decoder_start_token_id
        if start not in self.tokenizer.all_special_ids and start not in self.tokenizer.added_tokens_decoder:
            raise ConfigError(
                f"model '{self.source.model}' starts texts with token {start}, which is an ordinary one of its "
                "tokenizer; it is another model's"
            )

    def load(self, checkpoint: str | None, random_init: bool) -> nn.Module:
        return whisper_network.load(self.source, checkpoint, random_init, self.seconds)

    def build(self) -> nn.Module:
        return whisper_network.build(self.source, self.seconds)

    def check(self, language: str | None) -> None:
        self.prompt(language)

    def grow(self, network: nn.Module, language: str | None) -> None:
        """Byte-level tokens write every language."""

    def prompt(self, language: str | None) -> list[int]:
        """Tokens before the text: start, in multilingual models language and task, and that times are left out.

        Raises:
            ConfigError: the model has no token for the language.
        """
        names = []
        if self.multilingual:
            names += [f"<|{(language or self.language).split('-')[0]}|>", "<|transcribe|>"]
        names.append("<|notimestamps|>")
        known = self.tokenizer.get_vocab()
        for name in names[:-1]:
            if name not in known:
                raise ConfigError(f"model '{self.source.model}' has no token {name}: it does not know this language")
        return [self.source.config.decoder_start_token_id, *(known[n] for n in names if n in known)]

    def row(self, waveform: Tensor, text: str | None, language: str | None) -> dict[str, Any]:
        prompt = self.prompt(language)
        row: dict[str, Any] = {"input_features": self.mel(waveform), "prompt": torch.tensor(prompt)}
        if len(waveform) > self.mel.samples:
            row[SKIP] = f"the recording is {len(waveform) / self.rate:.1f} s long, the window {self.seconds} s"
        if text is None:
            return row
        # Whisper's texts begin with a space.
        tokens = self.tokenizer.encode(f" {text.strip()}", add_special_tokens=False)
        most = self.source.config.max_target_positions - len(prompt)
        if not text.strip():
            row[SKIP] = "its transcript is empty"
        elif len(tokens) > most:
            row[SKIP] = f"its transcript has {len(tokens)} tokens, the decoder takes {most}"
        written = tokens[:most]
        row["input_ids"] = torch.tensor([*prompt, *written])
        row["targets"] = torch.tensor([IGNORED] * (len(prompt) - 1) + [*written, self.end])
        return row

    def compute(self, network: nn.Module, batch: Batch) -> Outputs:
        """Logits (B, L, V) of the next tokens, and the decoder's states behind them."""
        whole: Any = network
        if "input_features" not in batch or "input_ids" not in batch:
            return Outputs()
        states = whole.model.encoder(batch["input_features"]).last_hidden_state
        found = whole.model.decoder(input_ids=batch["input_ids"], encoder_hidden_states=states, use_cache=False)
        targets = batch["targets"]
        valid = targets != IGNORED
        if "valid" in batch:
            valid = valid & batch["valid"][:, None]
        tokens = found.last_hidden_state
        return Outputs(logits=whole.proj_out(tokens), targets=targets, valid=valid, tokens=tokens)

    def generate(
        self, network: nn.Module, batch: Batch, max_new_tokens: int = MOST_TOKENS, language: str | None = None
    ) -> list[str]:
        features, prompt = batch["input_features"], batch["prompt"]
        if language is not None:
            prompt = torch.tensor([self.prompt(language)] * len(features), device=features.device)
        rows = whisper_network.greedy(network, features, prompt, self.generation, max_new_tokens)
        return [self.tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows]

    def part(self, name: str) -> str:
        if name.startswith("proj_out"):  # the decoder's own table
            return "head"
        return "encoder" if name.startswith("model.encoder.") else "decoder"

    def export(self, network: nn.Module, folder: Path) -> None:
        """What ``WhisperForConditionalGeneration`` and ``WhisperProcessor`` load; the window as trained."""
        fresh: Any = self.build()
        fresh.load_state_dict(weights.read(network))
        fresh.generation_config = self.generation
        fresh.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        settings = {**self.extractor.to_dict(), "chunk_length": self.seconds}
        for derived in ("n_samples", "nb_max_frames", "mel_filters"):
            settings.pop(derived, None)
        transformers.WhisperFeatureExtractor(**settings).save_pretrained(folder)
