"""Speech models of a few thousand weights, with shards of made-up sounds."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import ClapConfig, ClapFeatureExtractor, HubertConfig, PreTrainedTokenizerFast, Wav2Vec2Config

from mmcl.datamodules.write import write_shard
from mmcl.modules.audio_text import AudioTextModule
from mmcl.modules.base import Module
from mmcl.modules.speech_codebook import fit_codebook
from mmcl.modules.speech_pretraining import SpeechPretrainingModule
from mmcl.outputs import Audio
from mmcl.stream import Budget, EvalSet, Source, Stream, Task

RATE = 2000
SOUNDS = {"rise": 1.5, "fall": 0.6}
COMMON: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": [12, 12],
    "conv_kernel": [8, 4],
    "conv_stride": [8, 4],
    "num_conv_pos_embeddings": 6,
    "num_conv_pos_embedding_groups": 2,
    "feat_extract_norm": "layer",
    "mask_time_prob": 0.05,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "layerdrop": 0.0,
}


def sounds(kind: str, count: int, seed: int = 0) -> Iterator[Audio]:
    """Tones that rise or fall, between 0.6 and 1.1 seconds."""
    random = np.random.default_rng([seed, len(kind)])
    for _ in range(count):
        time = np.arange(int(RATE * random.uniform(0.6, 1.1))) / RATE
        pitch = random.uniform(80, 300)
        wave = np.sin(2 * np.pi * pitch * time ** SOUNDS[kind]) + 0.1 * random.standard_normal(len(time))
        yield Audio((0.3 * wave).astype(np.float32), RATE)


def wav(audio: Audio) -> bytes:
    """The recording as a file."""
    file = io.BytesIO()
    soundfile.write(file, audio.samples, audio.rate, format="WAV")
    return file.getvalue()


def write_sounds(file: Path, kind: str, count: int, seed: int = 0) -> Source:
    """A shard of recordings with captions."""
    rows = (
        {"__key__": f"{kind}-{i:02d}", "wav": wav(audio), "txt": f"tone number {i} will {kind}"}
        for i, audio in enumerate(sounds(kind, count, seed))
    )
    write_shard(file, rows)
    return Source([str(file)], name=kind, fields={"audio": ("wav",)})


def stream(folder: Path) -> Stream:
    """Two tasks of six steps, each with a column, and a held-out one."""
    sources = {kind: write_sounds(folder / f"{kind}.tar", kind, 18) for kind in SOUNDS}
    held = write_sounds(folder / "held.tar", "rise", 7, seed=1)
    return Stream(
        "tones",
        [Task(kind, [source], Budget(steps=6), evaluates=kind) for kind, source in sources.items()],
        [EvalSet(kind, source, "objective", group="trained", subset=8) for kind, source in sources.items()]
        + [EvalSet("held", held, "objective")],
        {"reference": sources["rise"]},
    )


def write_config(folder: Path, config: Any) -> Path:
    """A configuration alone."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{config.model_type}.json"
    config.to_json_file(file, use_diff=False)
    return file


def wav2vec2(folder: Path | None = None, **changes: Any) -> SpeechPretrainingModule:
    """A wav2vec 2.0 with random weights; `changes` go to its configuration."""
    folder = folder or Path(tempfile.mkdtemp())
    own = {"codevector_dim": 8, "proj_codevector_dim": 8, "num_codevectors_per_group": 6, "num_codevector_groups": 2}
    config = Wav2Vec2Config(**(COMMON | own | {"feat_quantizer_dropout": 0.0, "feat_proj_dropout": 0.0} | changes))
    return SpeechPretrainingModule(
        str(write_config(folder, config)),
        random_init=True,
        mask_span=4,
        distractors=5,
        gumbel=(2.0, 0.1, 0.8),  # falls within the few steps of a test
        rate=RATE,
        lr=1e-3,
    )


