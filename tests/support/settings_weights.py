"""Strategies on weights and distillation, and replay, as rows of the strategies' table."""

from __future__ import annotations

from settings import Setting

from mmcl.strategies import (
    ZSCL,
    Distillation,
    ExperienceReplay,
    Frozen,
    LwF,
    MomentumInterpolation,
    WeightConsolidation,
    WeightEnsemble,
    WeightInterpolation,
)

EVERY = ("clip", "classes", "causal_lm", "asr-whisper")
"""One module of each family."""

SETTINGS = {
    "Distillation": Setting(
        lambda: [Distillation("previous", None)], EVERY, off=lambda: [Distillation("previous", None, weight=0.0)]
    ),
    "ExperienceReplay": Setting(lambda: [ExperienceReplay(6)], EVERY),
    "Frozen": Setting(lambda: [Frozen()], EVERY, changes=""),
    "LwF": Setting(lambda: [LwF()], EVERY, off=lambda: [LwF(image_to_text=0.0, text_to_image=0.0)]),
    "MomentumInterpolation": Setting(
        lambda: [MomentumInterpolation(0.9)], EVERY, off=lambda: [MomentumInterpolation(0.0)]
    ),
    "WeightConsolidation": Setting(
        lambda: [WeightConsolidation(0.01)], EVERY, off=lambda: [WeightConsolidation(0.0)]
    ),
    "WeightEnsemble": Setting(lambda: [WeightEnsemble(2)], EVERY),
    "WeightInterpolation": Setting(
        lambda: [WeightInterpolation(0.5, alphas=(0.0, 1.0))], EVERY, off=lambda: [WeightInterpolation(1.0)]
    ),
    "ZSCL": Setting(lambda: [ZSCL(reference="reference", texts="batch", interval=2)], ("clip",)),
}
