"""Every configuration on the page of regularisers and replay makes its strategies."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from mmcl import plugins

PAGE = Path(__file__).resolve().parents[2] / "docs" / "strategies" / "regularisers-and-replay.md"


def test_configurations_make_their_strategies() -> None:
    text = PAGE.read_text(encoding="utf-8")
    made = set()
    for block in re.findall(r"```yaml\n(.*?)```", text, flags=re.S):
        for entry in yaml.safe_load(block)["strategies"]:
            kind = plugins.load("strategies", entry["class_path"])
            kind(**entry["init_args"])
            made.add(entry["class_path"])
    named = set(re.findall(r"^## (\w+)$", text, flags=re.M)) & plugins.listing("strategies").keys()
    assert named and named <= made
