"""Distillation from a frozen teacher on reference data or on the task's own batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mmcl.errors import ConfigError, RunError, near
from mmcl.functional.distillation import distillation_loss, zscl_loss
from mmcl.outputs import Batch, Outputs
from mmcl.strategy import StepContext, Strategy
from mmcl.stream import Source, Stream, Task

TEACHERS = {"initial": "initial", "previous": "start"}
"""Name of a teacher -> the snapshot that it holds."""
TEXTS = ("class_text", "text")
"""Batch keys and features of texts, in order of preference."""
CHUNK = 256
"""Texts that the teacher encodes at once."""


class Distillation(Strategy):
    """Hold the student's image features to a frozen teacher's (ZSCL; Zheng et al., ICCV 2023, section 4.1).

    With n(x) = x / ||x||, the student's s and reference images x, the student's rows Z = s n(f(x)) n(texts)^T are
    held to the teacher's Z_t = s n(f_t(x)) n(texts)^T. D = T^2 mean_rows CE(softmax(Z_t / T), softmax(Z / T)) is taken
    over texts (`image_to_text`) and of the transposes over images (`text_to_image`); the texts' features are the
    teacher's. Where the outputs hold no image and text features, the logits of the valid rows are distilled by D with
    weight `image_to_text`.

    Args:
        teacher: ``initial``, the pretrained model, or ``previous``, the model at the start of the task.
        reference: name of one of the stream's sources, or a source; None distils on the task's own batch.
        texts: ``batch`` (the reference batch's captions; without a reference the class texts, else the captions),
            ``all`` (every distinct caption of the reference at every step) or a text file with one caption a line.
            The teacher's features of ``all`` and of a file are computed once.
        temperature: T. The published code uses 2.
        image_to_text: weight of the term over texts. The code uses 1 on MTIL, 5 in class-incremental runs.
        text_to_image: weight of the term over images, likewise.
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
        for name, weight in (("image_to_text", image_to_text), ("text_to_image", text_to_image)):
            if not 0 <= weight < math.inf:
                raise ConfigError(f"Distillation: {name} is {weight}; a weight is 0 or more")
        if batch_size is not None and batch_size < 1:
            raise ConfigError(f"Distillation: batch_size is {batch_size}; it must be 1 or more")
        if reference is None and (texts == "all" or batch_size is not None):
            raise ConfigError("Distillation: texts 'all' and batch_size belong to a reference; give `reference`")
        if cache_images and (reference is None or texts == "batch"):
            raise ConfigError("Distillation: cache_images needs a `reference` and texts 'all' or a file")
        self.reference = reference
        self.texts = texts
        self.lines = None if texts in ("batch", "all") else _read(texts)
        self.temperature = temperature
        self.terms = {"image_to_text": image_to_text, "text_to_image": text_to_image}
        self.batch_size = batch_size
        self.cache_images = cache_images
        self.teacher = TEACHERS[teacher]
        self.active = any(self.terms.values())
        self.snapshots = frozenset({self.teacher} if self.active else ())
        self.needs = frozenset() if texts == "batch" or not self.active else frozenset({"features", "logit_scale"})
        self._source: Source | None = None
        self._known: _Known | None = None

    def setup(self, stream: Stream) -> None:
        if self.reference is None or not self.active:
            return
        source = stream.source(self.reference) if isinstance(self.reference, str) else self.reference
        name = self.reference if isinstance(self.reference, str) else source.name
        if self.cache_images and source.augment:
            raise ConfigError(f"Distillation: cache_images, but source '{name}' is augmented; set its `augment: false`")
        size = self.batch_size or source.batch_size
        self._source = replace(source, name=name, role="side", share=None, batch_size=size)

    def sources(self, task: Task) -> Sequence[Source]:
        return () if self._source is None else (self._source,)

    def losses(self, context: StepContext) -> Mapping[str, Tensor]:
        if not self.active:
            return {}
        source = self._source
        batch = context.batch if source is None else context.side[source.name]
        pictures = {k: v for k, v in batch.items() if k not in TEXTS}  # the student's texts take no part
        if self.texts == "batch":
            answer = context.teacher(self.teacher, batch)
            found = [key for key in TEXTS if key in answer.features]
            if "image" not in answer.features or not found:
                return self._of_logits(answer, context.outputs if source is None else context.forward(batch))
            images, texts = answer.features["image"], answer.features[found[0]]
            texts = texts if found[0] == "class_text" else context.gather(texts)  # class texts are every rank's
        else:
            known = self._known_to_teacher(context.task)
            images, texts = self._images(context, pictures, known), known.texts
        student = context.outputs if source is None else context.forward(pictures)
        if student.logit_scale is None:
            raise RunError("Distillation: the module's outputs hold image features but no `logit_scale`")
        scale = student.logit_scale.detach()
        ours, theirs = context.gather(student.features["image"]), context.gather(images)
        values = zscl_loss(ours, theirs, texts, logit_scale=scale, temperature=self.temperature)
        return {name: weight * v for (name, weight), v in zip(self.terms.items(), values, strict=True) if weight}

    def _of_logits(self, teacher: Outputs, student: Outputs) -> Mapping[str, Tensor]:
        if teacher.logits is None or student.logits is None:
            raise RunError("Distillation: the module's outputs hold neither image and text features nor logits")
        width = min(teacher.logits.shape[-1], student.logits.shape[-1])  # what both know of a head that grew
        ours, theirs = student.logits[..., :width], teacher.logits[..., :width]
        valid = torch.ones_like(ours[..., 0], dtype=torch.bool) if student.valid is None else student.valid
        loss = distillation_loss(theirs[valid], ours[valid], temperature=self.temperature)
        return {"logits": self.terms["image_to_text"] * loss}

    def _known_to_teacher(self, task: Task | None) -> _Known:
        """The features that the teacher has been asked for; a teacher that changes with the task starts anew."""
        of = task.name if task is not None and self.teacher == "start" else ""
        if self._known is None or self._known.of != of:
            texts = self.reach.captions(self._source) if self._source and self.texts == "all" else self.lines or ()
            if not texts:
                raise RunError(f"Distillation: the reference '{self._source and self._source.name}' has no captions")
            teacher = self.reach.teacher(self.teacher)
            device = next(teacher.parameters()).device
            with torch.inference_mode(False), torch.no_grad():
                chunks = self.module.tokenize(list(dict.fromkeys(texts))).to(device).split(CHUNK)
                features = [self.module.compute(teacher, {"text": chunk}).features["text"] for chunk in chunks]
            self._known = _Known(of, torch.cat(features))
        return self._known

    def _images(self, context: StepContext, batch: Batch, known: _Known) -> Tensor:
        if not self.cache_images:
            return context.teacher(self.teacher, batch).features["image"]
        if known.images is None:
            known.images = self._table(context)
        return known.images[batch["__index__"]]

    @torch.no_grad()
    def _table(self, context: StepContext) -> Tensor:
        """The teacher's features of the whole reference set by sample, in batches that a resumed run repeats."""
        assert self._source is not None
        teacher = self.reach.teacher(self.teacher)
        rows: list[Tensor] = []
        indices: list[Tensor] = []
        for batch in self.reach.samples(self._source):
            rows.append(self.module.compute(teacher, {"image": batch["image"]}).features["image"][batch["valid"]])
            indices.append(batch["__index__"][batch["valid"]])
        found, places = context.gather(torch.cat(rows)), context.gather(torch.cat(indices))
        table = found.new_zeros((len(places), found.shape[1]))
        table[places] = found
        return table


@dataclass
class _Known:
    """A teacher's features of fixed texts and of images by their index. No state: a resumed run makes them again."""

    of: str
    texts: Tensor
    images: Tensor | None = None


def _read(path: str) -> list[str]:
    """The captions of a text file, one a line."""
    if not Path(path).is_file():
        raise ConfigError(f"Distillation: texts '{path}' is neither 'batch', 'all' nor a text file")
    lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    if not any(lines):
        raise ConfigError(f"Distillation: the text file '{path}' holds no captions")
    return [line for line in lines if line]
