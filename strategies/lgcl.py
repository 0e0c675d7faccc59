"""LGCL: texts of class names guide the keys of a prompt pool and the features that prompts give."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mmcl.errors import ConfigError, RunError
from mmcl.functional.prompts import language_guidance_loss
from mmcl.outputs import Batch
from mmcl.strategies._prompting import KEYS, selected
from mmcl.strategy import StepContext, Strategy
from mmcl.stream import Stream


class LGCL(Strategy):
    """Language guidance beside `L2P` or `DualPrompt` (Khan et al., ICCV 2023); it has no parameters.

    With a frozen text encoder E, loss += task_weight x mean [1 - cos(k, E(task)) + cos(k, E(earlier task))] over the
    selected keys k, and class_weight x mean [1 - cos(f, E(class)) + cos(f, E(earlier class))] over the tower's features
    f with prompts. A task's text is its class names, joined by commas; the first task has no earlier ones.

    Args:
        texts: where E comes from: a ``.safetensors`` file with a vector for each class name (and, if it likes, for each
            joined text; else a task's is the mean of its classes' directions), a CLIP model as `CLIPModule` takes it
            (``local-dir:PATH``, ``package:PACKAGE/FOLDER``), or None for the module's own text tower, pretrained.
        task_weight: of the term of keys.
        class_weight: of the term of features.
        template: of the texts given to an encoder; ``{}`` stands for the names.

    Raises:
        ConfigError: an argument is out of range, a text or a class name is missing, or lengths of vectors differ.

    Differences from the published code: none is public. The weights of the terms are ours. An earlier text is drawn
    anew at every step, for each class and task and not for each sample; one that equals the own text does not count.
    """

    def __init__(
        self,
        texts: str | None = None,
        task_weight: float = 1.0,
        class_weight: float = 1.0,
        template: str = "a photo of a {}",
    ) -> None:
        super().__init__()
        for name, value in (("task_weight", task_weight), ("class_weight", class_weight)):
            if not 0 <= value < math.inf:
                raise ConfigError(f"LGCL: {name} is {value}; a weight is 0 or more")
        if template.count("{}") != 1:
            raise ConfigError(f"LGCL: template '{template}' needs one {{}} for the class names")
        self.texts, self.template = texts, template
        self.task_weight, self.class_weight = task_weight, class_weight
        self.active = task_weight > 0 or class_weight > 0
        self.needs = frozenset({"sites.input", *([KEYS] if self.active else ())})
        self.snapshots = frozenset({"initial"} if texts is None and self.active else ())
        self._tables: tuple[Tensor, Tensor] | None = None

    def setup(self, stream: Stream) -> None:
        if not self.active:
            return
        for task in stream.tasks:
            if not task.class_names:
                raise ConfigError(f"LGCL: task '{task.name}' has no class names")
        self.names = [[*(task.class_names or ())] for task in stream.tasks]
        self.union = [*dict.fromkeys(name for own in self.names for name in own)]
        self.joined = [", ".join(own) for own in self.names]
        self.columns = [torch.tensor([self.union.index(name) for name in own]) for own in self.names]
        self.tower = self.module.sites("input")[0].tower
        if self.texts is None:
            if self.module.pair is None:
                raise ConfigError(f"LGCL: {type(self.module).__name__} has no text tower; give `texts`")
            return
        self._tables = self._of_file(self.texts) if self.texts.endswith(".safetensors") else self._of_clip(self.texts)
        size = self.module.sites("input")[0].features
        if (found := self._tables[0].shape[1]) != size:
            raise ConfigError(f"LGCL: texts '{self.texts}' are vectors of {found} numbers, the features have {size}")

    def losses(self, context: StepContext) -> Mapping[str, Tensor]:
        if not self.active or self.tower not in context.batch:
            return {}
        chosen = selected(context)
        assert chosen is not None
        features = context.outputs.features[self.tower]
        classes, tasks = (table.to(features.device) for table in self._features())
        batch, generator = context.batch, context.generator
        own = self._task_of(batch)
        found: dict[str, Tensor] = {}
        if self.task_weight:
            keys = chosen.keys
            if (size := keys.shape[-1]) != tasks.shape[1]:
                raise RunError(f"LGCL: keys have {size} numbers, texts {tasks.shape[1]}; take L2P's query 'cls'")
            earlier = self._earlier_tasks(tasks, generator)
            positive, negative = (table[own][:, None].expand_as(keys).flatten(0, 1) for table in (tasks, earlier))
            found["task"] = self.task_weight * language_guidance_loss(keys.flatten(0, 1), positive, negative)
        if self.class_weight:
            column, labelled = self._column_of(batch, own)
            earlier = self._earlier_classes(classes, generator)[column]
            rows = [x[labelled] for x in (features, classes[column], earlier)]
            found["class"] = self.class_weight * (language_guidance_loss(*rows) if len(rows[0]) else features.sum() * 0)
        return found

    # -- which text is whose -----------------------------------------------------------------------------------------

    def _task_of(self, batch: Batch) -> Tensor:
        assert self.task is not None
        at_hand = torch.full((len(batch[self.tower]),), self.stream.position(self.task))
        domain = batch.get("domain", at_hand.to(batch[self.tower].device))
        return torch.where(domain < 0, at_hand.to(domain), domain)

    def _column_of(self, batch: Batch, own: Tensor) -> tuple[Tensor, Tensor]:
        """Class of each row among all class names, and whether it has one."""
        labels: Tensor = batch["labels"]
        labelled = labels >= 0
        width = max(len(columns) for columns in self.columns)
        table = torch.stack([torch.nn.functional.pad(columns, (0, width - len(columns))) for columns in self.columns])
        return table.to(labels.device)[own, labels.clamp(min=0)], labelled & batch.get("valid", labelled)

    def _earlier_tasks(self, table: Tensor, generator: torch.Generator) -> Tensor:
        """For each task the text of an earlier one with other classes; zeros, whose cosine is 0, without one."""
        found = torch.zeros_like(table)
        for row, draw in enumerate(torch.rand(len(table), generator=generator).tolist()):
            others = [i for i in range(row) if self.joined[i] != self.joined[row]]
            if others:
                found[row] = table[others[int(draw * len(others))]]
        return found

    def _earlier_classes(self, table: Tensor, generator: torch.Generator) -> Tensor:
        """For each class the text of another one of the tasks before the one at hand; zeros without one."""
        assert self.task is not None
        before = self.columns[: self.stream.position(self.task)]
        draws = torch.rand(len(table), generator=generator)
        if not before:
            return torch.zeros_like(table)
        known = torch.unique(torch.cat(before))  # sorted
        own = torch.arange(len(table))
        others = len(known) - torch.isin(own, known).int()
        chosen = (draws * others).long().clamp(max=len(known) - 1)
        chosen += (others < len(known)) & (chosen >= torch.searchsorted(known, own)) & (others > 0)
        return table[known[chosen].to(table.device)] * (others > 0)[:, None].to(table)

    # -- features of texts -------------------------------------------------------------------------------------------

    def _features(self) -> tuple[Tensor, Tensor]:
        """(classes, D) and (tasks, D)."""
        if self._tables is None:
            texts = [self.template.format(text) for text in (*self.union, *self.joined)]
            distinct = [*dict.fromkeys(texts)]
            rows = self.reach.teacher_texts("initial", distinct)
            found = rows[[distinct.index(text) for text in texts]].float()
            self._tables = found[: len(self.union)], found[len(self.union) :]
        return self._tables

    def _of_clip(self, model: str) -> tuple[Tensor, Tensor]:
        from mmcl.modules import clip_source

        source = clip_source.find(model)
        network = source.create().eval()
        tokens = source.tokenizer()([self.template.format(text) for text in (*self.union, *self.joined)])
        with torch.no_grad():
            found: Tensor = network.encode_text(tokens).float()  # type: ignore[operator]
        return found[: len(self.union)], found[len(self.union) :]

    def _of_file(self, path: str) -> tuple[Tensor, Tensor]:
        try:
            vectors = {name: value.float() for name, value in load_file(Path(path).expanduser()).items()}
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"LGCL: texts '{path}' cannot be read: {error}") from error
        for name in self.union:
            if name not in vectors:
                raise ConfigError(f"LGCL: texts '{path}' have no vector for the class '{name}'")
        classes = torch.stack([vectors[name] for name in self.union])
        means = [torch.nn.functional.normalize(classes[columns], dim=1).mean(0) for columns in self.columns]
        return classes, torch.stack([vectors.get(text, m) for text, m in zip(self.joined, means, strict=True)])
