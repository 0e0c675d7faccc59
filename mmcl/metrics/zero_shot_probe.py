"""Zero-shot classification of an evaluation set against the texts of its classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mmcl.errors import ConfigError, RunError
from mmcl.metrics.probes import Encode, Probe, ProbeResult, describe_templates
from mmcl.metrics.zero_shot import score_ranks, zero_shot_classifier, zero_shot_logits
from mmcl.outputs import Batch, Outputs
from mmcl.stream import EvalSet

TEXTS_AT_ONCE = 512
Prompts = Callable[[Sequence[str], Sequence[str]], Tensor]


class ZeroShotProbe(Probe):
    """Share of images whose own class text is the nearest one (Radford et al., 2021).

    A class's weights are the normalised mean over templates of its normalised text features. All counts are whole
    numbers per class, so that neither batches nor ranks change the result.

    Args:
        prompts: (class names, templates) -> (C, T, L) ids.
        class_names: in the order of the labels.
        templates: each with one ``{}``.
        k: the k of top-k beside top-1.
        what: name of the features that are classified.
    """

    metric = "top1"

    def __init__(
        self,
        prompts: Prompts,
        class_names: Sequence[str],
        templates: Sequence[str],
        k: int = 5,
        what: str = "image",
    ) -> None:
        if k < 2:
            raise ConfigError(f"zero_shot: option k is {k}; it must be 2 or more (top-1 is always reported)")
        self.prompts = prompts
        self.class_names = class_names
        self.templates = templates
        self.k = k
        self.what = what
        self.protocol = f"zero-shot top-1 over {len(class_names)} classes, {describe_templates(templates)}"
        self.classifier = torch.empty(0)
        self.counts = torch.empty(0)

    @property
    def chooses(self) -> bool:
        """Among the classes."""
        return len(self.class_names) > 1

    @classmethod
    def of(cls, evalset: EvalSet, module: Any) -> ZeroShotProbe:
        if evalset.class_names is None:
            raise ConfigError("zero-shot classification needs `class_names`")
        return cls(module.prompts, evalset.class_names, evalset.templates, what=module.pair[0], **evalset.options)

    def start(self, encode: Encode) -> None:
        """Build the classifier."""
        self.classifier = text_classifier(encode, self.prompts(self.class_names, self.templates))
        self.counts = torch.zeros(3, len(self.classifier), dtype=torch.int64, device=self.classifier.device)

    def update(self, batch: Batch, outputs: Outputs) -> None:
        """Count the batch's hits per class.

        Raises:
            RunError: no labels, or labels that no class name stands for.
        """
        self.take(batch, self._logits(outputs))

    def answers(self, outputs: Outputs) -> Tensor:
        """Cosines with the classes under the model's own scale, which takes no gradient: a scale alone makes sure."""
        assert outputs.logit_scale is not None
        return self._logits(outputs, float(outputs.logit_scale.detach()))

    def places(self, labels: Tensor) -> Tensor:
        """Labels are places."""
        return labels

    def take(self, batch: Batch, answers: Tensor) -> None:
        """Count hits among (B, C) answers."""
        if "labels" not in batch:
            raise RunError(f"zero_shot: the samples of {self.where} have no labels")
        logits = answers
        labels: Tensor = batch["labels"]
        if "valid" in batch:
            logits, labels = logits[batch["valid"]], labels[batch["valid"]]
        classes = logits.shape[1]
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise RunError(
                f"zero_shot: labels {int(labels.min())}..{int(labels.max())} do not fit {classes} class names"
            )
        ranks = score_ranks(logits, labels)
        found = torch.stack([ranks < 1, ranks < self.k, torch.ones_like(ranks, dtype=torch.bool)])
        self.counts += torch.stack([torch.bincount(labels[row], minlength=classes) for row in found])

    def predict(self, batch: Batch, outputs: Outputs) -> list[dict[str, Any]]:
        """For each row of a batch the nearest class, its probability, and the label where there is one."""
        assert outputs.logit_scale is not None
        logits = self._logits(outputs, float(outputs.logit_scale))
        best = logits.softmax(dim=-1).max(dim=-1)
        found = [
            {"class": self.class_names[place], "predicted": place, "probability": probability}
            for place, probability in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
        labels = batch["labels"].tolist() if "labels" in batch else None
        return found if labels is None else [{**row, "label": label} for row, label in zip(found, labels, strict=True)]

    def _logits(self, outputs: Outputs, scale: float = 100.0) -> Tensor:
        logits = zero_shot_logits(outputs.features[self.what], self.classifier, scale=scale)
        return logits if outputs.rescore is None else outputs.rescore(logits, self.class_names)

    def compute(self, sum_over_ranks: Callable[[Tensor], Tensor], gather: Callable[[Tensor], Tensor]) -> ProbeResult:
        """top1, top-k, and the mean over the classes present of each one's recall."""
        top1, topk, seen = sum_over_ranks(self.counts).cpu()
        count = int(seen.sum())
        if count == 0:
            raise RunError(f"zero_shot: {self.where} has no samples")
        present = seen > 0
        metrics = {
            "top1": int(top1.sum()) / count,
            f"top{self.k}": int(topk.sum()) / count,
            "mean_per_class_recall": float((top1[present].double() / seen[present].double()).mean()),
        }
        return ProbeResult(metrics["top1"], count, metrics, correct=int(top1.sum()))


def text_classifier(encode: Encode, prompts: Tensor) -> Tensor:
    """Class weights from texts, some at a time.

    Args:
        encode: gives ``features["text"]`` (N, D) of ``text`` (N, L).
        prompts: (C, T, L) ids of T texts of each class.

    Returns:
        (C, D) rows of length 1.
    """
    rows = []
    for group in torch.split(prompts, max(1, TEXTS_AT_ONCE // prompts.shape[1])):
        parts = torch.split(group.flatten(0, 1), TEXTS_AT_ONCE)
        features = torch.cat([encode({"text": part}).features["text"] for part in parts])
        rows.append(zero_shot_classifier(features.reshape(*group.shape[:2], -1)))
    return torch.cat(rows)
