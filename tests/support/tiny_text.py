"""Language models of a few thousand weights over bytes, and documents of two kinds."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import BertConfig, LlamaConfig, PreTrainedTokenizerFast

from mmcl import Budget, EvalSet, Source, Stream, Task
from mmcl.datamodules.write import write_shard
from mmcl.modules.causal_lm import CausalLMModule
from mmcl.modules.masked_lm import MaskedLMModule

SPECIALS = ["<pad>", "<end>", "<start>", "<mask>"]
WORDS = {
    "weather": ["rain", "wind", "and", "clouds", "over", "the", "café", "today", "sun"],
    "numbers": ["SEVEN", "TWO", "PLUS", "IS", "NINE", "Ä", "中", "LESS"],
    "plain": ["a", "word", "of", "plain", "text", "then", "more"],
}
BLOCK = 16


def tokenizer() -> PreTrainedTokenizerFast:
    """Every byte a token, a few pairs of them merged; 4 special tokens."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [("t", "h"), ("th", "e"), ("o", "r"), ("N", "E")]
    vocabulary = {token: i for i, token in enumerate([*SPECIALS, *symbols, *(a + b for a, b in pairs)])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    names = {"pad_token": "<pad>", "eos_token": "<end>", "bos_token": "<start>", "mask_token": "<mask>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, sep_token="<end>", cls_token="<start>", **names)


def write_model(folder: Path, kind: str = "causal", **changes: Any) -> Path:
    """A folder with a configuration and the tokenizer, without weights."""
    known = tokenizer()
    sizes: dict[str, Any] = {
        "vocab_size": len(known),
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": known.pad_token_id,
        "bos_token_id": known.bos_token_id,
        "eos_token_id": known.eos_token_id,
        "tie_word_embeddings": True,
        **changes,
    }
    config = LlamaConfig(**sizes) if kind == "causal" else BertConfig(**sizes)
    config.architectures = ["LlamaForCausalLM" if kind == "causal" else "BertForMaskedLM"]
    config.save_pretrained(folder)
    known.save_pretrained(folder)
    return folder


def documents(kind: str, count: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Samples with a text of 3 to 20 words."""
    random = np.random.default_rng([seed, len(kind)])
    for i in range(count):
        words = random.choice(WORDS[kind], random.integers(3, 20))
        yield {"__key__": f"{kind}-{i:03d}", "txt": " ".join(words)}


@cache
def model(kind: str) -> Path:
    """A folder of this process with a tiny model."""
    return write_model(Path(tempfile.mkdtemp(prefix="mmcl-tiny-text-")) / kind, kind)


def causal(**changes: Any) -> CausalLMModule:
    return CausalLMModule(**{"model": str(model("causal")), "random_init": True, "block": BLOCK, "lr": 1e-2, **changes})


def masked(**changes: Any) -> MaskedLMModule:
    return MaskedLMModule(**{"model": str(model("masked")), "random_init": True, "block": BLOCK, "lr": 1e-2, **changes})


def stream(folder: Path, steps: int = 6) -> Stream:
    """Two tasks and two columns, `plain` held out."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind, count in (("weather", 24), ("numbers", 20), ("plain", 12)):
        write_shard(folder / f"{kind}.tar", documents(kind, count))

    def source(kind: str) -> Source:
        return Source([str(folder / f"{kind}.tar")], name=kind)

    tasks = [
        Task("weather", [source("weather")], Budget(steps=steps), evaluates="weather"),
        Task("numbers", [source("numbers")], Budget(steps=steps)),
    ]
    evals = [
        EvalSet("weather", source("weather"), "perplexity", group="task"),
        EvalSet("plain", source("plain"), "perplexity"),
    ]
    return Stream("tiny_text", tasks, evals)


CASES: dict[str, tuple[Callable[[], Any], Callable[[Path], Stream]]] = {
    "causal_lm": (causal, stream),
    "masked_lm": (masked, stream),
}
"""Name -> (a module, its stream with the shards in a folder)."""
