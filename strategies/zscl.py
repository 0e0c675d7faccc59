"""ZSCL: distillation on reference data, a weight ensemble and weight consolidation, as a preset."""

from __future__ import annotations

from collections.abc import Sequence

from mmcl.strategies.distillation import Distillation
from mmcl.strategies.weight_consolidation import WeightConsolidation
from mmcl.strategies.weight_ensemble import WeightEnsemble
from mmcl.strategy import Strategy
from mmcl.stream import Source


class ZSCL(Strategy):
    """Preventing zero-shot transfer degradation (Zheng et al., ICCV 2023, "Preventing Zero-Shot Transfer Degradation").

    Loss: the task's own + image_to_text + text_to_image (`Distillation` from the pretrained model) + consolidation x
    sum (theta - theta_start)^2 (`WeightConsolidation`); what is evaluated and carried on is the mean of the weights
    along the task (`WeightEnsemble`). The defaults are those of the published MTIL runs (1,000 steps a task).

    Args:
        reference: name of one of the stream's sources, or a source: images and captions that no task trains.
        texts: ``all`` captions of the reference at every step, ``batch`` or a text file with one caption a line.
        temperature: T of the distillation.
        image_to_text: weight of the term over texts; 5 in the class-incremental runs.
        text_to_image: weight of the term over images; 5 in the class-incremental runs.
        batch_size: global size of the reference batch; None takes the source's, then that of the training batch (64).
        cache_images: keep the teacher's features of the reference images; see `Distillation`.
        interval: optimizer steps between samples of the ensemble; 10 in the class-incremental runs. None or 0: no
            ensemble.
        consolidation: weight of the consolidation. 0 leaves it out, which the paper calls ZSCL*.

    Differences from the published code: those of the three parts. Its MTIL runs take the texts from another set
    (Conceptual Captions) than the images (ImageNet): give such captions as a file.
    """

    def __init__(
        self,
        reference: str | Source = "reference",
        texts: str = "all",
        temperature: float = 2.0,
        image_to_text: float = 1.0,
        text_to_image: float = 1.0,
        batch_size: int | None = None,
        cache_images: bool = False,
        interval: int | None = 100,
        consolidation: float = 1.0,
    ) -> None:
        super().__init__()
        parts: list[Strategy] = [
            Distillation(
                teacher="initial",
                reference=reference,
                texts=texts,
                temperature=temperature,
                image_to_text=image_to_text,
                text_to_image=text_to_image,
                batch_size=batch_size,
                cache_images=cache_images,
            )
        ]
        if interval:
            parts.append(WeightEnsemble(interval))
        if consolidation:
            parts.append(WeightConsolidation(consolidation))
        self._parts = tuple(parts)

    def parts(self) -> Sequence[Strategy]:
        return self._parts
