"""The commands of the page on shards run as they stand there."""

from __future__ import annotations

import csv
import re
import shlex
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
from PIL import Image

from mmcl.cli import main
from mmcl.datamodules import write_shard

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "shards.md").read_text()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for folder in ("pictures/robin", "pictures/wren", "captioned/robin", "more-pictures/wren", "sounds"):
        Path(folder).mkdir(parents=True)
        for i in range(4):
            if folder == "sounds":
                soundfile.write(f"{folder}/{i}.flac", random.uniform(-0.5, 0.5, 800), 8000)
            else:
                Image.fromarray(random.integers(0, 255, (300, 280, 3), np.uint8)).save(f"{folder}/{i}.jpg")
            if folder.startswith("captioned"):
                Path(f"{folder}/{i}.txt").write_text("a bird")
    Path("documents").mkdir()
    for i in range(20):
        Path(f"documents/{i}.txt").write_text(f"It rained on day {i}.")
    rows = [
        {"file": f"pictures/wren/{i % 4}.jpg", "caption": f"bird {i}", "photographer": f"p{i // 2}"} for i in range(30)
    ]
    with open("pairs.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    datasets.Dataset.from_list([{"text": "one"}, {"text": "two"}]).save_to_disk("saved")
    for i in range(2):
        write_shard(f"old-{i:03d}.tar", [{"__key__": f"k{i}", "txt": "text"}])
    return tmp_path


def test_every_command_and_the_python(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = re.findall(r"^    mmcl (shards write .*)$", PAGE, flags=re.M)
    assert len(commands) == 11
    for command in commands:
        assert main([*shlex.split(command), "--workers", "0"]) == 0, capsys.readouterr().err
    (python,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)
    capsys.readouterr()
    exec(python, {})
    assert capsys.readouterr().out.splitlines()[-1] == "8 ['robin', 'wren']"
    assert (here / "shards/more/classes.txt").read_text() == "robin\nwren\n"
    assert {path.name for path in (here / "shards/split").glob("*.tar")} == {"train-000000.tar", "test-000000.tar"}
