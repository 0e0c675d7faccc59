"""The strategies on the page of distillation and averages can be made as they stand there, and each has a card."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from mmcl import plugins

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "strategies" / "distillation-and-averages.md").read_text(encoding="utf-8")
CARDS = re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", PAGE, flags=re.M | re.S)


@pytest.mark.parametrize(("name", "card"), CARDS, ids=[name for name, _ in CARDS])
def test_a_card_makes_its_strategy(name: str, card: str) -> None:
    made = set()
    for block in re.findall(r"```yaml\n(.*?)```", card, flags=re.S):
        for entry in yaml.safe_load(block)["strategies"]:
            assert plugins.load("strategies", entry["class_path"])(**entry.get("init_args", {})).parts()
            made.add(entry["class_path"])
    assert made == {name}
    for part in ("When", "Paper", "ifferences"):
        assert part in card


def test_every_strategy_has_a_card() -> None:
    """A heading on one of the pages; `SimpleCIL` shares that of `NearestMean`, replay has a page."""
    pages = [*(DOCS / "strategies").glob("*.md"), DOCS / "replay.md"]
    headings = [h for page in pages for h in re.findall(r"^##? .*$", page.read_text(encoding="utf-8"), flags=re.M)]
    words = {word for heading in headings for word in heading.split()} | {"SimpleCIL", "ExperienceReplay"}
    own = [n for n in plugins.listing("strategies") if plugins.class_path("strategies", n).startswith("mmcl.")]
    assert set(own) - words == set()
