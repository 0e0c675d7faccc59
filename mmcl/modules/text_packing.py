"""Documents to blocks of tokens: what the modules of language models share."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from tokenizers import Tokenizer
from torch import nn

from mmcl.errors import ConfigError
from mmcl.modules import hf_source, places
from mmcl.modules.hf_source import FAULTS, HFSource
from mmcl.modules.places import line

LEAST_COVERED = 0.8
"""Part of a model's embeddings that its tokenizer must name; vocabularies are rounded up by far less."""


class TextPacking:
    """`mmcl.outputs.Packing` by a tokenizer: every document followed by an end token.

    What looks like a special token inside a document is text. A token stands for the document's bytes from where the
    token before it ended to where it ends, so that the bytes of all tokens are those of the document in UTF-8, whatever
    the tokenizer normalises away; the end token takes what follows the last token.

    Args:
        tokenizer: of transformers, on the tokenizers library.
        block: tokens that a sample predicts.
        end: id of the end token.
    """

    def __init__(self, tokenizer: Any, block: int, end: int) -> None:
        self.block = block
        self.end = end
        self._tokenizer = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())  # a copy: files ask for truncation
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        made_of = f"{end} {self._tokenizer.to_str()}"
        self.fingerprint = hashlib.blake2b(made_of.encode(), digest_size=16).hexdigest()

    def encode(self, texts: list[str]) -> list[tuple[list[int], list[int]]]:
        """For each document its token ids, the end token included, and how many bytes of it each one stands for."""
        found = []
        for text, encoding in zip(texts, self._tokenizer.encode_batch(texts, add_special_tokens=False), strict=True):
            points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
            sizes = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
            byte_of = np.concatenate([[0], np.cumsum(sizes)])
            ends = np.maximum.accumulate(np.array([0, *(stop for _, stop in encoding.offsets)], np.int64))
            spans = np.diff(np.append(byte_of[ends], byte_of[-1]))
            found.append(([*encoding.ids, self.end], spans.tolist()))
        return found


def load_tokenizer(source: HFSource, name: str | None) -> Any:
    """The tokenizer beside a model, or that of another place.

    Args:
        source: the model.
        name: a folder with a tokenizer, or the name of a model whose tokenizer it is; None takes the model's own.

    Raises:
        ConfigError: it is missing, damaged, or not one of the tokenizers library.
    """
    if name is None:
        tokenizer = source.part(transformers.AutoTokenizer, "tokenizer")
    else:
        folder = places.folder(name) or (Path(name).expanduser() if Path(name).expanduser().is_dir() else None)
        if folder is None:
            tokenizer = hf_source.find(name).part(transformers.AutoTokenizer, "tokenizer")
        else:
            try:
                tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
            except FAULTS as error:
                raise ConfigError(f"tokenizer '{name}' cannot be loaded: {line(error)}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise ConfigError(
            f"the tokenizer of '{name or source.model}' does not say which bytes a token stands for; "
            "take one with a tokenizer.json"
        )
    return tokenizer


def check_tokenizer(tokenizer: Any, network: nn.Module, model: str, used: Mapping[str, int]) -> None:
    """Refuse the tokenizer of another model.

    Args:
        tokenizer: of transformers.
        network: with its embeddings.
        model: its name, for messages.
        used: special tokens that the module works with: what for -> id. Others that transformers has added beyond the
            embeddings (it does so for some GGUF files) never occur.

    Raises:
        ConfigError: it has tokens without an embedding, or far fewer tokens than there are embeddings.
    """
    embeddings: Any = network
    rows = int(embeddings.get_input_embeddings().weight.shape[0])
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    size = max((i for i in tokenizer.get_vocab().values() if i not in special), default=-1) + 1
    outside = [f"its {what} is token {i}" for what, i in used.items() if i >= rows]
    if size > rows:
        outside = [f"its tokenizer has {size} tokens"]
    elif len(tokenizer) < LEAST_COVERED * rows:
        outside = [f"its tokenizer has only {len(tokenizer)} tokens"]
    if outside:
        raise ConfigError(f"model '{model}' has {rows} embeddings, but {outside[0]}; the tokenizer is another model's")


def token_id(found: int | None, what: str) -> int:
    """A special token's id.

    Raises:
        ConfigError: the tokenizer has none.
    """
    if found is None:
        raise ConfigError(f"the tokenizer has no {what}")
    return found


def named_token(tokenizer: Any, token: str | None, default: int | None) -> int:
    """The id of the token that was named as `end_token`, or a default one.

    Raises:
        ConfigError: the tokenizer has no such token, or no default.
    """
    if token is None:
        if default is None:
            raise ConfigError("the tokenizer has no end token; name one of its tokens as `end_token`")
        return default
    vocabulary = tokenizer.get_vocab()
    if token not in vocabulary:
        raise ConfigError(f"the tokenizer has no token '{token}', which was named as `end_token`")
    return int(vocabulary[token])
