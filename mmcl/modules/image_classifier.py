"""Image classifiers on timm's backbones: classes that come with the tasks, in one head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmcl.errors import ConfigError, near
from mmcl.modules import image_network, image_source
from mmcl.modules.base import Module, OptimizerBuilder
from mmcl.modules.clip_transform import ImageAugment
from mmcl.modules.image_heads import KINDS, HeadKind
from mmcl.modules.image_network import ImageNetwork
from mmcl.modules.image_objective import CANDIDATES, MaskedCrossEntropy
from mmcl.modules.image_transform import ImageTransform
from mmcl.modules.labels import LabelSpace
from mmcl.modules.objectives import IGNORED
from mmcl.modules.prompt_sites import prompt_sites
from mmcl.outputs import Batch, Objective, Outputs, draws_to_augment, takes_pixels
from mmcl.schedule import Schedule
from mmcl.stream import Stream, Task

Part = Literal["backbone", "head"]
PARTS: tuple[Part, ...] = ("backbone", "head")
CHOICES = ("task", "seen", "all")
AUGMENT = ImageAugment(scale=(0.6, 1.0), hflip=True)


class ImageClassifierModule(Module):
    """A backbone of timm and one head over the classes of all tasks.

    The head's columns are the ordered union of the tasks' `class_names` (`mmcl.modules.labels.LabelSpace`): new names
    are new classes (class-incremental), known ones the same classes again (domain-incremental). ``labels`` count within
    the task that a row belongs to (its ``domain``); the transform adds the column as ``targets``.

    Args:
        model: an architecture of timm (``mobilenetv2_100``), or a folder of timm: ``local-dir:PATH``, ``asset:NAME``,
            ``package:some.package/FOLDER``; ``hf-hub:ORGANISATION/NAME``. Its own head is left out.
        pretrained: timm's weights for its own names, downloaded. A folder brings its weights.
        checkpoint: file of weights (safetensors, or torch's format without code), also of mmcl.
        random_init: ignore a folder's weights.
        head: ``masked`` has the rows of all tasks from the start; ``growing`` gets a task's rows when the task begins.
        head_kind: ``linear``, or ``cosine``: a scaled cosine of features and rows, so that no class is preferred for
            the length of its row.
        head_scale: factor on the cosines; where it is learned, at the start.
        learn_scale: whether the factor trains with the head.
        train_classes: what the loss chooses among: the classes of the row's ``task``, those ``seen`` so far, ``all``.
        eval_classes: what `top1` chooses among: the classes ``seen`` so far, ``all``, or those of the evaluation set
            (``task``).
        class_names: the classes, for use outside a stream; a stream brings its own.
        trainable: what trains: ``backbone``, ``head``.
        freeze_norm: batch norms keep their running statistics, and normalise by them in training. The default, since
            the statistics follow the task at hand and forget even where no weight does, and since batches on several
            processes have statistics of their own. Set it to false for training from random weights.
        head_lr_scale: factor on the head's learning rate.
        image_size: side of the pictures, in pixels; None takes the model's own.
        crop: part of the resized picture's side that evaluation keeps; None takes the model's own.
        augment: the training transform of pictures; None trains on what evaluation sees.
        objective: `MaskedCrossEntropy` by default; `CrossEntropy` ignores `train_classes`.
        lr: learning rate; each task may scale it.
        weight_decay: of the default optimizer; vectors and scalars are not decayed. It shrinks the head's rows of
            classes that the task at hand does not train, too.
        betas: of the default optimizer.
        schedule: factor on the rate over a task's steps. None: 10 % warm-up, then cosine to 0.
        optimizer: takes parameter groups and returns an optimizer, in place of AdamW.
        channels_last: memory format of pictures and network; faster for convolutions.
    """

    provides = frozenset({"features", "features.image", "logits", "sites.linear"})
    probes = frozenset({"classification"})
    distillable = ("logits", "features")
    fresh_head = True
    formats = ("timm", "safetensors")

    def __init__(
        self,
        model: str,
        pretrained: bool = False,
        checkpoint: str | None = None,
        random_init: bool = False,
        head: Literal["masked", "growing"] = "masked",
        head_kind: HeadKind = "linear",
        head_scale: float = 16.0,
        learn_scale: bool = True,
        train_classes: Literal["task", "seen", "all"] = "task",
        eval_classes: Literal["task", "seen", "all"] = "seen",
        class_names: Sequence[str] | None = None,
        trainable: Sequence[Part] = PARTS,
        freeze_norm: bool = True,
        head_lr_scale: float = 1.0,
        image_size: int | None = None,
        crop: float | None = None,
        augment: ImageAugment | None = AUGMENT,
        objective: Objective | None = None,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        schedule: Schedule | None = None,
        optimizer: OptimizerBuilder | None = None,
        channels_last: bool = False,
    ) -> None:
        super().__init__(objective or MaskedCrossEntropy(), lr, weight_decay, betas, schedule, optimizer)
        for name, value, known in (
            ("head", head, ("masked", "growing")),
            ("head_kind", head_kind, KINDS),
            ("train_classes", train_classes, CHOICES),
            ("eval_classes", eval_classes, CHOICES),
            *(("trainable", part, PARTS) for part in trainable),
        ):
            if value not in known:
                raise ConfigError(f"ImageClassifierModule: {name} '{value}' is unknown; {near(value, known)}")
        for name, factor in (("head_lr_scale", head_lr_scale), ("head_scale", head_scale)):
            if not 0 < factor < math.inf:
                raise ConfigError(f"ImageClassifierModule: {name} is {factor}; it must be positive")
        from timm.data import resolve_model_data_config

        self._head = (head_kind, head_scale, learn_scale)
        self.kind, self.train_classes, self.eval_classes = head, train_classes, eval_classes
        self.trainable = frozenset(trainable)
        self.freeze_norm, self.head_lr_scale = freeze_norm, head_lr_scale
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.source = image_source.find(model)
        self.image_size = image_size
        backbone: Any = self.source.create(pretrained, checkpoint, random_init, image_size)
        self.fixed_size = bool(backbone.pretrained_cfg.get("fixed_input_size", False))
        self.pictures = ImageTransform(resolve_model_data_config(backbone), image_size, crop, augment)
        self.pixel_statistics = (self.pictures.config["mean"], self.pictures.config["std"])
        self.labels = LabelSpace(() if class_names is None else (tuple(class_names),))
        self.position = -1 if class_names is None else 0
        self.network = self._formatted(ImageNetwork(backbone, len(self.labels.names), *self._head))
        self._masks: tuple[Tensor, Tensor]
        self._choose()
        kinds = [f"sites.{kind}" for kind in ("attention", "input") if self._prompt_sites(kind)]
        self.provides = type(self).provides | {f"head.{head_kind}", *kinds}

    # -- the contract -----------------------------------------------------------------------------------------------

    def compute(self, network: nn.Module, batch: Batch) -> Outputs:
        """Features, logits and targets of pictures.

        Args:
            network: the live one or a teacher.
            batch: ``image`` (B, 3, H, W), ``targets`` (B,) columns or -100, ``domain`` (B,), ``valid`` (B,); all of
                them optional.

        Returns:
            ``features["image"]`` (B, D); raw ``logits`` (B, C); ``known`` (C,), the columns of the tasks before this
            one; with targets, ``extra["candidates"]`` (B, C), what the loss chooses among.
        """
        outputs = Outputs(valid=batch.get("valid"))
        if "image" not in batch:
            return outputs
        pictures: Tensor = batch["image"].contiguous(memory_format=self.memory_format)
        outputs.features["image"], outputs.logits = network(pictures)
        known, candidates = self._masks_on(pictures.device)
        outputs.known = known
        if "targets" in batch:
            outputs.targets = batch["targets"]
            labelled = outputs.targets != IGNORED
            outputs.valid = labelled if outputs.valid is None else labelled & outputs.valid
            task = batch["domain"] if "domain" in batch else torch.full_like(outputs.targets, max(self.position, 0))
            outputs.extra[CANDIDATES] = candidates[task]
        return outputs

    def build_network(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):  # a teacher must not move the random numbers of the run
            return self._formatted(ImageNetwork(self.source.build(self.image_size), self._network.classes, *self._head))

    @draws_to_augment
    @takes_pixels
    def transform(self, sample: dict[str, Any], augment: bool) -> dict[str, Any]:
        """Picture -> ``image`` (3, H, W); in training the label's column as ``targets``.

        Raises:
            RunError: a label outside the class names of the sample's task.
        """
        row = dict(sample)
        if "image" in row:
            row["image"] = self.pictures(row["image"], augment)
        task = int(sample.get("domain", 0))
        if "labels" in row and 0 <= task < len(self.labels.tasks):  # an evaluation set's labels are not a task's
            row["targets"] = self.labels.column(task, int(row["labels"]), str(sample.get("__key__", "?")))
        return row

    def check(self, stream: Stream) -> None:
        """Refuse a stream that a classifier cannot serve, and take its label space.

        Raises:
            ConfigError: tasks without class names, names that clash, or an evaluation set of other classes.
        """
        super().check(stream)
        labels = LabelSpace.of(stream)
        for task in stream.tasks:
            for source in task.mix:
                if (
                    source.task is None
                    and source.labels is None
                    and (source.fields is None or "labels" in source.fields)
                ):
                    raise ConfigError(
                        f"task '{task.name}': labels of the mixed source '{source.name}' would count as this task's "
                        "classes; say whose they are with its `task`, map them with its `labels`, or leave them out of "
                        "its `fields`"
                    )
        for evalset in stream.evals:
            where = f"evaluation set '{evalset.name}'"
            if evalset.class_names is None:
                raise ConfigError(f"{where}: classification needs `class_names`")
            labels.columns(evalset.class_names, where)
        if labels != self.labels:
            self.labels, self.position = labels, -1
            self._network.restart(len(labels.names) if self.kind == "masked" else 0)
            self._choose()

    def needed(self, probe: str = "") -> frozenset[str]:
        return frozenset({"image", "labels"})

    def grow(self, task: Task) -> None:
        """Take the task as the one at hand; a growing head gets its rows.

        Raises:
            ConfigError: the task is not of the stream that `check` was shown.
        """
        self.position = self.labels.position(task.name)
        if self.kind == "growing" and self.seen > self._network.classes:
            self._network.extend(self.seen)
        self._choose()

    @property
    def seen(self) -> int:
        """How many classes the tasks so far have: the first columns."""
        return self.labels.seen(self.position) if self.position >= 0 else 0

    @property
    def classifier(self) -> nn.Module:
        return self._network.head

    @property
    def _network(self) -> ImageNetwork:
        assert isinstance(self.network, ImageNetwork)
        return self.network

    def _choose(self) -> None:
        """What trains, and which columns are known and may be answered in the task at hand."""
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(name.split(".", 1)[0] in self.trainable)
        columns = torch.arange(self._network.classes)
        before = self.labels.seen(self.position - 1) if self.position > 0 else 0
        candidates = torch.zeros(max(len(self.labels.tasks), 1), len(columns), dtype=torch.bool)
        for row, own in zip(candidates, self.labels.table, strict=False):
            row[[column for column in own if column < len(columns)]] = True
        if self.train_classes != "task":
            candidates[:] = columns < (self.seen if self.train_classes == "seen" else len(columns))
        self._masks = (columns < before, candidates)

    def _masks_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if self._masks[0].device != device:
            self._masks = (self._masks[0].to(device), self._masks[1].to(device))
        return self._masks

    def train(self, mode: bool = True) -> ImageClassifierModule:
        """A frozen backbone, and batch norms that keep their statistics, stay in evaluation mode."""
        super().train(mode)
        backbone = self._network.backbone
        if "backbone" not in self.trainable:
            backbone.eval()
        elif self.freeze_norm:
            for layer in backbone.modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    layer.eval()
        return self

    def lr_scale(self, name: str) -> float:
        return self.head_lr_scale if self.is_head(name) else 1.0

    def is_head(self, name: str) -> bool:
        return name.startswith("head.")

    def columns(self, task: Task) -> Sequence[int]:
        alone = self.train_classes == "task" and isinstance(self.objective, MaskedCrossEntropy)
        return self.labels.table[self.labels.position(task.name)] if alone else ()

    def sites(self, kind: str) -> list[Any]:
        """Places in the backbone; the head is the module's own. Prompts go into vision transformers alone."""
        if kind != "linear":
            return self._prompt_sites(kind) or super().sites(kind)
        from mmcl.modules.sites import linear_sites

        return linear_sites(self.network, lambda name: "image" if name.startswith("backbone.") else None)

    def _prompt_sites(self, kind: str) -> list[Any]:
        if kind not in ("attention", "input"):
            return []
        return prompt_sites(self._network.backbone, "backbone", kind, self._network.head.in_features)

    def export(self, folder: Path, format: str) -> None:
        """``timm``: a folder that ``timm.create_model("local-dir:FOLDER", pretrained=True)`` reads, head included."""
        if format != "timm":
            return super().export(folder, format)
        image_network.export(
            self._network, self.source.name, self.labels.names, self.pictures.config, self.fixed_size, folder
        )

    def _formatted(self, network: nn.Module) -> nn.Module:
        return network.to(memory_format=self.memory_format)  # type: ignore[call-overload, no-any-return]
