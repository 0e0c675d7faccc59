"""`mmcl shards write` from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image


@pytest.fixture
def birds(workplace: Path) -> Path:
    for name in ("robin", "wren"):
        (workplace / "birds" / name).mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (20, 10), (i, 0, 0)).save(workplace / "birds" / name / f"{i}.png")
    return workplace


def test_a_folder_becomes_a_set(birds: Path, mmcl: Callable[..., Any]) -> None:
    split = ("--split", "train=0.5,test=0.5", "--split_by_key", "/([0-9])", "--seed", "1", "--workers", "2")
    answer = mmcl("shards", "write", "birds", "--to", "out", *split, "--resize", "8", "--licence", "CC0-1.0")
    assert answer.code == 0, answer.err
    assert answer.out.splitlines()[-2:] == ["2 classes: out/classes.txt", "out/manifest.json"]
    told = json.loads((birds / "out" / "manifest.json").read_text())
    assert told["samples"] == 12 and told["licence"] == "CC0-1.0" and told["class_names"] == ["robin", "wren"]
    assert all(split["samples"] % 2 == 0 for split in told["splits"].values())  # number i of both birds is on one side
    first = told["shards"][0]
    assert answer.out.startswith(f"{first['name']}: {first['samples']} samples, 0.0 MB\n")
    assert f"\ntrain: {told['splits']['train']['samples']} samples, 0.0 MB, 1 shards\n" in answer.out
    assert mmcl("shards", "index", "out/*.tar").out.splitlines()[-1] == "2 shards, 12 samples"
    assert mmcl("shards", "write", "birds", "--to", "out", *split).code == 2


def test_bad_rows_end_with_one_line_and_code_1(birds: Path, mmcl: Callable[..., Any]) -> None:
    (birds / "birds" / "wren" / "3.png").write_bytes(b"")
    (birds / "birds" / "notes.md").write_text("x")
    answer = mmcl("shards", "write", "birds", "--to", "out", "--workers", "0")
    assert answer.code == 1 and answer.err.count("\n") == 1 and "--max_bad 1, and run the command again" in answer.err
    answer = mmcl("shards", "write", "birds", "--to", "out", "--workers", "0", "--max_bad", "1")
    assert answer.code == 0
    assert "1 rows left out: out/bad.jsonl\nnot written: .md (1)\n" in answer.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("birds",), "--to"),
        (("nothing", "--to", "out"), "nothing does not exist"),
        (("birds", "--to", "out", "--split", "train"), "'train' is not NAME=SHARE"),
        (("birds", "--to", "out", "--split", "train=0.5,test=0.4"), "the shares add up to 0.9"),
        (("birds", "--to", "out", "--split", "../a=1"), "'../a' is no name of a split"),
        (("birds", "--to", "out", "--split_by", "x"), "--split_by needs --split"),
        (
            ("birds", "--to", "out", "--split", "a=1", "--split_by", "x"),
            "--split_by says nothing about a folder of pictures",
        ),
        (("birds", "--to", "out", "--split", "a=1", "--split_by_key", "("), "is no regular expression"),
        (("birds", "--to", "out", "--samples_per_shard", "0"), "--samples_per_shard is 0; it must be at least 1"),
        (("birds", "--to", "out", "--megabytes_per_shard", "nan"), "--megabytes_per_shard is nan; it must be above 0"),
        (("birds", "--to", "out", "--resize", "0"), "--resize is 0"),
        (("birds", "--to", "out", "--quality", "101"), "--quality is 101"),
        (("birds", "--to", "out", "--encode", "gif"), "invalid choice: 'gif'"),
        (("birds", "birds", "--to", "out"), "one folder can be written at a time"),
        (("birds", "--to", "birds/robin/0.png"), "is a file; give a folder"),
        (("birds", "--to", "out", "--class_names", "none.txt"), "none.txt cannot be read"),
        (("birds", "--to", "out", "--from", "table"), "is no table"),
        (
            ("birds", "--to", "out", "--text", "words"),
            "--text says nothing about a folder of pictures (birds); leave it out",
        ),
        (("birds/*.tar", "--to", "out"), "no shard matches"),
        (("https://x.org/a.tar", "--to", "out"), "is not local"),
    ],
)
def test_refusals_are_one_line_and_write_nothing(
    birds: Path, mmcl: Callable[..., Any], arguments: tuple[str, ...], message: str
) -> None:
    answer = mmcl("shards", "write", *arguments)
    assert answer.code == 2 and message in answer.err and answer.err.count("\n") == 1
    assert not (birds / "out").exists()
