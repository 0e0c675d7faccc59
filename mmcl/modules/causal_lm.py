"""Language models that predict the next token: continued pretraining on documents."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import torch
import transformers

from mmcl.errors import RunError
from mmcl.modules.base import OptimizerBuilder
from mmcl.modules.language import _LanguageModule
from mmcl.modules.objectives import IGNORED
from mmcl.modules.text_packing import named_token
from mmcl.outputs import Batch, Objective, Outputs
from mmcl.schedule import Schedule


class CausalLMModule(_LanguageModule):
    """Any causal language model of transformers (`AutoModelForCausalLM`): Llama, Qwen, GPT-2 and their kin.

    A source's documents are joined in the order of its shards, an end token after each, and cut into blocks; every
    token but the source's first is predicted exactly once. Documents of one block see each other, as is usual in
    pretraining.

    Args:
        model: a folder (``local-dir:PATH`` or its path), ``asset:NAME``, ``package:some.package/FOLDER``, a ``.json``
            configuration, a ``.gguf`` file (dequantised) or ``hf-hub:ORGANISATION/NAME``.
        tokenizer: folder or model whose tokenizer to use, for a bare configuration. None: the model's own.
        block: tokens that one sample predicts.
        end_token: what follows each document. None: the tokenizer's end-of-sequence token.
        checkpoint: file of weights (safetensors, or torch's format without code), also of mmcl.
        random_init: ignore the model's weights: pretrain from scratch.
        gradient_checkpointing: compute activations anew in the backward pass: less memory, a third more time.
        objective: `CrossEntropy` over all valid tokens by default.
        lr: learning rate; each task may scale it.
        weight_decay: of the default optimizer; vectors and scalars are not decayed.
        betas: of the default optimizer.
        schedule: factor on the rate over a task's steps. None: 10 % warm-up, then cosine to 0.
        optimizer: takes parameter groups and returns an optimizer, in place of AdamW.

    Weights are float32; mixed precision is the Trainer's.
    """

    kind = transformers.AutoModelForCausalLM
    predicted = "next tokens"
    network_options = MappingProxyType({"use_cache": False})

    def __init__(
        self,
        model: str,
        tokenizer: str | None = None,
        block: int = 256,
        end_token: str | None = None,
        checkpoint: str | None = None,
        random_init: bool = False,
        gradient_checkpointing: bool = False,
        objective: Objective | None = None,
        lr: float = 5e-5,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.95),
        schedule: Schedule | None = None,
        optimizer: OptimizerBuilder | None = None,
    ) -> None:
        super().__init__(
            *(model, tokenizer, block, end_token, checkpoint, random_init, gradient_checkpointing),
            *(objective, lr, weight_decay, betas, schedule, optimizer),
        )

    def _end(self, token: str | None) -> int:
        return named_token(self.tokenizer, token, self.tokenizer.eos_token_id)

    def transform(self, sample: dict[str, Any], augment: bool) -> dict[str, Any]:
        """A block's tokens (block + 1 or fewer) and their bytes -> ``input_ids``, ``targets``, ``target_bytes`` (L,).

        Position i predicts token i + 1. Padding stands at the end, where no token before it sees it.
        """
        return {
            "input_ids": self.padded(sample["tokens"][:-1], self.padding),
            "targets": self.padded(sample["tokens"][1:], IGNORED),
            "target_bytes": self.padded(sample["bytes"][1:], 0),
        }

    def generate(self, batch: Batch, max_new_tokens: int = 64, **options: Any) -> Outputs:
        """Continuations of prompts.

        Args:
            batch: ``text``, a list of B prompts, or ``input_ids`` (B, L) without padding.
            max_new_tokens: where to stop if no end token comes.
            options: of transformers' `generate`; without any the likeliest token is taken.

        Returns:
            ``texts``: what was added to each prompt.

        Raises:
            RunError: an empty prompt.
        """
        network: Any = self.network
        if "text" in batch:
            rows = [torch.tensor(ids[:-1]) for ids, _ in self.packing.encode(list(batch["text"]))]
            if not all(len(row) for row in rows):
                raise RunError("generate: a prompt is empty")
            longest = max(map(len, rows))
            ids = torch.stack([torch.cat([row.new_full((longest - len(row),), self.padding), row]) for row in rows])
            lengths = torch.tensor([[len(row)] for row in rows])
            seen = (torch.arange(longest) >= longest - lengths).long()
        else:
            ids, seen = batch["input_ids"], torch.ones_like(batch["input_ids"])
        options = {"do_sample": False, "pad_token_id": self.padding, "eos_token_id": self._ends(), **options}
        with torch.no_grad():
            found = network.generate(
                input_ids=ids.to(network.device),
                attention_mask=seen.to(network.device),
                max_new_tokens=max_new_tokens,
                **options,
            )
        return Outputs(texts=self.tokenizer.batch_decode(found[:, ids.shape[1] :], skip_special_tokens=True))

    def _ends(self) -> list[int]:
        """What ends a text: the token that follows documents, and what the model's own settings name."""
        live: Any = self.network
        own: Any = getattr(live.generation_config, "eos_token_id", None)
        named: list[int] = own if isinstance(own, list) else [own]
        known = self.tokenizer.added_tokens_decoder  # of another tokenizer it may be an ordinary token
        return sorted({self.packing.end, *(i for i in named if i in known)})
