"""CLIP and its kin on open_clip: two towers, contrastive training, zero-shot classification and retrieval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmcl.errors import ConfigError, near
from mmcl.modules import clip_source
from mmcl.modules.base import Module, OptimizerBuilder
from mmcl.modules.clip_layers import HEADS, PARTS, canonical, head, layer_scales, tower
from mmcl.modules.clip_transform import ImageAugment, SampleTransform
from mmcl.modules.contrastive_losses import Contrastive
from mmcl.modules.prompt_sites import image_features, prompt_sites
from mmcl.outputs import Batch, Objective, Outputs, draws_to_augment, takes_pixels
from mmcl.schedule import Schedule
from mmcl.stream import Task

MAX_LOGIT_SCALE = math.log(100)
"""Upper bound of the learned temperature, as CLIP was trained; one that is pretrained above it stays its own bound."""
AUGMENT = ImageAugment()


class CLIPModule(Module):
    """Any CLIP-like model that open_clip builds: CLIP, SigLIP, the contrastive part of CoCa.

    Args:
        model: an architecture of open_clip (``ViT-B-32``), a JSON file with a configuration, ``local-dir:PATH``,
            ``package:some.package/FOLDER`` or ``hf-hub:ORGANISATION/NAME``.
        pretrained: open_clip's tag of pretrained weights, for its own architectures. None: random weights.
        checkpoint: file of weights (safetensors, or torch's format without code), also of mmcl.
        random_init: ignore the weights of a folder or hub model: pretrain from scratch.
        objective: `Contrastive` by default; `ClassTextCrossEntropy` for images with class names.
        trainable: what trains: ``image``, ``text``, ``logit_scale`` (with SigLIP's bias); ``image.head`` and
            ``text.head`` are a tower's projection into the common space alone, above a frozen tower.
        layer_decay: factor on the learning rate per layer, from each tower's output down. None: one rate.
        augment: the training transform of images; None trains on what evaluation sees.
        lr: learning rate; each task may scale it.
        weight_decay: of the default optimizer; vectors and scalars are not decayed.
        betas: of the default optimizer.
        schedule: factor on the rate over a task's steps. None: 10 % warm-up, then cosine to 0.
        optimizer: takes parameter groups and returns an optimizer, in place of AdamW.
        channels_last: memory format of the images and of the network; faster for convolutional towers.

    Weights are float32; mixed precision is the Trainer's. Training clamps the logit scale to at
    most 100, or what it is pretrained to where that is more.
    """

    provides = frozenset({"features", "features.image", "features.text", "logits", "logit_scale", "sites.linear"})
    probes = frozenset({"zero_shot", "retrieval"})
    distillable = ("similarities", "logits")
    formats = ("open_clip", "safetensors")
    pair = ("image", "text")

    def __init__(
        self,
        model: str,
        pretrained: str | None = None,
        checkpoint: str | None = None,
        random_init: bool = False,
        objective: Objective | None = None,
        trainable: Sequence[Literal["image", "text", "logit_scale", "image.head", "text.head"]] = (
            "image",
            "text",
            "logit_scale",
        ),
        layer_decay: float | None = None,
        augment: ImageAugment | None = AUGMENT,
        lr: float = 1e-5,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.98),
        schedule: Schedule | None = None,
        optimizer: OptimizerBuilder | None = None,
        channels_last: bool = False,
    ) -> None:
        super().__init__(objective or Contrastive(), lr, weight_decay, betas, schedule, optimizer)
        for part in trainable:
            if part not in PARTS:
                raise ConfigError(f"CLIPModule: trainable part '{part}' is unknown; {near(part, PARTS)}")
        if layer_decay is not None and not 0 < layer_decay <= 1:
            raise ConfigError(f"CLIPModule: layer_decay is {layer_decay}; it must be within (0, 1]")
        self.source = clip_source.find(model)
        self.trainable = frozenset(trainable)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.network = self._formatted(self.source.create(pretrained, checkpoint, random_init))
        scale: Any = self.network.logit_scale
        self._largest_scale = max(MAX_LOGIT_SCALE, scale.item())  # published SigLIPs have some 117
        visual: Any = self.network.visual
        self.samples = SampleTransform(visual.preprocess_cfg, augment, self.source.tokenizer())
        self.pixel_statistics = (visual.preprocess_cfg["mean"], visual.preprocess_cfg["std"])
        self._scales = {} if layer_decay is None else layer_scales(self.network, layer_decay)
        self._prompts: dict[tuple[tuple[str, ...], tuple[str, ...]], Tensor] = {}
        self._choose_trainable()
        kinds = {kind for kind in ("attention", "input") if self._prompt_sites(kind)}
        self.provides = type(self).provides | {f"sites.{kind}" for kind in kinds}
        trains = {head(canonical(name)) for name, p in self.network.named_parameters() if p.requires_grad}
        for part in self.trainable & HEADS.keys():
            if part not in trains:
                raise ConfigError(f"CLIPModule: trainable '{part}': '{model}' has no such projection; name the tower")

    # -- the contract -----------------------------------------------------------------------------------------------

    def compute(self, network: nn.Module, batch: Batch) -> Outputs:
        """Features of what the batch holds; class logits where it holds images and ``class_text``.

        Args:
            network: the live one or a teacher.
            batch: ``image`` (B, 3, H, W), ``text`` (B, L) or, with owners ``text_rows`` (N,), (N, L), ``class_text``
                (C, L), ``labels`` (B,), ``valid`` (B,); all of them optional.

        Returns:
            ``features`` under the keys ``image``, ``text``, ``class_text``, not normalised; ``logits`` (B, C).
        """
        clip: Any = network
        outputs = Outputs(logit_scale=clip.logit_scale.exp().squeeze())
        if clip.logit_bias is not None:
            outputs.extra["logit_bias"] = clip.logit_bias.squeeze()
        if "image" in batch:
            outputs.features["image"] = clip.encode_image(batch["image"].contiguous(memory_format=self.memory_format))
        for key in ("text", "class_text"):
            if key in batch:
                outputs.features[key] = clip.encode_text(batch[key])
        outputs.targets = batch.get("labels")
        outputs.valid = batch.get("valid")
        if "image" in batch and "class_text" in batch:
            outputs.logits = class_logits(outputs, outputs.features["class_text"])
        return outputs

    def build_network(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):  # a teacher must not move the random numbers of the run
            return self._formatted(self.source.build())

    def _formatted(self, network: nn.Module) -> nn.Module:
        return network.to(memory_format=self.memory_format)  # type: ignore[call-overload, no-any-return]

    @draws_to_augment
    @takes_pixels
    def transform(self, sample: dict[str, Any], augment: bool) -> dict[str, Any]:
        return self.samples(sample, augment)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        return self.samples.tokenize(texts)

    def prompts(self, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """(C, T, L) ids of all class names in all templates, kept for the next evaluation."""
        key = (tuple(class_names), tuple(templates))
        if key not in self._prompts:
            tokens = self.tokenize([t.format(name) for name in class_names for t in templates])
            self._prompts[key] = tokens.reshape(len(class_names), len(templates), -1)
        return self._prompts[key]

    def sites(self, kind: str) -> list[Any]:
        """Linear layers of both towers; prompts go into an image tower that is a vision transformer."""
        if kind != "linear":
            return self._prompt_sites(kind) or super().sites(kind)
        from mmcl.modules.sites import linear_sites

        return linear_sites(self.network, tower)

    def _prompt_sites(self, kind: str) -> list[Any]:
        if kind not in ("attention", "input"):
            return []
        visual = self.network.visual
        assert isinstance(visual, nn.Module)
        return prompt_sites(visual, "visual", kind, image_features(visual))

    def export(self, folder: Path, format: str) -> None:
        """``open_clip``: a folder that ``open_clip.create_model("local-dir:FOLDER")`` reads, tokenizer included."""
        if format != "open_clip":
            return super().export(folder, format)
        from mmcl.modules import clip_export

        clip_export.export(self.network, self.source, self.samples.tokenizer, folder)

    def needed(self, probe: str = "") -> frozenset[str]:
        if not probe:
            return super().needed()
        return frozenset({"image", "text"} if probe == "retrieval" else {"image", "labels"})

    def grow(self, task: Task) -> None:
        self._choose_trainable()

    def _choose_trainable(self) -> None:
        for name, parameter in self.network.named_parameters():
            known = canonical(name)
            parameter.requires_grad_(not self.trainable.isdisjoint((tower(known), head(known))))

    def train(self, mode: bool = True) -> CLIPModule:
        """A tower that does not train keeps its running statistics and drops nothing out; its head may train above."""
        super().train(mode)
        network: Any = self.network
        for part, inner in (("image", network.visual), ("text", getattr(network, "text", None))):
            if part in self.trainable or not isinstance(inner, nn.Module):
                continue
            inner.eval()
            own: Any = getattr(inner, "head" if part == "image" else "proj", None)
            if f"{part}.head" in self.trainable and isinstance(own, nn.Module):
                own.train(mode)
        return self

    @torch.no_grad()
    def after_step(self) -> None:
        scale = self.network.logit_scale
        assert isinstance(scale, Tensor)
        if scale.requires_grad:
            scale.clamp_(0, self._largest_scale)

    def lr_scale(self, name: str) -> float:
        return self._scales.get(canonical(name), 1.0)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """In a plain `Trainer.predict`: ``image_features``, ``text_features`` (B, D) of length 1, and ``__key__``."""
        outputs = self({key: value for key, value in batch.items() if key in ("image", "text")})
        features = {f"{key}_features": F.normalize(x, dim=-1) for key, x in outputs.features.items()}
        return features | {key: batch[key] for key in ("__key__",) if key in batch}


def class_logits(outputs: Outputs, class_features: Tensor) -> Tensor:
    """(B, C) scaled cosines of the pictures with (C, D) class features, not normalised, plus SigLIP's bias."""
    assert outputs.logit_scale is not None
    images = F.normalize(outputs.features["image"], dim=-1)
    logits = outputs.logit_scale * images @ F.normalize(class_features, dim=-1).T
    return logits + outputs.extra["logit_bias"] if "logit_bias" in outputs.extra else logits
