"""Strategies that adapt in `mmcl test`, as rows of the strategies' table.

In fit they do nothing at all, so that each row is plain fine-tuning: every weight may change, and the strategy itself
stands in for "off". What they do in a test is held to in ``tests/system/test_adaptation.py``.
"""

from __future__ import annotations

from settings import Setting

from mmcl.strategies import RMT, TENT, BatchNormStatistics, CoTTA

EVERY = ("classes", "classes-growing", "clip")
"""Batch norms, layer norms, and class texts."""

SETTINGS = {
    "BatchNormStatistics": Setting(lambda: [BatchNormStatistics()], ("classes",), off=lambda: [BatchNormStatistics()]),
    "CoTTA": Setting(lambda: [CoTTA()], EVERY, off=lambda: [CoTTA()]),
    "RMT": Setting(lambda: [RMT()], EVERY, off=lambda: [RMT()]),
    "TENT": Setting(lambda: [TENT()], EVERY, off=lambda: [TENT()]),
}
