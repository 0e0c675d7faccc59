"""Learning without forgetting, in the form that the ZSCL repository gives it for CLIP."""

from __future__ import annotations

from collections.abc import Sequence

from mmcl.strategies.distillation import Distillation
from mmcl.strategy import Strategy


class LwF(Strategy):
    """Hold the model to what it was at the start of the task, on the task's own batch (Li & Hoiem, TPAMI 2018).

    A preset of one `Distillation`: the teacher is the previous model, images and texts are those of the batch (the
    class texts where the objective brings them), in both directions.

    Args:
        temperature: T. The published code of ZSCL (Zheng et al., ICCV 2023), which has this baseline, uses 2.
        image_to_text: factor of the term over texts; 1 in that code.
        text_to_image: factor of the term over images; 1 in that code. Both are of similarities alone.
        weight: of the whole, also of the logits that a module without such pairs is held by.

    Differences from the published code: those of `Distillation`. The paper itself distils the outputs of earlier tasks'
    heads, which a model with two encoders does not have.
    """

    def __init__(
        self,
        temperature: float = 2.0,
        image_to_text: float = 1.0,
        text_to_image: float = 1.0,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        self._parts = (
            Distillation("previous", None, "batch", temperature, None, weight, image_to_text, text_to_image),
        )

    def parts(self) -> Sequence[Strategy]:
        return self._parts
