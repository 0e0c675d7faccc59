"""The strategies on the page of prompts can be made as they stand there."""

import re
from pathlib import Path

import yaml

from mmcl import plugins

PAGE = Path(__file__).resolve().parents[2] / "docs" / "strategies" / "prompts.md"


def test_examples_are_made(tmp_path: Path) -> None:
    found = set()
    for block in re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S):
        for entry in yaml.safe_load(block)["strategies"]:
            made = plugins.load("strategies", entry["class_path"])(**entry.get("init_args", {}))
            found.add(type(made).__name__)
    assert found == {"L2P", "DualPrompt", "CODAPrompt", "SPrompts", "LGCL"}
