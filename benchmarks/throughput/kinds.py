"""Modules of every kind with random weights and made-up samples, of a size whose step takes a tenth of a second."""

from __future__ import annotations

import atexit
import io
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmcl.datamodules import StreamDataModule, write_shard
from mmcl.modules.base import Module
from mmcl.stream import Budget, Source, Stream, Task

SAMPLES = 64
CLASSES = ("one", "two", "three", "four")


@cache
def place() -> Path:
    """A folder that goes when the process does."""
    folder = Path(tempfile.mkdtemp(prefix="mmcl-throughput-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@dataclass(frozen=True)
class Setting:
    """One kind of module with its data; it stands in for `pocket.Setting`.

    Args:
        build: makes the module.
        samples: makes the samples of its shard.
        batch_size: of a step.
        language: of the task, for recognisers.
    """

    build: Callable[[], Module]
    samples: Callable[[], Iterator[dict[str, Any]]]
    batch_size: int
    language: str | None = None
    save_every: int = 0

    def module(self) -> Module:
        """The module, the same in every process."""
        torch.manual_seed(0)
        return self.build()

    def data(self, steps: int) -> StreamDataModule:
        """One task of so many steps."""
        shard = place() / f"{self.samples.__name__}.tar"
        if not shard.exists():
            write_shard(shard, self.samples())
        fields = {"conversation": ("json",), "image": ("png",)} if self.samples is questions else None
        source = Source([str(shard)], fields=fields)
        names = CLASSES if self.samples is pictures else None
        task = Task("task", [source], Budget(steps=steps), class_names=names, language=self.language)
        return StreamDataModule(Stream("throughput", [task]), self.batch_size)


def documents() -> Iterator[dict[str, Any]]:
    """Texts of random words."""
    random = np.random.default_rng(0)
    for i in range(4 * SAMPLES):
        letters = random.choice(list("abcdefghij    "), 2000)
        yield {"__key__": f"d{i:04d}", "txt": "x" + "".join(letters)}


def recordings() -> Iterator[dict[str, Any]]:
    """Two seconds of noise with a short transcript."""
    import soundfile

    random = np.random.default_rng(0)
    for i in range(SAMPLES):
        file = io.BytesIO()
        soundfile.write(file, (0.1 * random.standard_normal(32_000)).astype(np.float32), 16_000, format="WAV")
        yield {"__key__": f"r{i:04d}", "wav": file.getvalue(), "txt": "a few words of text"}


def pictures() -> Iterator[dict[str, Any]]:
    """Noise with a class and a caption."""
    random = np.random.default_rng(0)
    for i in range(SAMPLES):
        image = Image.fromarray(random.integers(0, 255, (64, 64, 3), dtype=np.uint8))
        yield {"__key__": f"p{i:04d}", "png": image, "cls": i % len(CLASSES), "txt": f"picture {i}"}


def questions() -> Iterator[dict[str, Any]]:
    """Noise with a question and its answer."""
    for sample in pictures():
        turns = [{"role": "user", "content": "What is this?"}, {"role": "assistant", "content": sample["txt"]}]
        yield {"__key__": sample["__key__"], "png": sample["png"], "json": {"conversations": turns}}


def _tokenizer_folder() -> Path:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = place() / "tokenizer"
    symbols = ["<pad>", "<end>", "<mask>", "<start>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE(vocab={s: i for i, s in enumerate(symbols)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    names = {"pad_token": "<pad>", "eos_token": "<end>", "mask_token": "<mask>", "bos_token": "<start>"}
    PreTrainedTokenizerFast(tokenizer_object=made, cls_token="<start>", sep_token="<end>", **names).save_pretrained(
        folder
    )
    return folder


def _config(name: str, config: Any) -> str:
    file = place() / f"{name}.json"
    config.to_json_file(file, use_diff=False)
    return str(file)


LANGUAGE = {
    "vocab_size": 260,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "pad_token_id": 0,
    "bos_token_id": 3,
    "eos_token_id": 1,
}
SPEECH = {
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "conv_dim": [64] * 7,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "layerdrop": 0.0,
    "feat_extract_norm": "layer",
}


def causal_lm() -> Module:
    """Llama of 3 M weights over bytes."""
    from transformers import LlamaConfig

    from mmcl.modules.causal_lm import CausalLMModule

    keys = LANGUAGE.keys() - {"hidden_dropout_prob", "attention_probs_dropout_prob"}
    model = _config("llama", LlamaConfig(**{k: LANGUAGE[k] for k in keys}))
    return CausalLMModule(model, tokenizer=str(_tokenizer_folder()), block=128, random_init=True, lr=1e-4)


def masked_lm() -> Module:
    """BERT of 3 M weights over bytes."""
    from transformers import BertConfig

    from mmcl.modules.masked_lm import MaskedLMModule

    model = _config("bert", BertConfig(**LANGUAGE))
    return MaskedLMModule(model, tokenizer=str(_tokenizer_folder()), block=128, random_init=True, lr=1e-4)


def speech_pretraining() -> Module:
    """wav2vec 2.0 of 1 M weights on two seconds."""
    from transformers import Wav2Vec2Config

    from mmcl.modules.speech_pretraining import SpeechPretrainingModule

    return SpeechPretrainingModule(_config("wav2vec2", Wav2Vec2Config(**SPEECH)), random_init=True, lr=1e-4)


def asr_ctc() -> Module:
    """CTC on wav2vec 2.0 of 1 M weights on two seconds."""
    from transformers import Wav2Vec2Config

    from mmcl.modules.asr import ASRModule

    config = Wav2Vec2Config(**SPEECH, final_dropout=0.0)
    return ASRModule(_config("wav2vec2-ctc", config), random_init=True, lr=1e-4)


def image_classifier() -> Module:
    """MobileNetV2 at 64 px."""
    from mmcl.modules.image_classifier import ImageClassifierModule

    return ImageClassifierModule("mobilenetv2_100", random_init=True, image_size=64, lr=1e-4)


KINDS: dict[str, Setting] = {
    "causal_lm": Setting(causal_lm, documents, 8),
    "masked_lm": Setting(masked_lm, documents, 8),
    "speech_pretraining": Setting(speech_pretraining, recordings, 8),
    "asr_ctc": Setting(asr_ctc, recordings, 8, "en"),
    "image_classifier": Setting(image_classifier, pictures, 16),
}
"""Name on the command line -> what is measured."""
