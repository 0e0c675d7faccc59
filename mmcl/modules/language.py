"""What the modules of language models share: model, tokenizer, packing, adapters' places, export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from mmcl import weights
from mmcl.errors import ConfigError
from mmcl.modules import hf_source
from mmcl.modules.base import Module, OptimizerBuilder
from mmcl.modules.objectives import IGNORED, CrossEntropy
from mmcl.modules.states import last_states
from mmcl.modules.text_packing import TextPacking, check_tokenizer, load_tokenizer
from mmcl.outputs import Batch, Objective, Outputs, Site
from mmcl.schedule import Schedule


class _LanguageModule(Module):
    """A language model of transformers over blocks of tokens; see the classes that build on it."""

    provides = frozenset({"logits", "tokens", "sites.linear"})
    probes = frozenset({"perplexity"})
    distillable = ("logits", "tokens")
    formats = ("transformers", "safetensors")
    target_bytes = True
    packing: TextPacking
    kind: Any
    """The ``AutoModel...`` class of transformers."""
    specials = 0
    """Special tokens around a block's own."""
    predicted = ""
    """What the perplexity is of, for protocols."""
    network_options: Mapping[str, Any] = MappingProxyType({})
    """Keywords of the network's forward."""

    def __init__(
        self,
        model: str,
        tokenizer: str | None,
        block: int,
        end_token: str | None,
        checkpoint: str | None,
        random_init: bool,
        gradient_checkpointing: bool,
        objective: Objective | None,
        lr: float,
        weight_decay: float,
        betas: tuple[float, float],
        schedule: Schedule | None,
        optimizer: OptimizerBuilder | None,
    ) -> None:
        super().__init__(objective or CrossEntropy(), lr, weight_decay, betas, schedule, optimizer)
        title = type(self).__name__
        if block - self.specials < 2:
            raise ConfigError(f"{title}: block is {block}; it must be {self.specials + 2} or more")
        self.source = hf_source.find(model)
        self.tokenizer = load_tokenizer(self.source, tokenizer)
        self.network = self.source.create(self.kind, checkpoint, random_init).train()
        longest = _longest(self.network)
        if longest is not None and block > longest:
            raise ConfigError(f"{title}: block is {block}, but model '{model}' reads {longest} tokens at most")
        self.block = self.sample_tokens = block
        self.packing = TextPacking(self.tokenizer, block - self.specials, self._end(end_token))
        self.padding = int(self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.packing.end)
        used = {"end token": self.packing.end, "padding token": self.padding, **self._specials()}
        check_tokenizer(self.tokenizer, self.network, model, used)
        if gradient_checkpointing:
            network: Any = self.network
            enable = getattr(network, "activation_checkpointing_enable", None) or network.gradient_checkpointing_enable
            enable()

    def _end(self, token: str | None) -> int:
        """The id of the token that follows each document."""
        raise NotImplementedError

    def _specials(self) -> Mapping[str, int]:
        """Special tokens that it works with beside the end and padding tokens."""
        return {}

    def compute(self, network: nn.Module, batch: Batch) -> Outputs:
        """Logits of a batch of blocks.

        Args:
            network: the live one or a teacher.
            batch: ``input_ids`` (B, L); optional: ``attention_mask`` (B, L), ``targets`` (B, L), ``valid`` (B,).

        Returns:
            ``logits`` (B, L, V); ``tokens`` (B, L, D), what they are made of; ``targets`` and ``valid`` (B, L) where
            there are targets.
        """
        given = {key: batch[key] for key in ("input_ids", "attention_mask") if key in batch}
        with last_states(network) as states:
            logits = network(**given, **self.network_options).logits
        outputs = Outputs(logits=logits, tokens=states[-1], targets=batch.get("targets"))
        if outputs.targets is not None:
            outputs.valid = outputs.targets != IGNORED
            if "valid" in batch:
                outputs.valid &= batch["valid"][:, None]
        return outputs

    def build_network(self) -> nn.Module:
        return self.source.build(self.kind)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """(len(texts), L) ids of texts without special tokens, cut to a block and filled up at their ends."""
        rows = [torch.tensor(ids[:-1][: self.block]) for ids, _ in self.packing.encode(list(texts))]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.padding)

    def padded(self, values: Sequence[int] | Tensor, filling: int) -> Tensor:
        """(L,) int64 values, filled up to a block."""
        row = torch.full((self.block,), filling)
        row[: len(values)] = torch.as_tensor(values)
        return row

    def sites(self, kind: str) -> list[Site]:
        """Linear weights but the output embedding, which most models share with the input's."""
        if kind != "linear":
            return super().sites(kind)
        from mmcl.modules.sites import linear_sites

        network: Any = self.network
        output = network.get_output_embeddings()
        own = {f"{name}.weight" for name, part in self.network.named_modules() if part is output}
        return linear_sites(self.network, lambda name: None if name in own else "text")

    def export(self, folder: Path, format: str) -> None:
        if format != "transformers":
            return super().export(folder, format)
        plain: Any = self.build_network()  # without what strategies attached
        weights.write(plain, weights.read(self.network))
        live: Any = self.network
        if getattr(live, "generation_config", None) is not None:
            plain.generation_config = live.generation_config
        plain.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def _longest(network: Any) -> int | None:
    """Tokens that a model has positions for; None where it does not say."""
    longest: int | None = getattr(network.config, "max_position_embeddings", None)
    for name, layer in network.named_modules():
        if name.endswith("position_embeddings") and getattr(layer, "padding_idx", None) is not None:
            return int(layer.num_embeddings) - int(layer.padding_idx) - 1  # RoBERTa and its kin count from there
    return longest
