"""CLAP on transformers: sounds and texts in one space, contrastive training, retrieval and zero-shot classification."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from mmcl import distributed, weights
from mmcl.errors import ConfigError, near
from mmcl.modules import hf_source
from mmcl.modules.audio_transform import AudioTransform
from mmcl.modules.base import Module, OptimizerBuilder
from mmcl.modules.contrastive_losses import Contrastive
from mmcl.modules.objectives import IGNORED, share_of_valid
from mmcl.outputs import Batch, Objective, Outputs, Site
from mmcl.schedule import Schedule
from mmcl.stream import Task

MAX_LOGIT_SCALE = math.log(100)
"""Upper bound of the learned temperatures, as CLIP's."""
PARTS = ("audio", "text", "logit_scale")
SCALES = ("logit_scale_a",)
"""The temperatures that an objective uses unless its ``scales`` name others."""


class AudioTextContrastive(Contrastive):
    """Sound-caption pairs against all other pairs of the batch, over all processes, each way with its own temperature.

    CLAP's loss (Wu et al., ICASSP 2023): the mean of the cross-entropies of the sounds' captions and of the captions'
    sounds. Several captions of a sound count by their first one; rows that are not `valid` are left out. `Contrastive`
    with the pair audio and text is the same with one temperature.

    Differences from transformers: the loss that `ClapModel` returns looks for the sound of a caption in both its terms.
    """

    scales = ("logit_scale_a", "logit_scale_t")

    def __init__(self) -> None:
        super().__init__("clip", ("audio", "text"))

    def terms(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """``contrastive_loss``."""
        audio, text = (F.normalize(outputs.features[key], dim=-1) for key in self.pair)
        valid: Tensor = batch.get("valid", torch.ones(len(audio), dtype=torch.bool, device=audio.device))
        audios, texts, kept = (distributed.gather(x) for x in (audio, text, valid))
        own = torch.arange(len(audio), device=audio.device) + distributed.rank() * len(audio)
        targets = own.masked_fill(~valid, IGNORED)
        total = torch.zeros((), device=audio.device)
        assert outputs.logit_scale is not None
        for logits in (outputs.logit_scale * audio @ texts.T, outputs.extra["text_logit_scale"] * text @ audios.T):
            total = total + F.cross_entropy(logits.masked_fill(~kept, -torch.inf), targets, reduction="sum")
        return {"contrastive_loss": total / 2 * share_of_valid(valid)}


class AudioTextModule(Module):
    """A `ClapModel` of transformers, with the tokenizer and the feature extractor of its folder.

    Args:
        model: a folder of transformers, ``asset:NAME``, ``package:PACKAGE/FOLDER`` or ``hf-hub:ORGANISATION/NAME``,
            with tokenizer and feature extractor.
        checkpoint: file of weights, in place of those of the folder; also of mmcl.
        random_init: ignore the weights of the folder: pretrain from scratch.
        objective: `AudioTextContrastive` by default; `ClassTextCrossEntropy` for sounds with class names. One of your
            own that uses the texts' temperature too says ``scales = ("logit_scale_a", "logit_scale_t")``.
        trainable: what trains: ``audio``, ``text``, ``logit_scale`` (the temperatures that the objective uses).
        context: tokens of a text; longer ones are cut. CLAP was trained with 77.
        lr: learning rate; each task may scale it.
        weight_decay: of the default optimizer; vectors and scalars are not decayed.
        betas: of the default optimizer.
        schedule: factor on the rate over a task's steps. None: 10 % warm-up, then cosine to 0.
        optimizer: takes parameter groups and returns an optimizer, in place of AdamW.

    Recordings are resampled to the feature extractor's rate; longer ones are cropped by it, at random places that are a
    function of the sample. Training clamps both logit scales to at most 100; the one of the sounds is the outputs'
    `logit_scale`. The audio tower has a batch norm, so its training depends on how a batch is split over processes. The
    batch norms of a fused CLAP, which only long recordings go through, keep the statistics that they came with: a batch
    may hold one such recording, or none.

    Raises:
        ConfigError: the model is no CLAP, lacks a part, or has too few positions for `context`.
    """

    provides = frozenset({"features", "features.audio", "features.text", "logits", "logit_scale", "sites.linear"})
    probes = frozenset({"retrieval", "zero_shot"})
    distillable = ("similarities", "logits")
    pair = ("audio", "text")
    formats = ("transformers", "safetensors")

    def __init__(
        self,
        model: str,
        checkpoint: str | None = None,
        random_init: bool = False,
        objective: Objective | None = None,
        trainable: Sequence[Literal["audio", "text", "logit_scale"]] = ("audio", "text", "logit_scale"),
        context: int = 77,
        lr: float = 1e-5,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.98),
        schedule: Schedule | None = None,
        optimizer: OptimizerBuilder | None = None,
    ) -> None:
        super().__init__(objective or AudioTextContrastive(), lr, weight_decay, betas, schedule, optimizer)
        for part in trainable:
            if part not in PARTS:
                raise ConfigError(f"AudioTextModule: trainable part '{part}' is unknown; {near(part, PARTS)}")
        self.source = hf_source.find(model)
        config = self.source.config
        if config.model_type != "clap":
            raise ConfigError(f"AudioTextModule: '{model}' is of type '{config.model_type}', not clap")
        self.tokenizer = self.source.part(transformers.AutoTokenizer, "tokenizer")
        self.extractor = self.source.part(transformers.ClapFeatureExtractor, "feature extractor")
        self._check_parts(config)
        most = config.text_config.max_position_embeddings - config.text_config.pad_token_id - 1
        if not 2 < context <= most:
            raise ConfigError(f"AudioTextModule: context is {context}; the text tower of '{model}' takes 3 to {most}")
        self.context = context
        self.trainable = frozenset(trainable)
        self.heard = AudioTransform(self.extractor.sampling_rate)
        self.network = self.source.create(transformers.ClapModel, checkpoint, random_init)
        self._prompts: dict[tuple[tuple[str, ...], tuple[str, ...]], Tensor] = {}
        self._choose_trainable()

    # -- the contract ------------------------------------------------------------------------------------------------

    def compute(self, network: nn.Module, batch: Batch) -> Outputs:
        """Features of what the batch holds; class logits where it holds sounds and ``class_text``.

        Args:
            network: the live one or a teacher.
            batch: ``audio`` (B, C, T, M) with ``audio_longer`` (B, 1), ``text`` (B, L) or, with owners ``text_rows``
                (N,), (N, L), ``class_text`` (C, L), ``labels`` (B,), ``valid`` (B,); all of them optional.

        Returns:
            ``features`` under the keys ``audio``, ``text``, ``class_text``, not normalised; ``logits`` (B, C).
        """
        clap: Any = network
        scale: Tensor = clap.logit_scale_a.exp()
        outputs = Outputs(logit_scale=scale)
        outputs.extra["text_logit_scale"] = clap.logit_scale_t.exp()
        if "audio" in batch:
            heard = clap.audio_model(input_features=batch["audio"], is_longer=batch["audio_longer"])
            outputs.features["audio"] = clap.audio_projection(heard.pooler_output)
            if parts := _fusion(clap):  # DDP waits for their gradients, also where no recording of the batch is long
                outputs.features["audio"] = outputs.features["audio"] + 0.0 * _sum_of_weights(parts)
        for key in ("text", "class_text"):
            if key in batch:
                read = clap.text_model(input_ids=batch[key], attention_mask=batch[key] != self.tokenizer.pad_token_id)
                outputs.features[key] = clap.text_projection(read.pooler_output)
        outputs.targets = batch.get("labels")
        outputs.valid = batch.get("valid")
        if "audio" in batch and "class_text" in batch:
            classes = F.normalize(outputs.features["class_text"], dim=-1)
            outputs.logits = scale * F.normalize(outputs.features["audio"], dim=-1) @ classes.T
        return outputs

    def build_network(self) -> nn.Module:
        return self.source.build(transformers.ClapModel)

    def transform(self, sample: dict[str, Any], augment: bool) -> dict[str, Any]:
        """``audio`` (C, T, M), the log-mel pictures of the feature extractor, and ``text``; ``labels`` as they are."""
        row: dict[str, Any] = {}
        if "audio" in sample:
            wave = self.heard(sample).numpy()
            found = self.extractor(wave, sampling_rate=self.heard.rate, return_tensors="pt")
            row["audio"], row["audio_longer"] = found["input_features"][0].float(), self._longer(len(wave))
        if "text" in sample:
            several = not isinstance(sample["text"], str)
            tokens = self.tokenize(sample["text"] if several else [sample["text"]])
            row["text"] = tokens if several else tokens[0]
        if "labels" in sample:
            row["labels"] = sample["labels"]
        return row

    def _check_parts(self, config: Any) -> None:
        """Refuse the tokenizer or feature extractor of another model."""
        text, bins, fused = config.text_config, config.audio_config.num_mel_bins, config.audio_config.enable_fusion
        tokens, pad, given = len(self.tokenizer), self.tokenizer.pad_token_id, self.extractor.feature_size
        fusing = self.extractor.truncation == "fusion"
        for fits, found in (
            (tokens <= text.vocab_size, f"has {text.vocab_size} embeddings, but its tokenizer {tokens} tokens"),
            (pad == text.pad_token_id, f"pads with token {text.pad_token_id}, but its tokenizer with {pad}"),
            (given == bins, f"hears {bins} mel bins, but its feature extractor gives {given}"),
            (fusing == fused, f"has enable_fusion {fused}, but its feature extractor {self.extractor.truncation}"),
        ):
            if not fits:
                raise ConfigError(f"model '{self.source.model}' {found}; it is another model's")

    def _longer(self, samples: int) -> Tensor:
        """(1,) whether a recording has more frames than the extractor takes.

        The extractor's own word holds for whole batches: where no recording is longer, it names one at random.
        """
        hop = self.extractor.hop_length
        return torch.tensor([samples // hop > self.extractor.nb_max_samples // hop])

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        found: Tensor = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=self.context, return_tensors="pt"
        ).input_ids
        return found

    def prompts(self, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """(C, T, L) ids of all class names in all templates, kept for the next evaluation."""
        key = (tuple(class_names), tuple(templates))
        if key not in self._prompts:
            tokens = self.tokenize([t.format(name) for name in class_names for t in templates])
            self._prompts[key] = tokens.reshape(len(class_names), len(templates), -1)
        return self._prompts[key]

    def sites(self, kind: str) -> list[Site]:
        if kind != "linear":
            return super().sites(kind)
        from mmcl.modules.sites import linear_sites

        return linear_sites(self.network, lambda name: name.partition("_")[0])

    def needed(self, probe: str = "") -> frozenset[str]:
        if not probe:
            return super().needed()
        return frozenset({"audio", "text"} if probe == "retrieval" else {"audio", "labels"})

    def grow(self, task: Task) -> None:
        self._choose_trainable()

    @torch.no_grad()
    def after_step(self) -> None:
        clap: Any = self.network
        for scale in (clap.logit_scale_a, clap.logit_scale_t):
            if scale.requires_grad:
                scale.clamp_(0, MAX_LOGIT_SCALE)

    def train(self, mode: bool = True) -> AudioTextModule:
        """A tower that does not train keeps its running statistics and drops nothing out; fusion always keeps them."""
        super().train(mode)
        clap: Any = self.network
        for fusing in _fusion(clap):
            fusing.eval()
        for part in {"audio", "text"} - self.trainable:
            getattr(clap, f"{part}_model").eval()
        return self

    def export(self, folder: Path, format: str) -> None:
        """Write the network; ``transformers`` is a `ClapModel` with its tokenizer and feature extractor."""
        if format != "transformers":
            return super().export(folder, format)
        fresh: Any = self.build_network()
        weights.write(fresh, weights.read(self.network))
        fresh.save_pretrained(folder)
        transformers.ClapProcessor(self.extractor, self.tokenizer).save_pretrained(folder)
        self.extractor.save_pretrained(folder)
        return None

    def _choose_trainable(self) -> None:
        used = getattr(self.objective, "scales", SCALES)
        for name, parameter in self.network.named_parameters():
            # A temperature without a gradient would stop DDP, which waits for one.
            idle = name.startswith("logit_scale") and name not in used
            parameter.requires_grad_(any(name.startswith(part) for part in self.trainable) and not idle)


def _fusion(clap: Any) -> list[nn.Module]:
    """What only recordings that are longer than the window go through; empty where CLAP is not fused."""
    patches = clap.audio_model.audio_encoder.patch_embed
    return [patches.mel_conv2d, patches.fusion_model] if patches.enable_fusion else []


def _sum_of_weights(parts: Sequence[nn.Module]) -> Tensor:
    return torch.stack([weight.sum() for part in parts for weight in part.parameters()]).sum()
