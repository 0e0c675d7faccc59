"""Captioners on open_clip: CoCa, two towers and a decoder that writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmcl.errors import ConfigError, RunError
from mmcl.modules.base import Module, OptimizerBuilder
from mmcl.modules.clip import AUGMENT, CLIPModule, class_logits
from mmcl.modules.clip_layers import canonical
from mmcl.modules.clip_transform import ImageAugment
from mmcl.modules.contrastive_losses import ClassTextCrossEntropy, Contrastive
from mmcl.modules.objectives import IGNORED, share_of_valid
from mmcl.outputs import Batch, Objective, Outputs, draws_to_augment, takes_pixels
from mmcl.schedule import Schedule
from mmcl.stream import Stream

DECODER = "text_decoder."
PROBES = {"zero_shot": {"image", "labels"}, "choice": {"image"}}
"""Probe -> fields that it needs where these are not pictures and captions."""


class Captioning(Contrastive):
    """Contrastive loss of pairs, and the cross-entropy of the captions' tokens (CoCa; Yu et al., TMLR 2022).

    The mean over all caption tokens of all processes; one process equals open_clip's `CoCaLoss`.

    Args:
        contrastive_weight: of the contrastive term.
        caption_weight: of the captions' term. The paper uses 1 and 2.

    Raises:
        ConfigError: a weight is negative, or both are 0.
    """

    def __init__(self, contrastive_weight: float = 1.0, caption_weight: float = 2.0) -> None:
        super().__init__()
        if min(contrastive_weight, caption_weight) < 0 or contrastive_weight + caption_weight == 0:
            raise ConfigError(f"Captioning: weights {contrastive_weight} and {caption_weight}; one must be positive")
        self.contrastive_weight = contrastive_weight
        self.caption_weight = caption_weight

    def terms(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """``contrastive_loss`` and ``caption_loss``, weighted."""
        if outputs.logits is None or outputs.targets is None or outputs.valid is None:
            raise RunError("Captioning: the batch lacks pictures or captions")
        pairs = super().terms(outputs, batch)["contrastive_loss"]
        targets = outputs.targets.masked_fill(~outputs.valid, IGNORED)
        total = F.cross_entropy(outputs.logits.flatten(0, 1).float(), targets.flatten(), reduction="sum")
        captions = total * share_of_valid(outputs.valid)
        return {
            "contrastive_loss": self.contrastive_weight * pairs,
            "caption_loss": self.caption_weight * captions,
        }

    def counted(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Caption tokens; with accumulation the pairs' term follows them."""
        assert outputs.valid is not None
        return outputs.valid


