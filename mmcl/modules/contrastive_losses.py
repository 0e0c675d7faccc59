"""What CLIP models train on: image-caption pairs, and images with class texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor

from mmcl import distributed
from mmcl.errors import ConfigError
from mmcl.modules.objectives import IGNORED, share_of_valid
from mmcl.outputs import Batch, Objective, Outputs
from mmcl.stream import Task


class Contrastive(Objective):
    """Image-caption pairs against all other pairs of the batch, over all processes, as in open_clip's losses.

    Several captions of an image (``text_rows``) count by their first one. Rows that are not `valid` are left out.

    Args:
        kind: ``clip`` (softmax; Radford et al., 2021), ``siglip`` (sigmoid; Zhai et al., 2023), or ``auto``: the latter
            where the model has a logit bias.
        pair: the two batch keys that are compared, ``audio`` and ``text`` for sounds.
    """

    coupled = True

    def __init__(
        self, kind: Literal["auto", "clip", "siglip"] = "auto", pair: tuple[str, str] = ("image", "text")
    ) -> None:
        super().__init__()
        self.pair = pair
        self.needs = frozenset(pair)
        if kind not in ("auto", "clip", "siglip"):
            raise ConfigError(f"Contrastive: kind '{kind}' is none of auto, clip, siglip")
        self.kind = kind

    def prepare(self, batch: Batch) -> Batch:
        _require(self, batch)
        if "text_rows" not in batch:
            return batch
        batch = dict(batch)
        rows: Tensor = batch.pop("text_rows")
        first = torch.searchsorted(rows.contiguous(), torch.arange(len(batch[self.pair[0]]), device=rows.device))
        batch["text"] = batch["text"][first]
        return batch

    def terms(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        image, text = (F.normalize(outputs.features[key], dim=-1) for key in self.pair)
        scale, bias = outputs.logit_scale, outputs.extra.get("logit_bias")
        assert scale is not None
        sigmoid = self.kind == "siglip" or (self.kind == "auto" and bias is not None)
        if "valid" in batch:
            return {"contrastive_loss": _of_valid(image, text, scale, bias, batch["valid"], sigmoid)}
        rank, world = distributed.rank(), distributed.world_size()
        if sigmoid:
            loss = SigLipLoss(rank=rank, world_size=world, dist_impl="gather")
        else:
            loss = ClipLoss(local_loss=True, gather_with_grad=True, rank=rank, world_size=world)
        return {"contrastive_loss": loss(image, text, scale, bias)}


class ClassTextCrossEntropy(Objective):
    """Cross-entropy over the classes' texts, as ZSCL trains on classification data (Zheng et al., ICCV 2023).

    The texts are the task's first template filled with its class names. Both towers learn, unless frozen.

    Args:
        label_smoothing: of the targets. The published code uses 0.2 on MTIL.
    """

    needs = frozenset({"labels"})
    of_one_task = True

    def __init__(self, label_smoothing: float = 0.2) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ConfigError(f"ClassTextCrossEntropy: label_smoothing is {label_smoothing}; it must be within [0, 1)")
        self.label_smoothing = label_smoothing
        self._tokens: Tensor | None = None
        self._checked = False

    def check(self, task: Task) -> None:
        if task.class_names is None:
            raise ConfigError(f"task '{task.name}' has no class names; ClassTextCrossEntropy needs `class_names`")

    def start(self, module: Any, task: Task) -> None:
        self.check(task)
        self.needs = frozenset({module.pair[0], "labels"})
        names: Sequence[str] = task.class_names or ()
        self._tokens = module.tokenize([task.templates[0].format(name) for name in names])
        self._checked = False

    def prepare(self, batch: Batch) -> Batch:
        _require(self, batch)
        if self._tokens is None:
            raise ConfigError("ClassTextCrossEntropy has no classes yet; call `objective.start(module, task)` first")
        labels: Tensor = batch["labels"]
        if (unlabelled := labels == IGNORED).any():  # rows of mixed sources without labels take no part
            batch = {**batch, "valid": batch.get("valid", torch.ones_like(unlabelled)) & ~unlabelled}
            labels = labels[~unlabelled]
        if labels.device.type == "cpu" or not self._checked:  # on a GPU the look costs a wait: once a task
            self._checked = True
            self._check_labels(labels)
            if "domain" in batch and len(domains := batch["domain"][batch["labels"] != IGNORED].unique()) > 1:
                raise ConfigError(
                    f"ClassTextCrossEntropy: a batch holds labels of tasks {', '.join(map(str, domains.tolist()))}, "
                    "and its texts are those of one; replay with the objective Contrastive, or without labels"
                )
        self._tokens = self._tokens.to(batch["labels"].device)
        kept = {k: v for k, v in batch.items() if k not in ("text", "text_rows")}
        return {**kept, "class_text": self._tokens}

    def _check_labels(self, labels: Tensor) -> None:
        assert self._tokens is not None
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(self._tokens):
            found = f"{int(labels.min())}..{int(labels.max())}"
            raise ConfigError(f"labels {found} do not fit the {len(self._tokens)} class names of the task")

    def terms(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        assert outputs.logits is not None and outputs.targets is not None
        valid = self.counted(outputs, batch)  # also where all rows count: those of another process may not
        targets = outputs.targets.masked_fill(~valid, IGNORED)
        loss = F.cross_entropy(outputs.logits, targets, label_smoothing=self.label_smoothing, reduction="sum")
        return {"cross_entropy_loss": loss * share_of_valid(valid)}

    def counted(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Rows with a label."""
        assert outputs.targets is not None
        valid = outputs.targets != IGNORED
        return valid & batch["valid"] if "valid" in batch else valid


def _require(objective: Objective, batch: Batch) -> None:
    missing = sorted(objective.needs - batch.keys())
    if missing:
        known = ", ".join(sorted(k for k in batch if not k.startswith("__")))
        raise ConfigError(
            f"{type(objective).__name__} needs {', '.join(missing)} in every sample; the data give {known or 'nothing'}"
        )


def _of_valid(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None, valid: Tensor, sigmoid: bool) -> Tensor:
    """The same losses over (B, D) normalised features where some rows are padding."""
    images, texts, kept = (distributed.gather(x) for x in (image, text, valid))
    own = torch.arange(len(image), device=image.device) + distributed.rank() * len(image)
    shift = 0.0 if bias is None else bias
    per_image = scale * image @ texts.T + shift
    if sigmoid:
        sign = torch.full_like(per_image, -1.0).scatter_(1, own[:, None], 1.0)
        loss = -F.logsigmoid(sign * per_image) * (valid[:, None] & kept[None, :])
        return loss.sum() * share_of_valid(valid)
    targets = own.masked_fill(~valid, IGNORED)
    total = torch.zeros((), device=image.device)
    for logits in (per_image, scale * text @ images.T + shift):
        total = total + F.cross_entropy(logits.masked_fill(~kept, -torch.inf), targets, reduction="sum")
    return total / 2 * share_of_valid(valid)
