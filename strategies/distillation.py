"""Distillation from a frozen teacher on reference data or on the task's own batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mmcl.errors import ConfigError, RunError, near
from mmcl.functional.distillation import distillation_loss, feature_distillation_loss, zscl_loss
from mmcl.outputs import Batch, Outputs
from mmcl.strategy import Distillable, StepContext, Strategy
from mmcl.stream import Source, Stream, Task

TEACHERS = {"initial": "initial", "previous": "start"}
"""Name of a teacher -> the snapshot that it holds."""
TEXTS = ("class_text", "text")
"""Batch keys and features of texts, in order of preference."""


class Distillation(Strategy):
    """Hold the student's image features to a frozen teacher's (ZSCL; Zheng et al., ICCV 2023, section 4.1).

    With n(x) = x / ||x||, the student's s and reference images x, the student's rows Z = s n(f(x)) n(texts)^T are
    held to the teacher's Z_t = s n(f_t(x)) n(texts)^T. D = T^2 mean_rows CE(softmax(Z_t / T), softmax(Z / T)) is taken
    over texts (`image_to_text`) and of the transposes over images (`text_to_image`); the texts' features are the
    teacher's. A module without such pairs is held by D on its logits over classes, tokens or frames (Li & Hoiem, TPAMI
    2018), or by the mean squared difference of normalised vectors on ``tokens`` or ``features``.

    Args:
        teacher: ``initial``, the pretrained model, or ``previous``, the model at the start of the task.
        reference: name of one of the stream's sources, or a source; None distils on the task's own batch.
        texts: ``batch`` (the reference batch's captions; without a reference the class texts, else the captions),
            ``all`` (every distinct caption of the reference at every step) or a text file with one caption a line.
            The teacher's features of ``all`` and of a file are computed once.
        temperature: T. The published code uses 2.
        on: ``similarities``, ``logits``, ``tokens`` or ``features``; None takes the first that the module declares.
        weight: of the whole.
        image_to_text: factor of the term over texts. The code uses 1 on MTIL, 5 in class-incremental runs.
        text_to_image: factor of the term over images, likewise. Both are of similarities alone.
        batch_size: global size of the reference batch; None takes the source's, then that of the training batch.
        cache_images: compute the teacher's features of the whole reference set once, in a pass of fixed order. The
            source must not be augmented and `texts` must be ``all`` or a file.

    Raises:
        ConfigError: an argument is out of range or does not go with another one.

    Differences from the published code: s is detached (there it is frozen). The term over images, and the one over the
    texts of a batch, span all processes.
    """

    def __init__(
        self,
        teacher: Literal["initial", "previous"] = "initial",
        reference: str | Source | None = "reference",
        texts: str = "batch",
        temperature: float = 2.0,
        on: Distillable | None = None,
        weight: float = 1.0,
        image_to_text: float = 1.0,
        text_to_image: float = 1.0,
        batch_size: int | None = None,
        cache_images: bool = False,
    ) -> None:
        super().__init__()
        if teacher not in TEACHERS:
            raise ConfigError(f"Distillation: teacher '{teacher}' is unknown; {near(teacher, TEACHERS)}")
        if not 0 < temperature < math.inf:
            raise ConfigError(f"Distillation: temperature is {temperature}; it must be positive")
        for name, value in (("weight", weight), ("image_to_text", image_to_text), ("text_to_image", text_to_image)):
            if not 0 <= value < math.inf:
                raise ConfigError(f"Distillation: {name} is {value}; a weight is 0 or more")
        if batch_size is not None and batch_size < 1:
            raise ConfigError(f"Distillation: batch_size is {batch_size}; it must be 1 or more")
        if reference is None and (texts == "all" or batch_size is not None):
            raise ConfigError("Distillation: texts 'all' and batch_size belong to a reference; give `reference`")
        if cache_images and (reference is None or texts == "batch"):
            raise ConfigError("Distillation: cache_images needs a `reference` and texts 'all' or a file")
        self.reference = reference
        self.texts = texts
        self.lines: Sequence[str] | None = None if texts in ("batch", "all") else _read(texts)
        self.on, self.weight = on, weight
        self.temperature = temperature
        self.terms = {"image_to_text": image_to_text, "text_to_image": text_to_image}
        self.batch_size = batch_size
        self.cache_images = cache_images
        self.teacher = TEACHERS[teacher]
        self.active = weight > 0 and any(self.terms.values())
        self.snapshots = frozenset({self.teacher} if self.active else ())
        self.needs = frozenset() if texts == "batch" or not self.active else frozenset({"features", "logit_scale"})
        self._source: Source | None = None

    def setup(self, stream: Stream) -> None:
        offered, module = self.module.distillable, type(self.module).__name__
        if not offered or self.on not in (None, *offered):
            raise ConfigError(
                f"{self.title}: {module} cannot be distilled on {self.on or 'anything'}; {near('', offered)}"
            )
        self.on = self.on or offered[0]
        if self.on == "logits" and self.teacher == "initial" and self.module.fresh_head:
            raise ConfigError(
                f"{self.title}: the initial head of {module} knows nothing yet; take teacher 'previous' or another `on`"
            )
        if self.on != "similarities" and (self.texts != "batch" or self.cache_images):
            raise ConfigError(f"{self.title}: `texts` and `cache_images` belong to similarities, not to {self.on}")
        if self.reference is None or not self.active:
            return
        source = stream.source(self.reference) if isinstance(self.reference, str) else self.reference
        name = self.reference if isinstance(self.reference, str) else source.name
        if self.cache_images and source.augment:
            raise ConfigError(f"{self.title}: cache_images, but source '{name}' is augmented; set its `augment: false`")
        size = self.batch_size or source.batch_size
        self._source = replace(source, name=name, role="side", share=None, batch_size=size)

    def sources(self, task: Task) -> Sequence[Source]:
        return () if self._source is None else (self._source,)

    def losses(self, context: StepContext) -> Mapping[str, Tensor]:
        if not self.active:
            return {}
        batch = context.batch if self._source is None else context.side[self._source.name]
        if self.on == "similarities":
            return self._of_similarities(context, batch)
        student = context.outputs if self._source is None else context.forward(batch)
        return {str(self.on): self.weight * self._of_outputs(context, context.teacher(self.teacher, batch), student)}

    def _of_similarities(self, context: StepContext, batch: Batch) -> Mapping[str, Tensor]:
        what = self.module.pair[0]
        given = {k: v for k, v in batch.items() if k not in TEXTS}  # the student's texts take no part
        if self.texts == "batch":
            answer = context.teacher(self.teacher, batch)
            found = [key for key in TEXTS if key in answer.features]
            if what not in answer.features or not found:
                raise RunError(f"{self.title}: the batch has no {what} or no texts to compare; give a `reference`")
            theirs, texts = answer.features[what], answer.features[found[0]]
            texts = texts if found[0] == "class_text" else context.gather(texts)  # class texts are every rank's
        else:
            texts = self.reach.teacher_texts(self.teacher, self._lines())
            if self.cache_images and self._source is not None:
                theirs = self.reach.teacher_table(self.teacher, self._source, what)[batch["__index__"]]
            else:
                theirs = context.teacher(self.teacher, given).features[what]
        student = context.outputs if self._source is None else context.forward(given)
        if student.logit_scale is None:
            raise RunError(f"{self.title}: the module's outputs hold features but no `logit_scale`")
        ours, theirs = context.gather(student.features[what]), context.gather(theirs)
        scale = student.logit_scale.detach()
        values = zscl_loss(ours, theirs, texts, logit_scale=scale, temperature=self.temperature)
        return {name: self.weight * f * v for (name, f), v in zip(self.terms.items(), values, strict=True) if f}

    def _of_outputs(self, context: StepContext, teacher: Outputs, student: Outputs) -> Tensor:
        if self.on == "features":
            pairs = [(teacher.features[k], student.features[k]) for k in student.features if k in teacher.features]
            return torch.stack([feature_distillation_loss(a, b) for a, b in pairs]).sum()
        theirs: Tensor | None = getattr(teacher, str(self.on))
        ours: Tensor | None = getattr(student, str(self.on))
        if theirs is None or ours is None:
            raise RunError(f"{self.title}: the outputs for the batch hold no {self.on}")
        valid = torch.ones_like(ours[..., 0], dtype=torch.bool) if student.valid is None else student.valid
        rows = valid.sum().float()  # ranks may hold different numbers of tokens, or none
        share: Tensor = rows / context.reduce(rows).clamp(min=1)
        if not rows:
            return ours.sum() * 0.0
        if self.on == "tokens":
            loss = feature_distillation_loss(theirs[valid], ours[valid])
        else:
            width = min(theirs.shape[-1], ours.shape[-1])  # what both know of a head that grew
            known = slice(width) if student.known is None else student.known[:width].nonzero()[:, 0]
            theirs, ours = theirs[..., known][valid], ours[..., known][valid]
            if not ours.shape[-1]:  # no class was trained before this task
                return ours.sum()
            loss = distillation_loss(theirs, ours, temperature=self.temperature)
        return loss * share

    def _lines(self) -> Sequence[str]:
        if self.lines is None:
            assert self._source is not None
            self.lines = self.reach.captions(self._source)
            if not self.lines:
                raise RunError(f"{self.title}: the reference '{self._source.name}' has no captions")
        return self.lines


def _read(path: str) -> list[str]:
    """The captions of a text file, one a line."""
    if not Path(path).is_file():
        raise ConfigError(f"Distillation: texts '{path}' is neither 'batch', 'all' nor a text file")
    lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    if not any(lines):
        raise ConfigError(f"Distillation: the text file '{path}' holds no captions")
    return [line for line in lines if line]
