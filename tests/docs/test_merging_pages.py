"""The pages on merging and CTP: their settings build, their stream is one, their code runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmcl import plugins

PAGES = Path(__file__).resolve().parents[2] / "docs" / "strategies"
BLOCKS = [
    (page, block)
    for page in ("merging.md", "ctp.md")
    for block in re.findall(r"```yaml\n(.*?)```", (PAGES / page).read_text(), flags=re.S)
]


@pytest.mark.parametrize(("page", "block"), BLOCKS)
def test_settings_build(page: str, block: str) -> None:
    for entry in yaml.safe_load(block)["strategies"]:
        made = plugins.load("strategies", entry["class_path"])(**entry.get("init_args", {}))
        assert made.parts()


@pytest.mark.parametrize("page", ["merging.md", "ctp.md"])
def test_every_section_is_a_class_or_prose(page: str) -> None:
    known = plugins.listing("strategies")
    titles = re.findall(r"^## (\w+)$", (PAGES / page).read_text(), flags=re.M)
    assert {t for t in titles if t != "Differences"} <= known.keys()


def test_the_code_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (PAGES / "merging.md").read_text(), flags=re.S)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["merged"]["w"].shape == (4,) and names["chat"]["w"].tolist() == pytest.approx([1.8, 0.1, -0.2, 0.0])
