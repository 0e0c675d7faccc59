"""The pages on prototypes and on classifiers: what they show is built, parsed and run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml

from mmcl import Strategy, plugins, presets
from mmcl.cli import main
from mmcl.compose import expand
from mmcl.datamodules.write import write_shard

DOCS = Path(__file__).resolve().parents[2] / "docs"


def blocks(page: str) -> list[dict[str, Any]]:
    return [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", (DOCS / page).read_text(), flags=re.S)]


def made(given: dict[str, Any]) -> Strategy:
    arguments = {k: made(v) if isinstance(v, dict) else v for k, v in given.get("init_args", {}).items()}
    strategy: Strategy = plugins.load("strategies", given["class_path"])(**arguments)
    return strategy


def named(value: Any) -> set[str]:
    """Every class path of strategies below a value."""
    if isinstance(value, list):
        return {name for item in value for name in named(item)}
    if not isinstance(value, dict):
        return set()
    return {n for n in [value.get("class_path")] if n} | {n for item in value.values() for n in named(item)}


def test_every_strategy_of_the_page_is_built() -> None:
    shown = [block["strategies"] for block in blocks("strategies/prototypes.md")]
    known = set(plugins.listing("strategies"))
    built: set[str] = set()
    for strategies in shown:
        if named(strategies) <= known:  # adapters are strategies of their own
            built |= {type(part).__name__ for part in expand([made(s) for s in strategies])}
    assert {"NearestMean", "RanPAC", "FlyCL", "SLCA", "DPeCLIP"} <= built
    page = (DOCS / "strategies" / "prototypes.md").read_text()
    cards = set(re.findall(r"^## (\w+)$", page, flags=re.M))
    assert cards == {"NearestMean", "APER", "RanPAC", "FlyCL", "SLCA", "DPeCLIP"}


def test_the_task_incremental_stream_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (shown,) = (block for block in blocks("classification.md") if "data" in block)
    for i, name in enumerate(("first", "second")):
        samples = [{k: v for k, v in s.items() if k != "txt"} for s in tiny.pictures("dots", 24)]
        own = [{**s, "cls": s["cls"] - 2 * i} for s in samples if s["cls"] // 2 == i]
        for kind in ("", "-test"):
            write_shard(tmp_path / f"{name}{kind}.tar", iter(own))
    for task in shown["data"]["stream"]["tasks"]:
        task["budget"] = {"steps": 2}
    model = {"model": "test_resnet", "random_init": True, "image_size": 32, "head_kind": "cosine"}
    shown["data"]["batch_size"] = 4
    config = {"model": {"class_path": "ImageClassifierModule", "init_args": model}, **shown}
    config["strategies"] = [{"class_path": "NearestMean", "init_args": {"trains": "all"}}]
    config["trainer"] = {"accelerator": "cpu", "enable_progress_bar": False}
    (tmp_path / "pairs.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--config", "pairs.yaml"]) == 0
    results = tiny.results(tmp_path / "runs" / "pairs")
    by_task = [cell["metrics"]["task_top1"] for cell in results["cells"] if cell["row"] == 2]
    assert results["matrix"]["values"][2] == by_task and min(by_task) > 0.5
    assert "among the set's own 2 classes" in str(results["stream"]["evals"][0])


def test_an_adapter_is_given_by_its_short_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    aper = {"class_path": "APER", "init_args": {"adapter": {"class_path": "WeightConsolidation"}}}
    settings = presets.load(presets.find("pocket/classes/nearest_mean")) | {"strategies": [aper]}
    (tmp_path / "aper.yaml").write_text(yaml.safe_dump(settings))
    assert main(["fit", "--config", str(tmp_path / "aper.yaml"), "--print_config"]) == 0
    (found,) = yaml.safe_load(capsys.readouterr().out)["strategies"]
    assert found["init_args"]["adapter"]["class_path"] == "mmcl.strategies.weight_consolidation.WeightConsolidation"
