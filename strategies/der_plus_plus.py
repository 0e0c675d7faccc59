"""DER++: replay with labels, and with the answers that the model gave when it took the samples in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from mmcl import distributed
from mmcl.errors import ConfigError, RunError, near
from mmcl.functional.representations import dark_experience_loss
from mmcl.outputs import Batch, Outputs, valid_places
from mmcl.replay import Rule, some
from mmcl.strategies._memories import _Memories
from mmcl.strategy import DataPass, StepContext
from mmcl.stream import Source, Task

Answer = Literal["logits", "tokens", "features"]
Row = dict[str, Tensor]


class DERPlusPlus(_Memories):
    """Dark experience replay (DER++; Buzzega et al., NeurIPS 2020).

    loss + alpha x mean (F(x') - z')^2 on one draw from the memory + beta x the module's own loss on another, with its
    labels. z' is what the model answered to x' when x' entered the memory.

    Args:
        size: samples of the memory over the whole stream; each task has an equal part.
        alpha: weight of the stored answers. The published code has 0.1 to 1, by data set and memory.
        beta: weight of the labels; 0 is DER. The published code has 0.5 or 1.
        batch_size: samples of each draw, over all processes; None takes the training batch's size.
        on: the answer: ``logits``, ``tokens`` or ``features``. None takes the logits where a batch gives them, else the
            features. Logits of a language model are stored whole: samples x tokens x vocabulary.
        rule: how samples are chosen: ``reservoir`` or ``class_balanced``.

    Raises:
        ConfigError: an argument is out of range, the memory has less than a sample for each task, the objective reads
            labels as those of the task at hand, or the module does not offer `on`.

    Differences from the published code: a sample enters the memory when its task ends, with the answer of the model in
    training at that moment to the sample without augmentation; there it enters along the way, with the answer to an
    augmented view. A head that has grown since is compared in the columns of the time. The memory holds keys and
    answers; samples are read and augmented anew. Those that cannot be decoded leave it.
    """

    remembered: dict[str, list[Row]]

    def __init__(
        self,
        size: int,
        alpha: float = 0.1,
        beta: float = 0.5,
        batch_size: int | None = None,
        on: Answer | None = None,
        rule: Rule = "reservoir",
    ) -> None:
        super().__init__(size, batch_size, rule)
        for name, value in (("alpha", alpha), ("beta", beta)):
            if not 0 <= value < math.inf:
                raise ConfigError(f"DERPlusPlus: {name} is {value}; a weight is 0 or more")
        if on is not None and on not in get_args(Answer):
            raise ConfigError(f"DERPlusPlus: on '{on}' is unknown; {near(on, get_args(Answer))}")
        self.name = "der_plus_plus"
        self.alpha, self.beta, self.on = alpha, beta, on
        self.active = alpha > 0 or beta > 0
        self.reads = self.reads if self.active else frozenset()
        self.needs = frozenset({on} if on and alpha else ())
        self.add_state("remembered", {}, dtype=None)

    def draws(self, tasks: Sequence[Task]) -> Mapping[str, Sequence[Task]]:
        return {name: tasks for name, weight in (("answers", self.alpha), ("labels", self.beta)) if weight}

    def on_task_end(self, task: Task, data: DataPass) -> None:
        super().on_task_end(task, data)
        if self.alpha:
            (source,) = self.side(f"{self.name}/answers", [task])
            answers = self._answers(source)
            self._leave_out(task, set(answers))
            self.remembered = {**self.remembered, task.name: list(answers.values())}

    def losses(self, context: StepContext) -> Mapping[str, Tensor]:
        terms = {}
        for name, weight in (("answers", self.alpha), ("labels", self.beta)):
            if (side := context.side.get(f"{self.name}/{name}")) is not None:
                batch = self.module.objective.prepare(side)
                outputs = context.forward(batch)
                loss = context.module_loss(outputs, batch) if name == "labels" else self._of_answers(outputs, batch)
                terms[name] = weight * loss
        return terms

    # -- answers -----------------------------------------------------------------------------------------------------

    def _of_answers(self, outputs: Outputs, batch: Batch) -> Tensor:
        table = [row for task in self.earlier() for row in self.remembered[task.name]]
        rows = [table[index] for index in batch["__index__"].tolist()]
        losses = []
        for name, values in self._found(outputs, batch).items():
            places = valid_places(values, outputs, batch)
            for own, kept, row in zip(values, places, rows, strict=True):
                if name not in row:
                    continue
                old = row[name]
                if own.dim() > 1:  # tokens or frames; an augmented view may have fewer or more
                    length = min(len(own), len(old))
                    own, old = own[:length][kept[:length]], old[:length][kept[:length]]
                losses.append(dark_experience_loss(own, old) if own.numel() else values.sum() * 0.0)
        return torch.stack(losses).mean()

    def _found(self, outputs: Outputs, batch: Batch) -> Row:
        """What is remembered of each row."""
        found: Row
        answer = self.on or ("features" if outputs.logits is None else "logits")
        if answer != "features":
            value: Tensor | None = getattr(outputs, answer)
            found = {} if value is None else {answer: value}
        else:  # of the rows: texts of all classes are no answer to any of them
            names = self.module.pair or tuple(outputs.features)
            found = {name: outputs.features[name] for name in names if name in outputs.features}
        if not found:
            raise RunError(f"DERPlusPlus: the outputs for the memory's batch hold no {answer}")
        return found

    @torch.no_grad()
    def _answers(self, source: Source) -> dict[int, Row]:
        """Place in the memory's source -> row without padding, ascending; none of a sample that cannot be decoded."""
        rows: list[Row] = []
        places: list[Tensor] = []
        for batch in self.reach.samples(source):
            # What fills a batch up, or stands in for another, is a sample of the memory, too, read twice.
            prepared = self.module.objective.prepare({**batch, "valid": torch.ones_like(batch["valid"])})
            outputs = self.wrapped(prepared)
            found = self._found(outputs, prepared)
            if "text_rows" in batch and self.module.pair is not None:  # no caption is the sample's only one
                found = {name: value for name, value in found.items() if name == self.module.pair[0]}
            lengths = {name: _lengths(valid_places(value, outputs, prepared)) for name, value in found.items()}
            rows += [
                {name: value[i, : lengths[name][i]] if value.dim() > 2 else value[i] for name, value in found.items()}
                for i in range(len(batch["__index__"]))
            ]
            places.append(batch["__index__"])
        return _gathered(rows, torch.cat(places))

    def _leave_out(self, task: Task, found: set[int]) -> None:
        """Forget the samples of a task's memory that cannot be decoded: each draw of one would count as a bad one."""
        kept = self.memories.of[task.name].kept[task.name]
        if len(found) == len(kept) or self.module.packing is not None:  # a block of documents can always be read
            return
        samples, chosen = self.reach.task_samples(task), {(sample.source, sample.key) for sample in kept}
        places = [i for i, own in enumerate(zip(samples.sources, samples.keys, strict=True)) if own in chosen]
        self.memories.add(task.name, some(samples, [places[place] for place in sorted(found)]))


def _lengths(places: Tensor) -> list[int]:
    """Places up to the last valid one, of each row."""
    count = torch.arange(1, places.shape[-1] + 1, device=places.device)
    return [int(end) for end in (count * places).amax(-1)] if places.dim() > 1 else []


def _gathered(rows: list[Row], places: Tensor) -> dict[int, Row]:
    """The rows of all processes by their places, ascending; of several for one place any."""
    order = {place: i for i, place in enumerate(distributed.gather(places).tolist())}
    found: dict[int, Row] = {place: {} for place in sorted(order)}
    for name in rows[0]:
        values = [row[name] for row in rows]
        lengths = torch.tensor([len(value) for value in values], device=places.device)
        longest = distributed.agree(int(lengths.max()))
        padded = [torch.cat([v, v.new_zeros(longest - len(v), *v.shape[1:])]) for v in values]
        whole = list(zip(distributed.gather(torch.stack(padded)), distributed.gather(lengths).tolist(), strict=True))
        for place in found:
            value, length = whole[order[place]]
            found[place][name] = value[:length].clone()
    return found
