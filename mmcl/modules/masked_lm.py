"""Language models that fill in masked tokens: continued pretraining of encoders on documents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers

from mmcl.errors import ConfigError
from mmcl.modules.base import OptimizerBuilder
from mmcl.modules.language import _LanguageModule
from mmcl.modules.objectives import IGNORED
from mmcl.modules.text_packing import named_token, token_id
from mmcl.outputs import Objective
from mmcl.schedule import Schedule

REPLACED, RANDOM = 0.8, 0.1
"""Of the chosen tokens: part that becomes the mask token, part that becomes a random one; the rest stays."""


class MaskedLMModule(_LanguageModule):
    """Any masked language model of transformers (`AutoModelForMaskedLM`): BERT, RoBERTa and their kin.

    A source's documents are joined in the order of its shards, a separator after each, and cut into blocks between a
    start token and a separator. Of a block's tokens `share`, at least one, are chosen: 80 % of these are masked, 10 %
    replaced by random tokens, 10 % left, and all are predicted (Devlin et al., BERT, 2019). Which ones is drawn anew in
    each epoch, and is fixed for a sample of an evaluation set.

    Args:
        model: a folder (``local-dir:PATH`` or its path), ``asset:NAME``, ``package:some.package/FOLDER``, a ``.json``
            configuration or ``hf-hub:ORGANISATION/NAME``.
        tokenizer: folder or model whose tokenizer to use, for a bare configuration. None: the model's own.
        block: tokens of one sample, the two around a block included.
        share: part of the tokens that is predicted.
        end_token: what follows each document. None: the tokenizer's separator.
        checkpoint: file of weights (safetensors, or torch's format without code), also of mmcl.
        random_init: ignore the model's weights: pretrain from scratch.
        gradient_checkpointing: compute activations anew in the backward pass: less memory, a third more time.
        objective: `CrossEntropy` over all chosen tokens by default.
        lr: learning rate; each task may scale it.
        weight_decay: of the default optimizer; vectors and scalars are not decayed.
        betas: of the default optimizer.
        schedule: factor on the rate over a task's steps. None: 10 % warm-up, then cosine to 0.
        optimizer: takes parameter groups and returns an optimizer, in place of AdamW.

    Weights are float32; mixed precision is the Trainer's.
    """

    kind = transformers.AutoModelForMaskedLM
    specials = 2
    predicted = "masked tokens (pseudo-perplexity; the masks are fixed)"

    def __init__(
        self,
        model: str,
        tokenizer: str | None = None,
        block: int = 128,
        share: float = 0.15,
        end_token: str | None = None,
        checkpoint: str | None = None,
        random_init: bool = False,
        gradient_checkpointing: bool = False,
        objective: Objective | None = None,
        lr: float = 5e-5,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
        schedule: Schedule | None = None,
        optimizer: OptimizerBuilder | None = None,
    ) -> None:
        if not 0 < share < 1:
            raise ConfigError(f"MaskedLMModule: share is {share}; it must be within (0, 1)")
        super().__init__(
            *(model, tokenizer, block, end_token, checkpoint, random_init, gradient_checkpointing),
            *(objective, lr, weight_decay, betas, schedule, optimizer),
        )
        self.share = share
        self.fixed = torch.tensor(sorted({*self.tokenizer.all_special_ids, self.packing.end}))
        embeddings: Any = self.network
        rows = int(embeddings.get_input_embeddings().weight.shape[0])
        self.vocabulary = min(len(self.tokenizer), rows)  # a tokenizer may have special tokens beyond the embeddings

    def _end(self, token: str | None) -> int:
        default = _first(self.tokenizer.sep_token_id, self.tokenizer.eos_token_id)
        return named_token(self.tokenizer, token, default)

    def _specials(self) -> Mapping[str, int]:
        known = self.tokenizer
        self.mask = token_id(known.mask_token_id, "mask token")
        self.start = token_id(_first(known.cls_token_id, known.bos_token_id), "start token")
        return {"mask token": self.mask, "start token": self.start}

    def transform(self, sample: dict[str, Any], augment: bool) -> dict[str, Any]:
        """A block's tokens and their bytes -> ``input_ids``, ``attention_mask``, ``targets``, ``target_bytes`` (L,).

        The token that a block shares with the next one is left to that.
        """
        size = self.block - self.specials
        tokens = torch.tensor([self.start, *sample["tokens"][:size], self.packing.end])
        sizes = torch.tensor([0, *sample["bytes"][:size], 0])
        free = (~torch.isin(tokens, self.fixed)).nonzero()[:, 0]
        count = max(1, round(self.share * len(free))) if len(free) else 0
        chosen = free[torch.randperm(len(free))[:count]]
        targets = torch.full_like(tokens, IGNORED)
        targets[chosen] = tokens[chosen]
        fate = torch.rand(count)
        others = torch.randint(self.vocabulary, (count,))
        new = torch.where(fate < REPLACED, self.mask, torch.where(fate < REPLACED + RANDOM, others, tokens[chosen]))
        masked = tokens.clone()
        masked[chosen] = new
        return {
            "input_ids": self.padded(masked, self.padding),
            "attention_mask": self.padded(torch.ones_like(tokens), 0),
            "targets": self.padded(targets, IGNORED),
            "target_bytes": self.padded(torch.where(targets == IGNORED, 0, sizes), 0),
        }


def _first(*ids: int | None) -> int | None:
    return next((i for i in ids if i is not None), None)
