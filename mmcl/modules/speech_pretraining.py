"""Self-supervised pretraining of speech models: wav2vec 2.0 and HuBERT on transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from mmcl import weights
from mmcl.errors import ConfigError
from mmcl.functional.speech import IGNORED, codeword_logits, contrastive_logits, gumbel_temperature
from mmcl.modules import hf_source
from mmcl.modules.base import Module, OptimizerBuilder
from mmcl.modules.speech_codebook import Codebook
from mmcl.modules.speech_network import (
    Encoded,
    HubertPretraining,
    encode,
    fold_weight_norm,
    quantize,
    unfold_into,
    window_of,
)
from mmcl.modules.speech_objectives import ContrastiveSpeech, MaskedClusters
from mmcl.modules.speech_samples import SpeechSamples
from mmcl.modules.weight_files import fill, read_weights
from mmcl.outputs import Batch, Objective, Outputs, Site
from mmcl.schedule import Schedule
from mmcl.stream import Task

MASKS = {"wav2vec2": 0.65, "hubert": 0.8}
"""Kind of model -> the mask's usual probability in pretraining; transformers' default, 0.05, is for fine-tuning."""
CODEBOOK, HEAD = "codebook.npz", "pretraining_head.safetensors"
HEAD_PARTS = ("project.weight", "project.bias", "codewords")


class SpeechPretrainingModule(Module):
    """wav2vec 2.0 or HuBERT, as the model's configuration says; both learn from recordings alone.

    wav2vec 2.0 tells the quantized content of masked frames from that of other masked frames of the same recording
    (Baevski et al., NeurIPS 2020). HuBERT predicts the cluster of masked frames (Hsu et al., TASLP 2021); the clusters
    come from a fixed codebook. Masks and distractors are drawn with each sample; the Gumbel noise of wav2vec 2.0 is
    drawn in the forward.

    Args:
        model: a folder of transformers, ``asset:NAME``, ``package:PACKAGE/FOLDER``, a ``.json`` configuration or
            ``hf-hub:ORGANISATION/NAME``.
        checkpoint: file of weights that mmcl wrote.
        random_init: ignore the weights of a folder or hub model: pretrain from scratch.
        objective: `ContrastiveSpeech` or `MaskedClusters` by default, after the model.
        mask: of the masked spans, see `mmcl.functional.speech.span_mask`. None: 0.65 for wav2vec 2.0, 0.8 for HuBERT.
        mask_span: frames of a span.
        mask_spans: spans of a recording, at least.
        distractors: of each masked frame (wav2vec 2.0). None: what the configuration says, as a rule 100.
        gumbel: temperature of the choice of codes (wav2vec 2.0): start, end, decay a step of the run.
        codebook: file of `mmcl.modules.speech_codebook.Codebook` (HuBERT). None: ``codebook.npz`` in the folder.
        code_width: size of the codewords (HuBERT).
        max_seconds: longer recordings are cut to this, in training at a random place. None: never.
        rate: samples a second. None: what the folder says, else 16,000.
        normalize: whether each recording gets mean 0 and variance 1. None: what the folder says, else yes.
        freeze_features: keep the convolutions as they are.
        feature_grad_mult: factor on the gradient of the convolutions, fairseq's option of that name. Adam divides it
            out again but for its epsilon; what it changes is their part in the norm that gradients are clipped by.
            None: as in the published models, 0.1 if the convolutions have a group norm (base), else 1 (large).
        lr: learning rate; each task may scale it.
        weight_decay: of the default optimizer; vectors and scalars are not decayed.
        betas: of the default optimizer.
        schedule: factor on the rate over a task's steps. None: 10 % warm-up, then cosine to 0.
        optimizer: takes parameter groups and returns an optimizer, in place of AdamW.

    Raises:
        ConfigError: the model is of another kind or cannot be masked, the codebook does not fit it, or a number is out
            of its range.

    Differences from transformers: a recording does not depend on the batch's padding, whose values enter the group norm
    there; layers are never dropped (processes would drop different ones); the convolution over positions trains one
    weight in place of length and direction; distractors of the same codes are found by the codes. Differences from
    fairseq: no penalty on the size of the convolutions' outputs.
    """

    provides = frozenset({"tokens", "logits", "sites.linear"})
    probes = frozenset({"objective"})
    formats = ("transformers", "safetensors")
    paddings: Mapping[str, float] = MappingProxyType(
        {"audio": 0.0, "masked": 0.0, "distractors": 0.0, "targets": float(IGNORED)}
    )

    def __init__(
        self,
        model: str,
        checkpoint: str | None = None,
        random_init: bool = False,
        objective: Objective | None = None,
        mask: float | None = None,
        mask_span: int = 10,
        mask_spans: int = 2,
        distractors: int | None = None,
        gumbel: tuple[float, float, float] = (2.0, 0.5, 0.999995),
        codebook: str | None = None,
        code_width: int = 256,
        max_seconds: float | None = 15.6,
        rate: int | None = None,
        normalize: bool | None = None,
        freeze_features: bool = False,
        feature_grad_mult: float | None = None,
        lr: float = 1e-4,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.98),
        schedule: Schedule | None = None,
        optimizer: OptimizerBuilder | None = None,
    ) -> None:
        source = hf_source.find(model)
        kind = _check(model, source.config)
        hubert = kind == "hubert"
        super().__init__(
            objective or (MaskedClusters() if hubert else ContrastiveSpeech()),
            lr,
            weight_decay,
            betas,
            schedule,
            optimizer,
        )
        self.source, self.kind = source, kind
        self.gumbel = gumbel
        self.code_width = code_width
        self.freeze_features = freeze_features
        self.feature_grad_mult = _factor(feature_grad_mult, source.config)
        self.distillable = ("logits", "tokens") if hubert else ("tokens",)
        self.provides = self.provides if hubert else self.provides - {"logits"}
        config = self.source.config
        rate, normalize = self._heard(rate, normalize)
        self.samples = SpeechSamples(
            config,
            rate,
            normalize,
            max_seconds,
            MASKS[kind] if mask is None else mask,
            mask_span,
            mask_spans,
            distractors=0 if hubert else config.num_negatives if distractors is None else distractors,
            codebook=self._codebook(codebook, rate) if hubert else None,
        )
        if not hubert and self.samples.distractors < 1:
            raise ConfigError(f"SpeechPretrainingModule: distractors is {distractors}; it must be 1 or more")
        self.network = self._create(checkpoint, random_init)
        self._tasks = 0
        self._choose_trainable()

    # -- the contract ------------------------------------------------------------------------------------------------

    def compute(self, network: nn.Module, batch: Batch) -> Outputs:
        """Frames, and what the objective needs where the batch is masked.

        Args:
            network: the live one or a teacher.
            batch: ``audio`` (B, N), ``audio_lengths`` (B,), ``masked`` (B, T), ``distractors`` (B, T, K) or ``targets``
                (B, T), ``valid`` (B,); all but the first two are optional.

        Returns:
            ``tokens`` (B, T, D) and their ``valid`` (B, T). HuBERT: ``logits`` (B, T, C) over clusters, ``targets``
            (B, T), and in the first task of new codewords ``known`` (C,), which says that none is. wav2vec 2.0: in
            ``extra`` the ``contrastive_logits`` (B, T, 1 + K), ``counted`` (B, T), the masked frames that count, and
            ``code_usage`` (B, T, G, V).
        """
        model: Any = network
        masked = batch.get("masked")
        body = model.hubert if self.kind == "hubert" else model.wav2vec2
        encoded = encode(body, batch["audio"], batch["audio_lengths"], masked, self.feature_grad_mult)
        valid = encoded.valid if "valid" not in batch else encoded.valid & batch["valid"][:, None]
        outputs = Outputs(tokens=encoded.tokens, valid=valid)
        if self.kind == "hubert":
            outputs.logits = codeword_logits(model.project(encoded.tokens), model.codewords)
            outputs.targets = batch.get("targets")
            if self.fresh_head and self._tasks == 1:  # no teacher's word on untrained codewords counts
                outputs.known = torch.zeros(len(model.codewords), dtype=torch.bool, device=valid.device)
        elif masked is not None and "distractors" in batch:
            outputs.extra = self._contrast(model, encoded, batch) | {"counted": masked & valid}
        return outputs

    def _contrast(self, model: Any, encoded: Encoded, batch: Batch) -> dict[str, Any]:
        start, end, decay = self.gumbel
        temperature = gumbel_temperature(self.global_step, start=start, end=end, decay=decay)
        quantized = quantize(model.quantizer, model.dropout_features(encoded.local), temperature)
        logits = contrastive_logits(
            model.project_hid(encoded.tokens),
            model.project_q(quantized.vectors),
            quantized.codes,
            batch["distractors"],
            temperature=model.config.contrastive_logits_temperature,
        )
        return {"contrastive_logits": logits, "code_usage": quantized.usage}

    def build_network(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):  # a teacher must not move the random numbers of the run
            return self._wrapped(self.source.build(self._class()))

    def transform(self, sample: dict[str, Any], augment: bool) -> dict[str, Any]:
        return self.samples(sample, augment)

    def is_head(self, name: str) -> bool:
        """Projection and codewords of a codebook that the model was not pretrained on (HuBERT)."""
        return self.kind == "hubert" and self.fresh_head and name.startswith(("project.", "codewords"))

    def sites(self, kind: str) -> list[Site]:
        if kind != "linear":
            return super().sites(kind)
        from mmcl.modules.sites import linear_sites

        return linear_sites(self.network, lambda name: "audio" if re.search(r"\bencoder\.layers\.", name) else None)

    def needed(self, probe: str = "") -> frozenset[str]:
        return frozenset({"audio"})

    def grow(self, task: Task) -> None:
        self._tasks += 1
        self._choose_trainable()

    def export(self, folder: Path, format: str) -> None:
        """Write the network; ``transformers`` is a `Wav2Vec2ForPreTraining` or `HubertModel` with its preprocessor.

        HuBERT's projection and codewords, which transformers has no place for, and the codebook lie beside it; this
        module reads them from there.
        """
        if format != "transformers":
            return super().export(folder, format)
        found = {k: v.detach().cpu().clone() for k, v in weights.read(self.network).items()}
        fresh: Any = self.source.build(self._class())
        if self.kind == "hubert":
            save_file({k: found.pop(k).contiguous() for k in HEAD_PARTS}, folder / HEAD)
            found = {k.removeprefix("hubert."): v for k, v in found.items()}
            assert self.samples.codebook is not None
            self.samples.codebook.save(folder / CODEBOOK)
        unfold_into(fresh, found)
        fresh.save_pretrained(folder)
        transformers.Wav2Vec2FeatureExtractor(
            sampling_rate=self.samples.rate,
            do_normalize=self.samples.normalize,
            return_attention_mask=self.source.config.feat_extract_norm == "layer",
        ).save_pretrained(folder)
        return None

    # -- building ----------------------------------------------------------------------------------------------------

    def _class(self) -> Any:
        return transformers.HubertModel if self.kind == "hubert" else transformers.Wav2Vec2ForPreTraining

    def _create(self, checkpoint: str | None, random_init: bool) -> nn.Module:
        if checkpoint and random_init:
            raise ConfigError(f"model '{self.source.model}': give only one of `checkpoint` and `random_init`")
        network = self._wrapped(self.source.create(self._class(), random_init=random_init or checkpoint is not None))
        hubert = self.kind == "hubert"
        head = self._beside(HEAD) if hubert and not (checkpoint or random_init) else None
        self.fresh_head = hubert and not checkpoint and head is None
        if checkpoint:
            file = Path(checkpoint).expanduser()
            fill(network, read_weights(file), file, self.source.model)
        elif head is not None:
            fill(network, network.state_dict() | load_file(head), head, self.source.model)
        return network

    def _wrapped(self, network: nn.Module) -> nn.Module:
        fold_weight_norm(network)
        network.config.layerdrop = 0.0  # type: ignore[union-attr]
        if self.samples.codebook is None:
            return network
        return HubertPretraining(network, len(self.samples.codebook.centroids), self.code_width)

    def _beside(self, name: str) -> Path | None:
        """A file in the model's folder."""
        file = None if self.source.place is None or not self.source.local else Path(self.source.place) / name
        return file if file is not None and file.is_file() else None

    def _heard(self, rate: int | None, normalize: bool | None) -> tuple[int, bool]:
        """Rate and normalization, of the arguments or of the folder's preprocessor."""
        said: Any = None
        if self._beside("preprocessor_config.json") or not self.source.local:
            said = self.source.part(transformers.Wav2Vec2FeatureExtractor, "feature extractor")
        if rate is None:
            rate = said.sampling_rate if said is not None else 16_000
        if normalize is None:
            normalize = said.do_normalize if said is not None else True
        return rate, normalize

    def _codebook(self, file: str | None, rate: int) -> Codebook:
        found = Path(file).expanduser() if file else self._beside(CODEBOOK)
        if found is None:
            raise ConfigError(
                f"SpeechPretrainingModule: HuBERT '{self.source.model}' needs a `codebook`; make one with "
                "mmcl.modules.speech_codebook.fit_codebook"
            )
        codebook = Codebook.load(found)
        ours, theirs = (rate, *window_of(self.source.config)), (codebook.rate, codebook.window, codebook.hop)
        if ours != theirs:
            raise ConfigError(
                f"codebook '{found}' is of rate, window and hop {theirs}, the model's are {ours}; fit one for the model"
            )
        return codebook

    def _choose_trainable(self) -> None:
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(not (self.freeze_features and ".feature_extractor." in f".{name}"))


