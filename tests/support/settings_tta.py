"""Strategies that adapt in `mmcl test`, as rows of the strategies' table.

In fit they do nothing at all, so that each row is plain fine-tuning: every weight may change, and the strategy itself
stands in for "off". What they do in a test is held to in ``tests/system/test_adaptation.py``.
"""

from __future__ import annotations

from settings import Setting

from mmcl.strategies import RMT, TENT, BatchNormStatistics, CoTTA

EVERY = ("classes", "classes-growing", "clip")
"""Batch norms, layer norms, and class texts."""

SKIPS = {"leaves_a_mark": "it adapts in a test alone; a run of training is that of no strategy"}

SETTINGS = {
    "BatchNormStatistics": Setting(
        lambda: [BatchNormStatistics()], ("classes",), off=lambda: [BatchNormStatistics()], skips=SKIPS
    ),
    "CoTTA": Setting(lambda: [CoTTA()], EVERY, off=lambda: [CoTTA()], skips=SKIPS),
    "RMT": Setting(lambda: [RMT()], EVERY, off=lambda: [RMT()], skips=SKIPS),
    "TENT": Setting(lambda: [TENT()], EVERY, off=lambda: [TENT()], skips=SKIPS),
}
