"""Merges, mixtures and replayed interpolation as rows of the strategies' table."""

from __future__ import annotations

from settings import Setting

from mmcl.strategies import SLERP, TIES, EMAMerge, MagMax, ModelStock, TaskArithmetic

EVERY = ("clip", "classes-growing", "causal_lm", "asr-whisper")
"""One module of each family; the classifier's head grows."""

SETTINGS = {
    "EMAMerge": Setting(lambda: [EMAMerge(0.6)], EVERY, off=lambda: [EMAMerge(1.0)]),
    "EMAMerge/zero_shot": Setting(lambda: [EMAMerge(0.6, "zero_shot")], EVERY),
    "EMAMerge/fine_tuned": Setting(lambda: [EMAMerge(0.6, "fine_tuned")], EVERY),
    "MagMax": Setting(lambda: [MagMax()], EVERY),
    "MagMax/ema": Setting(lambda: [MagMax(rule="ema")], EVERY),
    "ModelStock": Setting(lambda: [ModelStock()], EVERY),
    "ModelStock/ema": Setting(lambda: [ModelStock("ema")], EVERY),
    "SLERP": Setting(lambda: [SLERP(0.6)], EVERY, off=lambda: [SLERP(1.0)]),
    "TaskArithmetic": Setting(lambda: [TaskArithmetic()], EVERY),
    "TaskArithmetic/ema": Setting(lambda: [TaskArithmetic(0.8, "ema", by_layer=True)], EVERY),
    "TIES": Setting(lambda: [TIES(0.3)], EVERY),
    "TIES/random": Setting(lambda: [TIES(0.5, prune="random", unrolled=True)], EVERY),
}
