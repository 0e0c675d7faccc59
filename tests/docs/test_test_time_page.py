"""The settings on the page about adaptation while testing name what is there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmcl import plugins, presets
from mmcl.strategy import Strategy

PAGE = Path(__file__).resolve().parents[2] / "docs" / "strategies" / "test-time.md"
FOUND = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), flags=re.S)
BLOCKS: list[dict[str, Any]] = [yaml.safe_load(text) for text in FOUND]


@pytest.mark.parametrize("settings", BLOCKS)
def test_strategies_are_built(settings: dict[str, Any]) -> None:
    presets.expand(settings)
    for given in settings["strategies"]:
        made = plugins.load("strategies", given["class_path"])(**given.get("init_args", {}))
        assert isinstance(made, Strategy) and made.adapts_at_test


def test_the_stream_is_made_of_another_one() -> None:
    (settings,) = [block for block in BLOCKS if "data" in block]
    presets.expand(settings)
    stream = settings["data"]["stream"]
    assert stream["class_path"] == "mmcl.benchmarks.corruptions.corruptions"
    assert stream["init_args"]["stream"]["class_path"] == "mmcl.benchmarks.pocket_classes.pocket_classes"


def test_every_strategy_has_a_card() -> None:
    text = PAGE.read_text()
    names = [name for name in plugins.listing("strategies") if f"## {name}\n" in text]
    assert names == ["BatchNormStatistics", "CoTTA", "RMT", "TENT"]
