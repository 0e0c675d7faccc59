"""Modules of every kind with random weights, of a size whose step takes a tenth of a second."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from mmcl.modules.base import Module


@cache
def place() -> Path:
    """A folder that goes when the process does."""
    folder = Path(tempfile.mkdtemp(prefix="mmcl-throughput-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


WHISPER = ("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>", "<|nospeech|>")


def _write_tokenizer(folder: Path, *more: str) -> Path:
    """Bytes, four special tokens, and `more` special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    symbols = [*SYMBOLS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE(vocab={s: i for i, s in enumerate(symbols)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    names = {"pad_token": "<pad>", "eos_token": "<end>", "mask_token": "<mask>", "bos_token": "<start>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=made, cls_token="<start>", sep_token="<end>", **names)
    fast.add_special_tokens({"additional_special_tokens": list(more)})
    fast.save_pretrained(folder)
    return folder


def _config(name: str, config: Any) -> str:
    file = place() / f"{name}.json"
    config.to_json_file(file, use_diff=False)
    return str(file)


SYMBOLS = ("<pad>", "<end>", "<mask>", "<start>")
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
    return CausalLMModule(
        model, tokenizer=str(_write_tokenizer(place() / "tokenizer")), block=128, random_init=True, lr=1e-4
    )


def masked_lm() -> Module:
    """BERT of 3 M weights over bytes."""
    from transformers import BertConfig

    from mmcl.modules.masked_lm import MaskedLMModule

    model = _config("bert", BertConfig(**LANGUAGE))
    return MaskedLMModule(
        model, tokenizer=str(_write_tokenizer(place() / "tokenizer")), block=128, random_init=True, lr=1e-4
    )


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


def asr_seq2seq() -> Module:
    """Whisper of 2 M weights on two seconds."""
    from transformers import WhisperConfig, WhisperFeatureExtractor

    from mmcl.modules.asr import ASRModule

    folder = _write_tokenizer(place() / "whisper", *WHISPER)
    layers = {f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in WIDTHS.items()}
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 260)
    vocabulary = {"vocab_size": 260 + len(WHISPER), "decoder_start_token_id": 261, "suppress_tokens": None, **ends}
    lengths = {"max_source_positions": 100, "max_target_positions": 64, "begin_suppress_tokens": None}
    WhisperConfig(d_model=128, **layers, **vocabulary, **lengths).save_pretrained(folder)
    WhisperFeatureExtractor(chunk_length=2).save_pretrained(folder)
    return ASRModule(str(folder), random_init=True, lr=1e-4)


WIDTHS = {"layers": 3, "attention_heads": 4, "ffn_dim": 512}


def audio_text() -> Module:
    """CLAP of 1 M weights on two seconds."""
    from transformers import ClapConfig, ClapFeatureExtractor

    from mmcl.modules.audio_text import AudioTextModule

    folder = _write_tokenizer(place() / "clap")
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}
    places = {"vocab_size": 260, "max_position_embeddings": 80, "pad_token_id": 0}
    swin: dict[str, Any] = {"num_mel_bins": 64, "spec_size": 256, "patch_embeds_hidden_size": 24, "hidden_size": 192}
    swin |= {"depths": [1, 1, 1, 1], "num_attention_heads": [2, 2, 4, 4], "drop_path_rate": 0.0}
    ClapConfig(text_config=sizes | places | DROPOUTS, audio_config=swin | DROPOUTS).save_pretrained(folder)
    ClapFeatureExtractor(sampling_rate=16_000, max_length_s=2, truncation="rand_trunc").save_pretrained(folder)
    return AudioTextModule(str(folder), random_init=True, context=40, lr=1e-4)


DROPOUTS = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def captioner() -> Module:
    """CoCa of 3 M weights on pictures of 64 px."""
    from mmcl.modules.captioner import CaptionerModule

    folder = _write_tokenizer(place() / "coca")
    text = {"context_length": 40, "vocab_size": 260, "width": 128, "heads": 4, "layers": 3}
    vision = {"image_size": 64, "layers": 3, "width": 128, "head_width": 32, "patch_size": 8}
    pooled = {"attentional_pool": True, "attn_pooler_heads": 4, "attn_pooler_queries": 16, "output_tokens": True}
    named = {"hf_tokenizer_name": str(folder), "embed_cls": True, "output_tokens": True, "pool_type": "last"}
    parts = {"vision_cfg": vision | pooled, "text_cfg": text | named, "multimodal_cfg": text | {"attn_pooler_heads": 4}}
    config = {"model_cfg": {"embed_dim": 128, "custom_text": True, **parts}, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    return CaptionerModule(f"local-dir:{folder}", random_init=True, lr=1e-4)


def mllm() -> Module:
    """LLaVA of 2 M weights on pictures of 64 px."""
    from transformers import LlavaConfig

    from mmcl.modules.mllm import MLLMModule

    folder = _write_tokenizer(place() / "llava", "<image>")
    sizes = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 384}
    vision = {"model_type": "clip_vision_model", "image_size": 64, "patch_size": 8}
    text = {"model_type": "llama", "vocab_size": 261, "bos_token_id": 3, "eos_token_id": 1, "pad_token_id": 0}
    config = LlavaConfig(vision_config=sizes | vision, text_config=sizes | text, image_token_index=260)
    config.save_pretrained(folder)
    return MLLMModule(str(folder), random_init=True, max_length=160, lr=1e-4)
