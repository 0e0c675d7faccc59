"""Modules of every kind with made-up samples: what `kind` measures."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmcl.benchmarks.throughput import networks
from mmcl.benchmarks.throughput.networks import place
from mmcl.datamodules import StreamDataModule, write_shard
from mmcl.modules.base import Module
from mmcl.stream import Budget, Source, Stream, Task

SAMPLES = 64
CLASSES = ("one", "two", "three", "four")


@dataclass(frozen=True)
class Setting:
    """One kind of module with its data; it stands in for `pocket.Setting`.

    Args:
        build: makes the module.
        samples: makes the samples of its shard.
        batch_size: of a step.
        fields: members of a sample that are read, in place of the usual ones.
        classes: names of the task's classes.
        language: of the task, for recognisers.
    """

    build: Callable[[], Module]
    samples: Callable[[], Iterator[dict[str, Any]]]
    batch_size: int
    fields: Mapping[str, Sequence[str]] | None = None
    classes: Sequence[str] | None = None
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
        source = Source([str(shard)], fields=self.fields)
        task = Task("task", [source], Budget(steps=steps), class_names=self.classes, language=self.language)
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


KINDS: dict[str, Setting] = {
    "causal_lm": Setting(networks.causal_lm, documents, 8),
    "masked_lm": Setting(networks.masked_lm, documents, 8),
    "speech_pretraining": Setting(networks.speech_pretraining, recordings, 8),
    "asr_ctc": Setting(networks.asr_ctc, recordings, 8, language="en"),
    "asr_seq2seq": Setting(networks.asr_seq2seq, recordings, 8, language="en"),
    "audio_text": Setting(networks.audio_text, recordings, 8),
    "image_classifier": Setting(networks.image_classifier, pictures, 16, classes=CLASSES),
    "captioner": Setting(networks.captioner, pictures, 16, {"image": ("png",), "text": ("txt",)}),
    "mllm": Setting(networks.mllm, questions, 8, {"image": ("png",), "conversation": ("json",)}),
}
"""Name on the command line -> what is measured."""
