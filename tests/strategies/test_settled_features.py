"""What measures features of a task keeps them: nothing may change them in a task in which nothing trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cases
import pytest
import tiny_classes
import torch
from torch import Tensor

from mmcl import Strategy, Task
from mmcl.compose import check, expand
from mmcl.errors import ConfigError
from mmcl.strategies import (
    APER,
    L2P,
    SLERP,
    CODAPrompt,
    DualPrompt,
    EMAMerge,
    LoRA,
    MagMax,
    NearestMean,
    RanPAC,
    SPrompts,
    TaskArithmetic,
    WeightInterpolation,
)
from mmcl.strategy import DataPass

CASE = "classes-growing"
REFUSED: dict[str, Callable[[], list[Strategy]]] = {
    "aper-coda": lambda: [APER(CODAPrompt(6, 4, (0, 2)))],
    "aper-lora": lambda: [APER(LoRA(2, tasks="separate"))],
    "aper-slots": lambda: [APER(L2P(6, 2, 2, task_slots=True, copy_slots=True))],
    "first-dual": lambda: [DualPrompt(), RanPAC(32, trains="first")],
    "first-arithmetic": lambda: [TaskArithmetic(), NearestMean(trains="first")],
    "first-ema": lambda: [EMAMerge(rule="sequential"), NearestMean(trains="first")],
    "first-interpolation": lambda: [WeightInterpolation(merge=True), NearestMean(trains="first")],
    "nothing-s-prompts": lambda: [SPrompts(3, 2, classifiers=False), NearestMean()],
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_changes_at_each_task_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"keeps what it measures .* brings something new for each task"):
        check(expand(REFUSED[name]()), cases.found()[CASE][0]())


def test_where_all_tasks_train_it_is_not() -> None:
    check([LoRA(2, tasks="separate"), NearestMean(trains="all")], cases.found()[CASE][0]())
    check([TaskArithmetic(), NearestMean(trains="all")], cases.found()[CASE][0]())
    check([TaskArithmetic(), NearestMean()], cases.found()[CASE][0]())  # merges the pretrained weights alone


class Seen(Strategy):
    """What evaluation makes of the first task's samples, at the end of every task."""

    def __init__(self) -> None:
        super().__init__()
        self.features: list[Tensor] = []

    def on_task_end(self, task: Task, data: DataPass) -> None:
        (source,) = self.stream.tasks[0].train
        with self.evaluating() as encode:
            self.features.append(torch.cat([encode(batch).features["image"] for batch in self.reach.samples(source)]))


STAY: dict[str, Callable[[], list[Strategy]]] = {
    "lora": lambda: [APER(LoRA(2))],
    "lora-continue": lambda: [APER(LoRA(2, tasks="continue"))],
    "l2p": lambda: [APER(L2P(6, 2, 2))],
    "ema": lambda: [EMAMerge(), APER()],
    "slerp": lambda: [SLERP(), APER()],
    "magmax": lambda: [MagMax(), APER()],
    "magmax-anew": lambda: [MagMax(rule="zero_shot"), APER()],
    "interpolation": lambda: [WeightInterpolation(), APER()],
}


@pytest.mark.parametrize("name", STAY)
def test_features_of_the_first_task_stay_beside_others(name: str, tmp_path: Path) -> None:
    seen = Seen()
    stream = tiny_classes.stream(tmp_path / "shards")
    results = cases.runner(CASE, stream, tmp_path / "run", [*STAY[name](), seen]).fit()
    torch.testing.assert_close(*seen.features, rtol=1e-5, atol=1e-6)
    assert [task["steps"] > 0 for task in results["tasks"]] == [True, False]
