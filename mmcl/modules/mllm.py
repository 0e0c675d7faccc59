"""Multimodal language models that read a picture and a question and write an answer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import Tensor, nn

from mmcl import weights
from mmcl.errors import ConfigError, SampleError, near
from mmcl.modules import hf_source, mllm_batch, mllm_conversation, mllm_pictures
from mmcl.modules.base import Module, OptimizerBuilder
from mmcl.modules.clip_layers import block, canonical
from mmcl.modules.mllm_source import check_image_token, processor_place, save_processor
from mmcl.modules.objectives import IGNORED, CrossEntropy
from mmcl.modules.states import last_states
from mmcl.modules.text_packing import check_tokenizer, load_tokenizer
from mmcl.outputs import SKIP, Batch, Objective, Outputs, Site
from mmcl.schedule import Schedule
from mmcl.stream import Stream, Task

PARTS = ("vision", "projector", "language")
_PROJECTOR = re.compile(r"multi_modal_projector|connector|\bmerger\b|multimodal_projector|embed_vision|aligner")
_VISION = re.compile(r"vision|visual|image_tower")


def part(name: str) -> str:
    """``vision``, ``projector`` or ``language``: the part of the network that a parameter belongs to."""
    if _PROJECTOR.search(name):
        return "projector"
    return "vision" if _VISION.search(name) else "language"


class MLLMModule(Module):
    """Any image-text-to-text model of transformers (`AutoModelForImageTextToText`): LLaVA, Qwen2-VL, SmolVLM and kin.

    A sample has a ``conversation`` and, as a rule, an ``image``: the conversation's last turn is the answer, and the
    loss is on the answer's tokens and the token that ends it. A sample with a ``text`` alone is a document, of which
    every token is predicted (text replay, perplexity of text).

    Args:
        model: a folder (``local-dir:PATH`` or its path), ``asset:NAME``, ``package:some.package/FOLDER``, a ``.json``
            configuration or ``hf-hub:ORGANISATION/NAME``.
        processor: folder with tokenizer and image processor, where they do not lie beside the model.
        chat_template: Jinja template. None: the tokenizer's, or a plain one (``User: ...``, ``Assistant: ...``).
        max_length: tokens of a training sample, the picture's included. Longer conversations are not trained on; of
            longer documents the first tokens are taken.
        trainable: what trains: ``vision``, ``projector``, ``language``.
        language_layers: train only the last so many blocks of the language part, and its final norm. None: all of it,
            embeddings included.
        projector_lr: factor on the projector's learning rate.
        checkpoint: file of weights (safetensors, or torch's format without code), also of mmcl.
        random_init: ignore the model's weights.
        gradient_checkpointing: compute activations anew in the backward pass: less memory, a third more time.
        objective: `CrossEntropy` over all answer tokens by default.
        lr: learning rate; each task may scale it.
        weight_decay: of the default optimizer; vectors and scalars are not decayed.
        betas: of the default optimizer.
        schedule: factor on the rate over a task's steps. None: 10 % warm-up, then cosine to 0.
        optimizer: takes parameter groups and returns an optimizer, in place of AdamW.

    Weights are float32; mixed precision is the Trainer's. Pictures are not augmented.
    """

    provides = frozenset({"logits", "tokens", "sites.linear"})
    probes = frozenset({"exact_match", "choice", "perplexity"})
    distillable = ("logits", "tokens")
    formats = ("transformers", "safetensors")
    predicted = "next tokens of documents and answers"

    def __init__(
        self,
        model: str,
        processor: str | None = None,
        chat_template: str | None = None,
        max_length: int = 512,
        trainable: Sequence[Literal["vision", "projector", "language"]] = ("projector", "language"),
        language_layers: int | None = None,
        projector_lr: float = 1.0,
        checkpoint: str | None = None,
        random_init: bool = False,
        gradient_checkpointing: bool = False,
        objective: Objective | None = None,
        lr: float = 2e-5,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.95),
        schedule: Schedule | None = None,
        optimizer: OptimizerBuilder | None = None,
    ) -> None:
        super().__init__(objective or CrossEntropy(), lr, weight_decay, betas, schedule, optimizer)
        for name in trainable:
            if name not in PARTS:
                raise ConfigError(f"MLLMModule: trainable part '{name}' is unknown; {near(name, PARTS)}")
        if max_length < 2 or projector_lr <= 0:
            raise ConfigError(f"MLLMModule: max_length {max_length} or projector_lr {projector_lr} is too small")
        self.source = hf_source.find(model)
        self.trainable = frozenset(trainable)
        self.language_layers = language_layers
        self.projector_lr = projector_lr
        self.max_length = max_length
        self.place = processor_place(self.source, processor)
        self.tokenizer = load_tokenizer(self.source, processor)
        token = check_image_token(self.source, self.tokenizer)
        self.image_token = int(self.source.config.image_token_id)
        self.network = self.source.create(transformers.AutoModelForImageTextToText, checkpoint, random_init)
        check_tokenizer(self.tokenizer, self.network, model, {"image token": self.image_token})
        self.prompter = mllm_conversation.Prompter(self.tokenizer, token, chat_template, model)
        self.pictures = mllm_pictures.find(self.source, self.place, self.network, token)
        pad = self.tokenizer.pad_token_id
        self.padding = int(self.prompter.end if pad is None or pad == self.image_token else pad)
        self._blocks = _blocks(self.network)
        if language_layers is not None and not 0 < language_layers <= len(self._blocks):
            raise ConfigError(
                f"MLLMModule: language_layers is {language_layers}; '{model}' has {len(self._blocks)} to train"
            )
        self._unused: frozenset[str] = frozenset()
        if "vision" in self.trainable:
            found = mllm_pictures.unused(self.source, self.pictures.processor, self.network)
            self._unused = frozenset(name for name in found if part(name) == "vision")
        self._choose_trainable()
        self.train()
        if gradient_checkpointing:
            network: Any = self.network
            network.gradient_checkpointing_enable()

    # -- samples -----------------------------------------------------------------------------------------------------

    def transform(self, sample: dict[str, Any], augment: bool) -> dict[str, Any]:
        """A conversation with its picture, or a document -> tokens, targets and pixels of one row.

        Returns:
            ``input_ids``, ``targets`` (L,), ``prompt_length``, ``answers`` and ``choices`` (texts), and what the
            image processor gives (``pixel_values``, ...), without padding.

        Raises:
            SampleError: no conversation, or none with an answer.
        """
        row = {key: value for key, value in sample.items() if key not in ("image", "conversation", "text")}
        if "conversation" not in sample:
            return {**row, **self._document(sample)}
        exchange = mllm_conversation.read(sample["conversation"])
        tensors: dict[str, Tensor] = {}
        placeholder = None
        if "image" in sample:
            tensors, placeholder = self.pictures(sample["image"])
        elif any(mllm_conversation.MARK in turn["content"] for turn in exchange.turns):
            raise SampleError(f"asks about a picture ({mllm_conversation.MARK}) and has none")
        prompt = self.prompter.prompt(exchange.turns, placeholder)
        ids, targets = mllm_batch.shifted(prompt, self.prompter.answer(exchange.answer))
        if len(prompt) >= self.max_length:
            row[SKIP] = f"has a prompt of {len(prompt)} tokens; max_length {self.max_length} leaves no answer"
        elif len(ids) > self.max_length:
            row[SKIP] = f"its answer would be cut: {len(ids)} tokens, max_length is {self.max_length}"
        told = {"answers": exchange.references, "choices": exchange.choices}
        return {**row, **tensors, **told, "input_ids": ids, "targets": targets, "prompt_length": len(prompt)}

    def _document(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        text = sample.get("text")
        if isinstance(text, list) and len(text) == 1:  # what evaluation gives of a JSON member
            text = text[0]
        if "image" in sample or not isinstance(text, str):
            raise SampleError("has no conversation; the source's `fields` name the member, as in conversation: [json]")
        ids = [*self.prompter.start, *self.prompter.ids(text), self.prompter.end][: self.max_length]
        if len(ids) < 2:
            raise SampleError("has an empty text")
        tokens, targets = mllm_batch.shifted(ids[:1], ids[1:])
        return {"input_ids": tokens, "targets": targets, "prompt_length": 1, "answers": [], "choices": []}

    def collate(self, samples: Sequence[dict[str, Any]]) -> Batch:
        return mllm_batch.collate_rows(samples, self.padding)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """(len(texts), L) ids, filled up at their ends."""
        rows = [torch.tensor(self.prompter.ids(text)[: self.max_length]) for text in texts]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.padding)

    # -- the contract ------------------------------------------------------------------------------------------------

    def compute(self, network: nn.Module, batch: Batch) -> Outputs:
        """Logits from the first position on that predicts an answer; what stands before takes no part in any loss.

        Args:
            network: the live one or a teacher.
            batch: what `collate` gives.

        Returns:
            ``logits`` (B, A, V); ``tokens`` (B, A, D), what they are made of; ``targets`` and ``valid`` (B, A), A = L -
            ``answer_start``.
        """
        ids, start = batch["input_ids"], batch["answer_start"]
        seen = torch.arange(ids.shape[1], device=ids.device) < batch["input_ids_lengths"][:, None]
        given = mllm_batch.pictures(batch, self.pictures.kind, self.image_token, ids)
        keep = ids.shape[1] - start
        asked = {"input_ids": ids, "attention_mask": seen.long(), "use_cache": False, "logits_to_keep": keep}
        with last_states(network) as states:
            found = network(**asked, **given)
        targets = batch["targets"][:, start:]
        valid = targets != IGNORED
        if "valid" in batch:
            valid &= batch["valid"][:, None]
        logits = found.logits if given else found.logits + self._touch(network)
        return Outputs(logits=logits, tokens=states[-1], targets=targets, valid=valid)

    def _touch(self, network: nn.Module) -> Tensor | float:
        """Zero, with all that a batch without pictures leaves out in its graph: several processes wait for its part.

        One process has it too: an optimizer moves what has a gradient of zero by its momentum.
        """
        if not torch.is_grad_enabled():
            return 0.0
        idle = [p for name, p in network.named_parameters() if p.requires_grad and part(name) != "language"]
        return torch.stack([p.sum() for p in idle]).sum() * 0.0 if idle else 0.0

    def build_network(self) -> nn.Module:
        return self.source.build(transformers.AutoModelForImageTextToText)

    @torch.no_grad()
    def generate(self, batch: Batch, max_new_tokens: int = 32, **options: Any) -> Outputs:
        """The answers that the live network gives, the likeliest token at each step.

        Args:
            batch: what `collate` gives; the answers in it are not looked at.
            max_new_tokens: where to stop if no end token comes.
            options: of transformers' `generate`.

        Returns:
            ``texts``, one for each row, without special tokens.
        """
        network: Any = self.network
        ids, seen = mllm_batch.prompts(batch, self.padding)
        given = mllm_batch.pictures(batch, self.pictures.kind, self.image_token, ids)
        plan = {"do_sample": False, "num_beams": 1, "eos_token_id": self.prompter.end, "pad_token_id": self.padding}
        found = network.generate(
            input_ids=ids, attention_mask=seen, max_new_tokens=max_new_tokens, **{**plan, **options}, **given
        )
        texts = self.tokenizer.batch_decode(found[:, ids.shape[1] :], skip_special_tokens=True)
        return Outputs(texts=[text.strip() for text in texts])

    def answer(self, batch: Batch, texts: Sequence[str]) -> Batch:
        """The batch with other answers to its questions, one for each row: what `ChoiceProbe` compares."""
        return mllm_batch.with_answers(batch, [self.prompter.answer(text) for text in texts], self.padding)

    def sites(self, kind: str) -> list[Site]:
        """Linear weights of all parts but the output embedding."""
        if kind != "linear":
            return super().sites(kind)
        from mmcl.modules.sites import linear_sites

        network: Any = self.network
        output = network.get_output_embeddings()
        own = {f"{name}.weight" for name, inner in self.network.named_modules() if inner is output}
        return linear_sites(self.network, lambda name: None if name in own else part(name))

    def check(self, stream: Stream) -> None:
        super().check(stream)
        sources = [(f"task '{task.name}'", source) for task in stream.tasks for source in task.train]
        sources += [(f"evaluation set '{e.name}'", e.source) for e in stream.evals if e.probe != "perplexity"]
        for where, source in sources:
            if source.fields is not None and not {"conversation", "text"} & source.fields.keys():
                raise ConfigError(f"{where}: its source's `fields` lack conversation, as in conversation: [json]")

    def grow(self, task: Task) -> None:
        self._choose_trainable()

    def _choose_trainable(self) -> None:
        last = self._blocks[-self.language_layers :] if self.language_layers is not None else None
        for name, parameter in self.network.named_parameters():
            kind = part(canonical(name))
            chosen = kind in self.trainable and canonical(name) not in self._unused
            if kind == "language" and last is not None:
                chosen = chosen and (block(canonical(name)) in last or name.endswith(".norm.weight"))
            parameter.requires_grad_(chosen)

    def train(self, mode: bool = True) -> MLLMModule:
        """A vision part that does not train keeps its running statistics and drops nothing out."""
        super().train(mode)
        if "vision" not in self.trainable:
            for name, inner in self.network.named_modules():
                if name and part(name) == "vision":
                    inner.eval()
        return self

    def lr_scale(self, name: str) -> float:
        return self.projector_lr if part(canonical(name)) == "projector" else 1.0

    def export(self, folder: Path, format: str) -> None:
        """``transformers``: a folder for `AutoModelForImageTextToText`, tokenizer and image processor included."""
        if format != "transformers":
            return super().export(folder, format)
        plain: Any = self.build_network()  # without what strategies attached
        weights.write(plain, weights.read(self.network))
        live: Any = self.network
        plain.generation_config = live.generation_config
        plain.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        save_processor(self.place, self.pictures.processor, folder)


def _blocks(network: nn.Module) -> list[int]:
    """Numbers of the language part's blocks."""
    return sorted(
        {
            found
            for name, _ in network.named_parameters()
            if part(name) == "language"
            if (found := block(name)) is not None
        }
    )
