"""The template for a user's own shards runs as it stands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from mmcl.cli import main
from mmcl.datamodules.write import write_shard


def shard(path: Path, names: list[str], count: int) -> None:
    samples = []
    for i in range(count):
        label = i % len(names)
        colour = (40 * label + 3 * i, 200 - 30 * label, 90)
        picture = Image.new("RGB", (32, 32), colour)
        samples.append({"__key__": f"{path.stem}-{i}", "png": picture, "txt": f"a {names[label]} {i}", "cls": label})
    write_shard(path, samples)


def test_own_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shards = tmp_path / "shards"
    shards.mkdir()
    birds, boats = ["robin", "wren"], ["sailing boat", "ferry", "canoe"]
    (shards / "birds.txt").write_text("\n".join(birds) + "\n")
    for i in range(2):
        shard(shards / f"birds-train-{i:03}.tar", birds, 16)
    shard(shards / "boats-train-000.tar", boats, 18)
    shard(shards / "birds-test.tar", birds, 6)
    shard(shards / "boats-test.tar", boats, 6)
    shard(shards / "photos.tar", ["lake", "hill", "road", "tree"], 16)
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
    assert main(["fit", "--config", "own_shards", *quiet]) == 0
    results = json.loads((tmp_path / "runs" / "own_shards" / "results.json").read_text())
    assert [t["steps"] for t in results["tasks"]] == [4, 10]
    assert [e["name"] for e in results["stream"]["evals"]] == ["birds", "boats", "photos"]
