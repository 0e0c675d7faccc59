"""CTP and its parts as rows of the strategies' table."""

from __future__ import annotations

from settings import Setting

from mmcl.strategies import CTP, MomentumContrast, TopologyPreservation

PAIRS = ("clip", "audio_text")
REFUSED = {"classes": "ImageClassifierModule compares no pair of features"}

SETTINGS = {
    "MomentumContrast": Setting(
        lambda: [MomentumContrast(queue_size=16)],
        PAIRS,
        off=lambda: [MomentumContrast(0.0)],
        refuses=REFUSED,
    ),
    "MomentumContrast/flush": Setting(lambda: [MomentumContrast(queue_size=12, flush=True, alpha=0.0)], PAIRS),
    "TopologyPreservation": Setting(
        lambda: [TopologyPreservation(first_task=True)],
        PAIRS,
        off=lambda: [TopologyPreservation(0.0, 0.0)],
        refuses={"classes": "TopologyPreservation: ImageClassifierModule compares no pair of features"},
    ),
    "CTP": Setting(lambda: [CTP(queue_size=16)], PAIRS, off=lambda: [CTP(0.0, 0.0, 0.0)], refuses=REFUSED),
}
