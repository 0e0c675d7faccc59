"""A whole set-up small enough for a test of the command line: shards of pictures, a tiny open_clip model, a config."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from mmcl.datamodules.write import write_shard

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 60, 220), "grey": (128, 128, 128)}
COUNTS = ["none", "one", "two", "three", "four"]
WORDS = ["a", "photo", "picture", "of", "square", "with", "dots", "stripes", "and", *COUNTS, *COLOURS]
SIZE = 16


def pictures(style: str, count: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Samples of coloured squares with dots or stripes: picture, caption, the colour's place as label."""
    random = np.random.default_rng([seed, len(style)])
    for i in range(count):
        label = i % len(COLOURS)
        name = list(COLOURS)[label]
        pixels = np.full((SIZE, SIZE, 3), COLOURS[name], np.int64) + random.integers(-40, 40, (SIZE, SIZE, 3))
        if style == "stripes":
            pixels[:: 2 + i % 3] //= 2
        else:
            pixels[:: 2 + i % 3, :: 2 + i % 2] //= 2
        caption = f"a {name} square with {style} {COUNTS[i // 5 % 5]} and {COUNTS[i % 5]}"  # each one once
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        yield {"__key__": f"{style}-{i:03d}", "png": image, "txt": caption, "cls": label}


def write_model(folder: Path, width: int = 16) -> Path:
    """A folder for `local-dir:`: a configuration and a vocabulary of a few words, no weights."""
    folder.mkdir(parents=True, exist_ok=True)
    special = ["<pad>", "<unk>", "<start>"]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS, "<end>"])}
    vision = {"image_size": SIZE, "layers": 1, "width": width, "head_width": 8, "patch_size": 8}
    text = {
        "context_length": 11,
        "vocab_size": len(vocabulary),
        "width": 16,
        "heads": 2,
        "layers": 1,
        "hf_tokenizer_name": "words",
    }
    config = {"model_cfg": {"embed_dim": 12, "vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(name, vocabulary[name]) for name in ("<start>", "<end>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=ends)
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<start>", "eos_token": "<end>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return folder


def config(folder: Path, steps: Sequence[int] = (8, 6)) -> dict[str, Any]:
    """The settings of a run over two tasks; shards and model lie in `folder`."""

    def shard(name: str) -> list[str]:
        return [str(folder / f"{name}.tar")]

    names, templates = list(COLOURS), ["a photo of a {} square", "a {} picture"]
    held = {"shards": shard("held"), "augment": False}
    return {
        "model": {
            "class_path": "CLIPModule",
            "init_args": {"model": f"local-dir:{folder / 'model'}", "random_init": True, "lr": 0.01},
        },
        "data": {
            "batch_size": 8,
            "stream": {
                "name": "tiny",
                "protocol": "Coloured squares in two styles.",
                "tasks": [
                    {
                        "name": name,
                        "train": [{"shards": shard(name)}],
                        "budget": {"steps": count},
                        "evaluates": name,
                        "class_names": names,
                    }
                    for name, count in zip(("dots", "stripes"), steps, strict=True)
                ],
                "evals": [
                    *(
                        {
                            "name": name,
                            "source": {"shards": shard(name), "augment": False},
                            "class_names": names,
                            "templates": templates,
                            "group": "trained",
                            "subset": 8,
                        }
                        for name in ("dots", "stripes")
                    ),
                    {"name": "held", "source": held, "class_names": names, "templates": templates},
                    {"name": "pairs", "source": held, "probe": "retrieval", "subset": 6},
                ],
                "sources": {"reference": {"shards": shard("reference"), "augment": False}},
            },
        },
        "trainer": {"accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 2},
        "save_every": 3,
    }


def build(folder: Path, changes: Mapping[str, Any] | None = None, steps: Sequence[int] = (8, 6)) -> Path:
    """Write shards, model and ``tiny.yaml``, with dotted keys changed.

    Returns:
        The config file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, style, count in (
        ("dots", "dots", 24),
        ("stripes", "stripes", 24),
        ("held", "dots", 15),
        ("reference", "stripes", 16),
    ):
        write_shard(folder / f"{name}.tar", pictures(style, count, seed=len(name)))
    write_model(folder / "model")
    return write_config(folder, config(folder, steps), changes)


def write_config(
    folder: Path, settings: dict[str, Any], changes: Mapping[str, Any] | None = None, name: str = "tiny"
) -> Path:
    """Write a config with dotted keys (numbers count in lists) changed."""
    for dotted, value in (changes or {}).items():
        *path, last = [int(p) if p.isdigit() else p for p in dotted.split(".")]
        inner: Any = settings
        for part in path:
            inner = inner[part]
        inner[last] = value
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(settings, sort_keys=False))
    return file


def command(*arguments: str | Path) -> list[str]:
    """`mmcl` in a process of its own."""
    return [sys.executable, "-m", "mmcl", *map(str, arguments)]


def environment(**more: str) -> dict[str, str]:
    """Of such a process: one thread, offline."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **more}


def mmcl(*arguments: str | Path, cwd: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    """Run `mmcl` to its end."""
    return subprocess.run(
        command(*arguments), cwd=cwd, env=environment(**more), text=True, capture_output=True, timeout=300
    )


def results(folder: Path) -> dict[str, Any]:
    """results.json of a run."""
    content: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return content


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Records of metrics.jsonl without their time."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "time"} for line in lines]


def network(folder: Path, name: str = "last") -> dict[str, torch.Tensor]:
    """Weights of a checkpoint."""
    content: dict[str, Any] = torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
    return content["network"]


def differences(one: Path, other: Path) -> list[str]:
    """What differs between two runs that should be equal: weights bit by bit, the matrix, the metrics but for time."""
    found = []
    a, b = network(one), network(other)
    found += [f"weight {k}" for k in a.keys() | b.keys() if k not in a or k not in b or not torch.equal(a[k], b[k])]
    if results(one)["matrix"] != results(other)["matrix"]:
        found.append("matrix")
    if (one / "matrix.csv").read_bytes() != (other / "matrix.csv").read_bytes():
        found.append("matrix.csv")
    if metrics(one) != metrics(other):
        found.append("metrics.jsonl")
    return found
