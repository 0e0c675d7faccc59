"""What `docs/shards.md` says of checking is what the program does."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from damage import half_zeroed, header_of, jpeg, put, samples, write
from damages import table
from PIL import Image

from mmcl.cli import main
from mmcl.datamodules.faults import FAULTS, NOTICES

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "shards.md").read_text()


def test_every_kind_of_finding_is_explained() -> None:
    for head, kinds in (("fault", FAULTS), ("suspicious", NOTICES)):
        rows = [f"| {head} | what it means |", "|---|---|", *(f"| `{k}` | {v} |" for k, v in kinds.items())]
        assert "\n".join(rows) in PAGE


def test_the_table_of_damages_is_the_one_that_is_tested() -> None:
    """`tests/datamodules/test_damage.py` makes every row."""
    assert table() in PAGE, f"put this table into docs/shards.md:\n{table()}"


def test_the_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    red = io.BytesIO()
    Image.new("RGB", (48, 48), "red").save(red, "JPEG")
    birds = samples(s03_txt=b"", s07_jpg=half_zeroed(jpeg(77, 200)))
    write([(name.replace("s", "b", 1), data) for name, data in birds], "birds/birds-000.tar")(tmp_path)
    others = [(n.replace("s", "c", 1), jpeg(100 + i) if n.endswith("jpg") else d) for i, (n, d) in enumerate(samples())]
    others = [(name, red.getvalue() if name == "c09.jpg" else data) for name, data in others]
    path = write(others, "birds/birds-001.tar")(tmp_path)
    data = path.read_bytes()
    path.write_bytes(put(data, header_of(data, "c06.jpg"), b"\xff" * 512))
    assert main(["shards", "lint", "birds"]) == 1
    (block,) = re.findall(r"    \$ mmcl shards lint birds\n((?:    .*\n)+)", PAGE)
    shown, found = re.sub(r"^    ", "", block, flags=re.M), capsys.readouterr().out
    # Sizes and places in bytes depend on the version of the JPEG encoder.
    assert re.sub(r"\d{5,}", "N", found) == re.sub(r"\d{5,}", "N", shown)
