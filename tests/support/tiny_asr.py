"""Speech recognisers of a few thousand weights, and sung words as speech: a tone for each letter."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import soundfile
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    HubertConfig,
    PreTrainedTokenizerFast,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    WhisperConfig,
    WhisperFeatureExtractor,
)

from mmcl.datamodules.write import write_shard
from mmcl.modules.asr import ASRModule
from mmcl.modules.base import Module
from mmcl.outputs import SKIP, Audio, Batch
from mmcl.stream import Budget, EvalSet, Source, Stream, Task

WORDS = {"en": ["go", "no", "see", "don't", "we"], "es": ["sí", "año", "no", "qué", "voz"]}
RATE = 8_000
NOTE = 0.08  # seconds of a letter
SPECIAL = ("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|es|>", "<|transcribe|>", "<|notimestamps|>")


def sung(text: str, rate: int = RATE) -> Audio:
    """A tone for each letter of a text, silence for a space."""
    time = np.arange(int(NOTE * rate)) / rate
    tones = [np.sin(2 * np.pi * (200 + 37 * (ord(c) % 61)) * time) * (c != " ") for c in text]
    return Audio((0.3 * np.concatenate(tones)).astype(np.float32), rate)


def wav(audio: Audio, rate: int | None = None, subtype: str = "PCM_16") -> bytes:
    """The recording as a file; `rate` is what its header says. A file of floats also holds the time of day."""
    out = io.BytesIO()
    soundfile.write(out, audio.samples, rate or audio.rate, format="WAV", subtype=subtype)
    return out.getvalue()


def sentences(language: str, count: int, seed: int) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS[language], random.integers(1, 4))) for _ in range(count)]


def clips(language: str, count: int, seed: int) -> Iterator[dict[str, Any]]:
    for i, text in enumerate(sentences(language, count, seed)):
        yield {"__key__": f"{language}-{i:02d}", "wav": wav(sung(text)), "txt": text.capitalize() + "."}


def stream(folder: Path, steps: Sequence[int] = (6, 6)) -> Stream:
    """English, then Spanish; English is held out of the second task's columns."""
    folder.mkdir(parents=True, exist_ok=True)
    for language in WORDS:
        write_shard(folder / f"{language}.tar", clips(language, 16, 1))
        write_shard(folder / f"{language}-test.tar", clips(language, 5, 2))
    options = {"max_new_tokens": 8}
    held = Source([str(folder / "en-test.tar")], augment=False)
    trained = Source([str(folder / "es-test.tar")], augment=False)
    return Stream(
        "tiny-asr",
        [
            Task("en", [Source([str(folder / "en.tar")])], Budget(steps=steps[0]), language="en"),
            Task("es", [Source([str(folder / "es.tar")])], Budget(steps=steps[1]), evaluates="es", language="es"),
        ],
        [
            EvalSet("es", trained, "error_rate", group="trained", options=options),
            EvalSet("held", held, "error_rate", options=options),
        ],
    )


def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, and the special tokens of Whisper."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=made, eos_token=SPECIAL[0], pad_token=SPECIAL[0])
    fast.add_special_tokens({"additional_special_tokens": list(SPECIAL[1:])})
    return fast


def whisper(folder: Path, seconds: int = 2, multilingual: bool = False) -> Path:
    """A folder with configuration, tokenizer and feature extractor, without weights."""
    folder.mkdir(parents=True, exist_ok=True)
    text = tokenizer()
    end, start = (text.convert_tokens_to_ids(name) for name in SPECIAL[:2])
    config = WhisperConfig(
        vocab_size=len(text),
        num_mel_bins=8,
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        max_source_positions=50 * seconds,
        max_target_positions=48,
        decoder_start_token_id=start,
        eos_token_id=end,
        bos_token_id=end,
        pad_token_id=end,
        suppress_tokens=[3, 4],
        begin_suppress_tokens=[5, end],
    )
    config.save_pretrained(folder)
    text.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=8, chunk_length=seconds).save_pretrained(folder)
    if multilingual:
        told = {"suppress_tokens": [3, 4], "begin_suppress_tokens": [5, end]}
        GenerationConfig(is_multilingual=True, **told).save_pretrained(folder)
    return folder


def wave_config(kind: str = "wav2vec2", norm: str = "group") -> Any:
    """A configuration of wav2vec 2.0 or HuBERT: 16 kHz, 100 frames a second."""
    made = {"wav2vec2": Wav2Vec2Config, "hubert": HubertConfig}[kind]
    return made(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        conv_dim=(12, 12, 12),
        conv_kernel=(10, 8, 4),
        conv_stride=(5, 8, 4),
        num_feat_extract_layers=3,
        feat_extract_norm=norm,
        do_stable_layer_norm=norm == "layer",
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        final_dropout=0.0,
    )


def wave(folder: Path, kind: str = "wav2vec2", norm: str = "group") -> Path:
    """A folder with configuration and feature extractor, without weights."""
    folder.mkdir(parents=True, exist_ok=True)
    wave_config(kind, norm).save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return folder


def module(family: str = "whisper", folder: Path | None = None, seed: int = 0, **settings: Any) -> ASRModule:
    """A recogniser with random weights: ``whisper``, ``wav2vec2`` or ``hubert``."""
    place = folder or Path(mkdtemp(prefix="tiny-asr-"))
    (whisper if family == "whisper" else lambda p: wave(p, family))(place)
    torch.manual_seed(seed)
    return ASRModule(**({"model": f"local-dir:{place}", "random_init": True, "lr": 1e-3} | settings))


EN = Task("en", [Source(["a.tar"])], Budget(steps=1), language="en")
ES = Task("es", [Source(["a.tar"])], Budget(steps=1), language="es")


def batch_of(module: ASRModule, texts: list[str]) -> Batch:
    """Transcripts, sung, as a batch that can be trained on."""
    samples = [{"audio": sung(text), "text": text} for text in texts]
    rows = [{"__key__": str(i), **module.transform(s, False)} for i, s in enumerate(samples)]
    assert not any(SKIP in row for row in rows)
    return module.collate(rows)


TEXTS = ["go see", "we don't go", "no"]


CASES: Mapping[str, tuple[Callable[[], Module], Callable[[Path], Stream]]] = {
    "asr-whisper": (lambda: module("whisper"), stream),
    "asr-whisper-ctc": (lambda: module("whisper", kind="ctc"), stream),
    "asr-wav2vec2": (lambda: module("wav2vec2", trainable=("features", "encoder", "head")), stream),
}
