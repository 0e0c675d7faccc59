"""A CLIP model of a few thousand weights, with a vocabulary of a few words, and what the tests of modules share."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from mmcl.modules.clip import CLIPModule
from mmcl.outputs import Batch
from mmcl.stream import Budget, Source, Task

NAMES = ["cat", "dog", "tree", "house", "ball"]
WORDS = ["a", "photo", "drawing", "of", "red", "green", "blue", "on", "the", "table", ".", *NAMES]


def model_config(**changes: Any) -> dict[str, Any]:
    config: dict[str, Any] = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {
            "context_length": 10,
            "vocab_size": len(WORDS) + 4,
            "width": 32,
            "heads": 2,
            "layers": 2,
            "hf_tokenizer_name": "words",
        },
    }
    return config | changes


def write_model(folder: Path, config: dict[str, Any] | None = None, end_last: bool = True) -> Path:
    """A folder as open_clip's ``local-dir:`` wants it, without weights."""
    folder.mkdir(parents=True, exist_ok=True)
    preprocess = {"mean": [0.5, 0.4, 0.3], "std": [0.25, 0.2, 0.3], "interpolation": "bilinear"}
    content = {"model_cfg": config or model_config(), "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    words = ["<pad>", "<unk>", "<start>", *WORDS]
    vocabulary = {word: i for i, word in enumerate([*words, "<end>"] if end_last else ["<end>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [(name, vocabulary[name]) for name in ("<start>", "<end>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=special)
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<start>", "eos_token": "<end>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return folder


def picture(seed: int = 0, size: tuple[int, int] = (40, 36)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def make_batch(module: CLIPModule, size: int = 6, seed: int = 0) -> Batch:
    samples = [
        {"image": picture(seed + i), "text": f"a photo of a {NAMES[i % 5]} on the {WORDS[i % 16]}", "labels": i % 5}
        for i in range(size)
    ]
    rows = [module.transform(sample, False) for sample in samples]
    batch: Batch = {key: torch.stack([row[key] for row in rows]) for key in ("image", "text")}
    return batch | {"labels": torch.tensor([row["labels"] for row in rows]), "__index__": torch.arange(size) + seed}


def make_task(**changes: Any) -> Task:
    settings: dict[str, Any] = {"class_names": NAMES, "templates": ["a photo of a {}", "a drawing of a {}"]}
    return Task("things", [Source(["a.tar"])], Budget(steps=2), **(settings | changes))


@pytest.fixture(scope="session")
def tools() -> SimpleNamespace:
    """The functions above: test modules cannot import a conftest."""
    return SimpleNamespace(
        names=NAMES, config=model_config, write=write_model, picture=picture, batch=make_batch, task=make_task
    )


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny-clip")


@pytest.fixture
def make(folder: Path) -> Callable[..., CLIPModule]:
    def build(seed: int = 0, **settings: Any) -> CLIPModule:
        torch.manual_seed(seed)
        settings = {"model": f"local-dir:{folder}", "random_init": True} | settings
        return CLIPModule(**settings)

    return build