class CaptionerModule(CLIPModule):
    """CoCa as open_clip builds it: everything that `CLIPModule` does, and captions.

    Its ``logits`` are those of the caption tokens. Under `ClassTextCrossEntropy`, whose batches have no captions, they
    are those of the classes, as in `CLIPModule`, and the decoder does not train.

    Args:
        model: an architecture of open_clip (``coca_ViT-B-32``), a JSON file with a configuration that has a
            ``multimodal_cfg``, ``local-dir:PATH``, ``asset:NAME``, ``package:some.package/FOLDER`` or
            ``hf-hub:ORGANISATION/NAME``.
        pretrained: open_clip's tag of pretrained weights, for its own architectures. None: random weights.
        checkpoint: file of weights (safetensors, or torch's format without code), also of mmcl.
        random_init: ignore the weights of a folder or hub model: pretrain from scratch.
        objective: `Captioning` by default; `ClassTextCrossEntropy` for images with class names.
        trainable: what trains of the towers: ``image``, ``text``, ``logit_scale``.
        decoder: whether the decoder trains.
        layer_decay: factor on the learning rate per layer, from each tower's output down. None: one rate.
        augment: the training transform of images; None trains on what evaluation sees.
        lr: learning rate; each task may scale it.
        weight_decay: of the default optimizer; vectors and scalars are not decayed.
        betas: of the default optimizer.
        schedule: factor on the rate over a task's steps. None: 10 % warm-up, then cosine to 0.
        optimizer: takes parameter groups and returns an optimizer, in place of AdamW.
        channels_last: memory format of the images and of the network.
    """

    probes = frozenset({"zero_shot", "retrieval", "exact_match", "choice", "perplexity"})
    predicted = "caption tokens"
    decoder = True

    def __init__(
        self,
        model: str,
        pretrained: str | None = None,
        checkpoint: str | None = None,
        random_init: bool = False,
        objective: Objective | None = None,
        trainable: Sequence[Literal["image", "text", "logit_scale"]] = ("image", "text", "logit_scale"),
        decoder: bool = True,
        layer_decay: float | None = None,
        augment: ImageAugment | None = AUGMENT,
        lr: float = 1e-5,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.98),
        schedule: Schedule | None = None,
        optimizer: OptimizerBuilder | None = None,
        channels_last: bool = False,
    ) -> None:
        super().__init__(
            *(model, pretrained, checkpoint, random_init, objective or Captioning(), trainable, layer_decay),
            *(augment, lr, weight_decay, betas, schedule, optimizer, channels_last),
        )
        network: Any = self.network
        if not hasattr(network, "text_decoder"):
            raise ConfigError(f"CaptionerModule: '{model}' has no text decoder; take a CoCa, or CLIPModule")
        given = self.source.weights is not None or self.source.on_hub
        if not (pretrained or checkpoint or (given and not random_init)):
            projection = network.text_decoder.text_projection  # open_clip leaves it as the memory was
            nn.init.normal_(projection, std=len(projection) ** -0.5)
        self.decoder = decoder and not isinstance(self.objective, ClassTextCrossEntropy)
        self.padding = int(network.pad_id)
        ids: list[int] = self.tokenize(["a"])[0].tolist()
        if ids[-1] != self.padding:
            raise ConfigError(
                f"CaptionerModule: the tokenizer of '{model}' fills texts up with token {ids[-1]}, the model expects "
                f"{self.padding}; it is of another model"
            )
        written = [token for token in ids if token != self.padding]
        self.context = len(ids)
        self.begin, self.end = written[0], written[-1]
        self._choose_trainable()

    def compute(self, network: nn.Module, batch: Batch) -> Outputs:
        """Features as of `CLIPModule`; where the batch holds pictures and captions, logits of the captions' tokens.

        Returns:
            ``features`` under the keys ``image``, ``text``, ``class_text``, not normalised; ``logits`` (N, L - 1, V),
            ``targets`` and ``valid`` (N, L - 1) of N captions. Where the batch has ``class_text``, which an objective
            over classes puts there: ``logits`` (B, C), ``targets`` and ``valid`` (B,).
        """
        coca: Any = network
        outputs = Outputs(logit_scale=coca.logit_scale.exp().squeeze())
        if coca.logit_bias is not None:
            outputs.extra["logit_bias"] = coca.logit_bias.squeeze()
        places = words = None
        if "image" in batch:
            image = batch["image"].contiguous(memory_format=self.memory_format)
            outputs.features["image"], places = coca._encode_image(image, normalize=False)
        if "text" in batch:
            outputs.features["text"], words = coca._encode_text(batch["text"], normalize=False)
        if "class_text" in batch:
            outputs.features["class_text"], _ = coca._encode_text(batch["class_text"], normalize=False)
            outputs.targets, outputs.valid = batch.get("labels"), batch.get("valid")
            if places is not None:
                outputs.logits = class_logits(outputs, outputs.features["class_text"])
            return outputs
        if places is None or words is None:
            return outputs
        valid = batch.get("valid")
        if "text_rows" in batch:
            places = places[batch["text_rows"]]
            valid = None if valid is None else valid[batch["text_rows"]]
        outputs.logits = coca.text_decoder(places, words[:, :-1])
        outputs.targets = batch["text"][:, 1:]
        outputs.valid = outputs.targets != self.padding
        if valid is not None:
            outputs.valid &= valid[:, None]
        return outputs

    @draws_to_augment
    @takes_pixels
    def transform(self, sample: dict[str, Any], augment: bool) -> dict[str, Any]:
        """As of `CLIPModule`; the captions themselves stay beside their tokens as ``answers``."""
        row = super().transform(sample, augment)
        if "text" in sample:
            row["answers"] = [sample["text"]] if isinstance(sample["text"], str) else list(sample["text"])
        return row

    @torch.no_grad()
    def generate(self, batch: Batch, max_new_tokens: int = 30, **options: Any) -> Outputs:
        """Captions that the live network gives, the likeliest token at each step.

        Args:
            batch: ``image`` (B, 3, H, W).
            max_new_tokens: where to stop if no end token comes; never beyond the context.
            options: there are no others.

        Returns:
            ``texts``, one for each picture.

        Raises:
            ConfigError: any other option.
        """
        self.check_generation({"max_new_tokens": max_new_tokens, **options})
        coca: Any = self.network
        image = batch["image"].contiguous(memory_format=self.memory_format)
        _, places = coca._encode_image(image)
        texts = torch.full((len(image), 1), self.begin, device=image.device)
        done = torch.zeros(len(image), dtype=torch.bool, device=image.device)
        for _ in range(min(max_new_tokens, self.context - 1)):
            _, words = coca._encode_text(texts)
            likeliest = coca.text_decoder(places, words)[:, -1].argmax(dim=-1).masked_fill(done, self.padding)
            texts = torch.cat([texts, likeliest[:, None]], dim=1)
            done |= (likeliest == self.end) | (likeliest == self.padding)
            if bool(done.all()):
                break
        return Outputs(texts=[self._read(row) for row in texts[:, 1:].tolist()])

    def answer(self, batch: Batch, texts: Sequence[str]) -> Batch:
        """The pictures of the batch with other captions, one for each: what `ChoiceProbe` compares."""
        return {"image": batch["image"], "text": self.tokenize(texts).to(batch["image"].device)}

    def _read(self, ids: list[int]) -> str:
        stop = next((i for i, token in enumerate(ids) if token in (self.end, self.padding)), len(ids))
        tokenizer = getattr(self.samples.tokenizer, "tokenizer", self.samples.tokenizer)
        return str(tokenizer.decode(ids[:stop])).strip()

    def check(self, stream: Stream) -> None:
        Module.check(self, stream)
        for evalset in stream.evals:
            where, fields = f"evaluation set '{evalset.name}'", evalset.source.fields
            if evalset.probe == "choice" and not (evalset.class_names or evalset.options.get("choices")):
                raise ConfigError(f"{where}: a choice among captions needs `class_names`")
            if evalset.probe == "choice" and fields is not None and not {"labels", "text"} & fields.keys():
                raise ConfigError(f"{where}: its source's `fields` lack labels, or text, to say which choice is right")

    def needed(self, probe: str = "") -> frozenset[str]:
        return frozenset(PROBES.get(probe, {"image", "text"})) if probe else super().needed()

    def _choose_trainable(self) -> None:
        super()._choose_trainable()
        for name, parameter in self.network.named_parameters():
            if canonical(name).startswith(DECODER):
                parameter.requires_grad_(self.decoder)
