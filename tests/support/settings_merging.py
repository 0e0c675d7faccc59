"""Merges, mixtures and replayed interpolation as rows of the strategies' table."""

from __future__ import annotations

from settings import Setting

from mmcl.strategies import MER, SLERP, TIES, EMAMerge, MagMax, ModelStock, TaskArithmetic, Velocitune

EVERY = ("classes-growing", "clip", "causal_lm", "asr-whisper")
"""One module of each family; the classifier's head grows."""

SHORT = ("mixed_precision_stays_finite", "accumulation_equals_the_large_batch", "two_processes_equal_one")
BOTH = dict.fromkeys(SHORT, "it mixes by two evaluation sets, and these runs measure but one")

SETTINGS = {
    "EMAMerge": Setting(lambda: [EMAMerge(0.6)], EVERY, off=lambda: [EMAMerge(1.0)]),
    "EMAMerge/zero_shot": Setting(lambda: [EMAMerge(0.6, "zero_shot")], EVERY),
    "MagMax": Setting(lambda: [MagMax()], EVERY),
    "MER": Setting(lambda: [MER(2, 0.3)], EVERY, off=lambda: [MER(2, 1.0)]),
    "ModelStock": Setting(lambda: [ModelStock()], EVERY),
    "SLERP": Setting(lambda: [SLERP(0.6)], EVERY, off=lambda: [SLERP(1.0)]),
    "TaskArithmetic": Setting(lambda: [TaskArithmetic()], EVERY),
    "Velocitune": Setting(
        lambda: [Velocitune({"weather": 1.0, "plain": 2.0}, {"weather": "weather", "plain": "numbers"})],
        ("causal_lm",),
        refuses={"clip": "stream 'clip' has no evaluation set 'weather'"},
        skips=BOTH,
    ),
    "Velocitune/loss": Setting(
        lambda: [Velocitune({"rise": 0.5, "fall": 0.5}, {"rise": "rise", "fall": "fall"}, scores="loss")],
        ("wav2vec2",),
        skips=BOTH,
    ),
    "TIES": Setting(lambda: [TIES(0.3)], EVERY),
    "TIES/random": Setting(lambda: [TIES(0.5, rule="ema", prune="random")], EVERY),
}