def _factor(given: float | None, config: Any) -> float:
    """The factor on the gradient of the convolutions.

    Raises:
        ConfigError: it is not within (0, 1].
    """
    if given is None:
        return 0.1 if config.feat_extract_norm == "group" else 1.0
    if not 0 < given <= 1:
        hint = "; freeze_features keeps the convolutions as they are" if given == 0 else ""
        raise ConfigError(f"SpeechPretrainingModule: feature_grad_mult is {given}; it must be within (0, 1]{hint}")
    return given


def _check(model: str, config: Any) -> str:
    """The kind of model.

    Raises:
        ConfigError: it is of another kind, or made without a mask's vector, or with frames merged at its end.
    """
    if config.model_type not in MASKS:
        raise ConfigError(
            f"SpeechPretrainingModule: '{model}' is of type '{config.model_type}', not of {' or '.join(MASKS)}"
        )
    if config.mask_time_prob <= 0 and config.mask_feature_prob <= 0:
        raise ConfigError(
            f"SpeechPretrainingModule: the configuration of '{model}' has mask_time_prob 0, so its network has no "
            "vector for masked frames; set it above 0 (how much is masked is the module's `mask`)"
        )
    if getattr(config, "add_adapter", False):
        raise ConfigError(f"SpeechPretrainingModule: '{model}' has an adapter that merges frames; pretrain without it")
    return str(config.model_type)