def hubert(folder: Path | None = None, **changes: Any) -> SpeechPretrainingModule:
    """A HuBERT with random weights and eight clusters."""
    folder = folder or Path(tempfile.mkdtemp())
    file = write_config(folder, HubertConfig(**(COMMON | {"feat_proj_dropout": 0.0} | changes)))
    tones = [audio for kind in SOUNDS for audio in sounds(kind, 6)]
    fit_codebook(tones, clusters=8, rate=RATE, window=32, hop=32).save(folder / "codebook.npz")
    return SpeechPretrainingModule(
        str(file),
        random_init=True,
        mask_span=4,
        codebook=str(folder / "codebook.npz"),
        code_width=8,
        rate=RATE,
        lr=1e-3,
    )


def write_clap(folder: Path) -> Path:
    """A folder with a configuration, a tokenizer of a few words and a feature extractor, no weights."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ["tone", "number", "will", *SOUNDS, "a", "that", *map(str, range(20))]
    vocabulary = {word: i for i, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("<s>", 0), ("</s>", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    text = {"vocab_size": len(vocabulary), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    audio = {"num_mel_bins": 16, "spec_size": 32, "window_size": 4, "patch_embeds_hidden_size": 8, "hidden_size": 16}
    audio |= {"depths": [1, 1], "num_attention_heads": [1, 2], "num_hidden_layers": 2, "drop_path_rate": 0.0}
    dropouts = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = ClapConfig(
        text_config=text | dropouts | {"intermediate_size": 24, "max_position_embeddings": 16},
        audio_config=audio | dropouts,
        projection_dim=12,
    )
    config.save_pretrained(folder)
    sizes = {"feature_size": 16, "sampling_rate": RATE, "hop_length": 32, "fft_window_size": 128, "max_length_s": 1}
    heard = ClapFeatureExtractor(**sizes, frequency_min=20, frequency_max=1000, truncation="rand_trunc")
    heard.save_pretrained(folder)
    return folder


def audio_text(folder: Path | None = None, **changes: Any) -> AudioTextModule:
    """A CLAP with random weights; `changes` are arguments of the module."""
    folder = write_clap(folder or Path(tempfile.mkdtemp()))
    return AudioTextModule(str(folder), **({"random_init": True, "context": 10, "lr": 1e-3} | changes))


def captioned(folder: Path) -> Stream:
    """Two tasks of six steps with captions, a retrieval column each, and a held-out classification."""
    fields = {"audio": ("wav",), "text": ("txt",)}
    sources = {kind: replace(write_sounds(folder / f"{kind}.tar", kind, 18), fields=fields) for kind in SOUNDS}
    rows = [(i % 2, audio) for kind in SOUNDS for i, audio in enumerate(sounds(kind, 4, seed=1))]
    labelled = ({"__key__": f"h{i}", "wav": wav(audio), "cls": label} for i, (label, audio) in enumerate(rows))
    write_shard(folder / "held.tar", labelled)
    held = Source([str(folder / "held.tar")], fields={"audio": ("wav",), "labels": ("cls",)})
    return Stream(
        "captioned tones",
        [Task(kind, [source], Budget(steps=6), evaluates=kind) for kind, source in sources.items()],
        [EvalSet(kind, source, "retrieval", group="trained", subset=8) for kind, source in sources.items()]
        + [EvalSet("held", held, "zero_shot", list(SOUNDS), ["a tone that will {}"], options={"k": 2})],
        {"reference": sources["rise"]},
    )


def batch_of(module: Module, kind: str = "rise", count: int = 4, seed: int = 0) -> dict[str, Any]:
    """A collated batch of made-up sounds."""
    rows = []
    for i, audio in enumerate(sounds(kind, count, seed)):
        torch.manual_seed(seed + i)
        rows.append({**module.transform({"audio": audio}, False), "__key__": str(i), "__index__": i})
    return module.collate(rows)


CASES: dict[str, tuple[Callable[[], Module], Callable[[Path], Stream]]] = {
    "wav2vec2": (wav2vec2, stream),
    "hubert": (hubert, stream),
    "audio_text": (audio_text, captioned),
}
