"""Classification by a classifier's head: among all classes seen so far, and within the evaluation set's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from mmcl.errors import ConfigError, RunError
from mmcl.metrics.probes import Encode, Probe, ProbeResult
from mmcl.metrics.zero_shot import score_ranks
from mmcl.outputs import Batch, Outputs
from mmcl.stream import EvalSet

METRICS = ("top1", "task_top1")
Choice = Literal["task", "seen", "all"]


class Labels(Protocol):
    """`mmcl.modules.labels.LabelSpace`, as far as the probe asks."""

    @property
    def names(self) -> Sequence[str]:
        """The class of each column."""

    def columns(self, names: Sequence[str], where: str) -> list[int]:
        """The columns of class names."""


class Classifier(Protocol):
    """What the probe asks of a module.

    Attributes:
        labels: its label space.
        seen: how many classes, the first columns, the tasks so far have.
        eval_classes: what `top1` chooses among.
    """

    labels: Labels
    seen: int
    eval_classes: Choice


class ClassificationProbe(Probe):
    """Share of samples whose own class has the highest logit among the candidates.

    `top1` chooses among all classes seen so far, whatever task they are of; a class that no task has trained yet cannot
    be answered, and its samples count as wrong. `task_top1` chooses among the evaluation set's own classes, as if the
    task were known; a column that the head has not got yet is never answered. With equal logits the first column wins.
    All counts are whole numbers per class, so that neither batches nor ranks change the result.

    Args:
        module: gives the label space and how many classes were seen.
        class_names: of the evaluation set, in the order of its labels.
        metric: which of the two goes into the matrix.

    Raises:
        ConfigError: an unknown metric, or a class that no task has.
    """

    def __init__(
        self,
        module: Classifier,
        class_names: Sequence[str],
        metric: Literal["top1", "task_top1"] = "top1",
    ) -> None:
        if metric not in METRICS:
            raise ConfigError(f"classification: option metric is '{metric}'; it is one of {', '.join(METRICS)}")
        self.module = module
        self.class_names = class_names
        self.metric = metric
        self.columns = module.labels.columns(class_names, "classification")
        whole = len(module.labels.names)
        among = {
            "seen": f"the classes seen so far, of {whole} in all; a class not yet seen counts as wrong",
            "all": f"all {whole} classes of the stream, seen or not",
            "task": f"the set's own {len(class_names)} classes",
        }
        self._chosen, self._width = torch.empty(0, dtype=torch.int64), 0
        self.protocol = f"top-1 among {among[module.eval_classes if metric == 'top1' else 'task']}"
        self.counts = torch.zeros(3, len(class_names), dtype=torch.int64)

    @classmethod
    def of(cls, evalset: EvalSet, module: Any) -> ClassificationProbe:
        if evalset.class_names is None:
            raise ConfigError("classification needs `class_names`")
        return cls(module, evalset.class_names, **evalset.options)

    @property
    def chooses(self) -> bool:
        """Once there are classes that were seen."""
        return self.module.seen > 1

    def start(self, encode: Encode) -> None:
        """Forget the last pass."""
        self.counts = torch.zeros(3, len(self.columns), dtype=torch.int64)

    def update(self, batch: Batch, outputs: Outputs) -> None:
        """Count the batch's hits per class.

        Raises:
            RunError: no labels, or labels that no class name stands for.
        """
        if "labels" not in batch or outputs.logits is None:
            raise RunError(f"classification: the samples of {self.where} have no labels or no pictures")
        self._count(batch, outputs.logits.float())

    def answers(self, outputs: Outputs) -> Tensor:
        """The columns that `top1` chooses among, in their order."""
        assert outputs.logits is not None
        candidates = self._candidates("top1", outputs.logits)
        self._chosen, self._width = candidates.nonzero()[:, 0], outputs.logits.shape[1]
        return outputs.logits[:, self._chosen]

    def places(self, labels: Tensor) -> Tensor:
        """Of each label's column among those of the last `answers`."""
        own = torch.tensor(self.columns, device=labels.device)[labels.clamp(min=0)]
        same = own[:, None] == self._chosen.to(labels.device)[None, :]
        return torch.where(same.any(dim=1) & (labels >= 0), same.long().argmax(dim=1), -1)

    def take(self, batch: Batch, answers: Tensor) -> None:
        """Count hits among the answers; columns that are none of them are never answered."""
        logits = answers.new_full((len(answers), self._width), -torch.inf)
        logits[:, self._chosen] = answers
        self._count(batch, logits.float())

    def _count(self, batch: Batch, logits: Tensor) -> None:
        labels: Tensor = batch["labels"]
        if "valid" in batch:
            labels, logits = labels[batch["valid"]], logits[batch["valid"]]
        classes = len(self.columns)
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise RunError(
                f"classification: labels {int(labels.min())}..{int(labels.max())} do not fit {classes} class names"
            )
        own = torch.tensor(self.columns, device=logits.device)[labels]
        found = [_first(logits, own, self._candidates(what, logits)) for what in METRICS]
        rows = [labels[found[0]], labels[found[1]], labels]
        counts = torch.stack([torch.bincount(row, minlength=classes) for row in rows])
        self.counts = self.counts.to(counts.device) + counts

    def predict(self, batch: Batch, outputs: Outputs) -> list[dict[str, Any]]:
        """For each row of a batch the class with the highest logit, its column and probability, and the label's column.

        Before any class was seen these are None.
        """
        assert outputs.logits is not None
        logits = outputs.logits.float()
        candidates = self._candidates(self.metric, logits)
        names = self.module.labels.names
        rows: list[dict[str, Any]] = [{"class": None, "predicted": None, "probability": None}] * len(logits)
        if bool(candidates.any()):
            best = logits.masked_fill(~candidates, -torch.inf).softmax(dim=1).max(dim=1)
            rows = [
                {"class": names[place], "predicted": place, "probability": probability}
                for place, probability in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            ]
        if "labels" not in batch:
            return rows
        labels = [self.columns[label] for label in batch["labels"].tolist()]
        return [{**row, "label": label} for row, label in zip(rows, labels, strict=True)]

    def compute(self, sum_over_ranks: Callable[[Tensor], Tensor], gather: Callable[[Tensor], Tensor]) -> ProbeResult:
        """Both shares, and for the one in the matrix the mean over the classes present of each one's recall."""
        found = sum_over_ranks(self.counts).cpu()
        seen = found[2]
        count = int(seen.sum())
        if count == 0:
            raise RunError(f"classification: {self.where} has no samples")
        hits = {name: found[i] for i, name in enumerate(METRICS)}
        metrics = {name: int(row.sum()) / count for name, row in hits.items()}
        present = seen > 0
        recall = hits[self.metric][present].double() / seen[present].double()
        metrics["mean_per_class_recall"] = float(recall.mean())
        return ProbeResult(metrics[self.metric], count, metrics, correct=int(hits[self.metric].sum()))

    def _candidates(self, metric: str, logits: Tensor) -> Tensor:
        """(C,) the columns that may be answered."""
        width = logits.shape[1]
        columns = torch.arange(width, device=logits.device)
        choice: Choice = "task" if metric == "task_top1" else self.module.eval_classes
        if choice == "task":
            return torch.isin(columns, torch.tensor(self.columns, device=logits.device))
        return columns < (self.module.seen if choice == "seen" else width)


def _first(logits: Tensor, own: Tensor, candidates: Tensor) -> Tensor:
    """(B,) whether a row's own column is a candidate and comes first among them."""
    there = own < logits.shape[1]
    if not len(candidates) or not len(own):
        return torch.zeros_like(own, dtype=torch.bool)
    own = own.clamp(max=logits.shape[1] - 1)
    ranks = score_ranks(logits.masked_fill(~candidates, -torch.inf), own)
    return (ranks == 0) & there & candidates[own]
