"""`mmcl shards lint`: what it names, how it counts, what it says for machines."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from damage import edited, half_zeroed, header_of, jpeg, manifest, put, samples, sound, write
from PIL import Image

from mmcl.cli import main
from mmcl.datamodules.decode import decode

Lint = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def lint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Lint:
    """Exit code and the report for machines."""

    def run(*options: str) -> tuple[int, dict[str, Any]]:
        report = tmp_path / "report" / "lint.json"
        report.parent.mkdir(exist_ok=True)
        code = main(["shards", "lint", str(tmp_path), "--json", str(report), *(options or ("--workers", "0"))])
        capsys.readouterr()
        return code, json.loads(report.read_text())

    return run


def where(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    return sorted((Path(f["shard"]).name, f["kind"], f["key"]) for f in report["findings"])


def several(folder: Path) -> None:
    """Three shards with six faults in two of them."""
    write(samples())(folder)
    bad = {"s01_jpg": half_zeroed(jpeg(51)), "s02_txt": b"\xff", "s03_cls": b"x", "s04_txt": b"", "s05_jpg": b""}
    changed = [(f"b{name}", data) for name, data in samples(**bad) if name != "s05.jpg"]
    write(changed, "b.tar")(folder)
    write([(f"c{name}", data) for name, data in samples()], "c.tar")(folder)
    path = folder / "c.tar"
    data = path.read_bytes()
    data = put(data, header_of(data, "cs03.jpg"), b"\xff" * 512)
    path.write_bytes(put(data, header_of(data, "cs08.jpg"), bytes(512)))


def test_names_all_faults_and_goes_on_behind_them(tmp_path: Path, lint: Lint) -> None:
    several(tmp_path)
    code, report = lint()
    assert code == 1
    faults = [row for row in where(report) if row[1] not in ("twin",)]
    assert faults == [
        ("b.tar", "caption", "bs04"),
        ("b.tar", "missing", "bs05"),
        ("b.tar", "undecodable", "bs01"),
        ("b.tar", "undecodable", "bs02"),
        ("b.tar", "undecodable", "bs03"),
        ("c.tar", "header", ""),
        ("c.tar", "missing", "cs03"),
        ("c.tar", "missing", "cs08"),
        ("c.tar", "trailing", ""),
    ]
    assert report["totals"]["samples"] == 36 and report["totals"]["image"] == 33
    assert report["faults"] == {"missing": 3, "undecodable": 3, "caption": 1, "header": 1, "trailing": 1}


def test_workers_find_the_same(tmp_path: Path, lint: Lint) -> None:
    several(tmp_path)
    assert lint("--workers", "2") == lint("--workers", "0")


def test_quick_decodes_no_pictures(tmp_path: Path, lint: Lint) -> None:
    several(tmp_path)
    _, report = lint("--quick", "--workers", "0")
    assert report["quick"] and report["faults"]["undecodable"] == 2
    assert ("b.tar", "undecodable", "bs01") not in where(report)
    write([("a.jpg", b"no picture")], "a.tar")(tmp_path)
    for other in "bc":
        (tmp_path / f"{other}.tar").unlink()
    assert lint("--quick", "--workers", "0")[0] == 0
    assert lint()[0] == 1


def test_every_sample_behind_a_lost_header_is_still_seen(tmp_path: Path, lint: Lint) -> None:
    edited(lambda data: put(data, header_of(data, "s03.jpg"), b"\xff" * 512))(tmp_path)
    _, report = lint()
    assert report["totals"]["samples"] == 12
    assert where(report) == [("a.tar", "header", ""), ("a.tar", "missing", "s03")]


def picture(size: tuple[int, int], color: str = "white") -> bytes:
    buffer = io.BytesIO()
    image = Image.new("RGB", size, color)
    image.putpixel((0, 0), (1, 2, 3))
    image.save(buffer, "PNG")
    return buffer.getvalue()


def overlooked() -> bytes:
    """A picture with a hole that its decoder does not notice: zeros stand for as many blocks as were there."""
    for number in range(60):
        data = jpeg(number, 224)
        damaged = put(data, len(data) // 2, bytes(300))
        try:
            decode("jpg", damaged)
        except ValueError:
            continue
        return damaged
    raise AssertionError("every hole was noticed")


def blank() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), "red").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("members", "found"),
    [
        ([("a.png", picture((7, 30)))], ("shape", "a", "7 x 30 pixels")),
        ([("a.png", picture((400, 10)))], ("shape", "a", "400 x 10 pixels")),
        ([("a.png", blank())], ("blank", "a", "all pixels")),
        ([("a.jpg", jpeg(1)), ("b.jpg", jpeg(1))], ("twin", "b", "the same picture as sample 'a'")),
        ([("a.wav", sound()), ("b.wav", sound())], ("twin", "b", "the same recording as sample 'a'")),
        ([("a.wav", sound(np.ones(20)))], ("short", "a", "2.5 ms")),
        ([("a.cls", b"-3"), ("b.cls", b"0")], ("label", "a", "has label -3")),
        ([("a.txt", "caf\ufffd".encode())], ("text", "a", "replacement characters")),
        ([("a.json", b'{"captions": ["fine", "\\u0001"]}')], ("text", "a", "control")),
        ([("a.webp", put(jpeg(1, 96, "WEBP"), 400, bytes(600)))], ("zeros", "a", "zeros from byte 400 on")),
        ([("a.jpg", overlooked())], ("zeros", "a", "zeros from byte")),
        ([("a.jpg", jpeg(1)), ("b.jpg", jpeg(1, form="WEBP"))], ("extension", "b", "is a webp by its content")),
        (
            [
                (f"{k}.{e}", d)
                for k in "abc"
                for e, d in (("txt", b"x"), ("seg.png", picture((9, 9))))
                if (k, e) != ("b", "seg.png")
            ],
            ("uneven", "b", "2 of 3 samples have one"),
        ),
    ],
)
def test_suspicious_members(
    tmp_path: Path, lint: Lint, members: list[tuple[str, bytes]], found: tuple[str, str, str]
) -> None:
    write(members)(tmp_path)
    code, report = lint()
    assert code == 0 and not report["faults"]
    kind, key, text = found
    assert [(f["kind"], f["key"]) for f in report["findings"]] == [(kind, key)]
    assert text in report["findings"][0]["text"] and report["findings"][0]["level"] == "suspicious"


def test_between_shards(tmp_path: Path, lint: Lint) -> None:
    """Keys in two shards, told once; a shard without labels; a shard that the manifest beside it does not name."""
    manifest(tmp_path)
    write([(name, data + b"x") for name, data in samples()[:12] if name.endswith("txt")], "b.tar")(tmp_path)
    code, report = lint()
    assert code == 1
    texts = {f["kind"]: f["text"] for f in report["findings"]}
    assert report["faults"] == {"missing": 2} and report["suspicious"] == {"unlisted": 1, "keys": 1}
    assert texts["keys"] == f"4 of its keys are also in {tmp_path / 'a.tar'}; the first one is 's00'"
    assert "its 4 samples have no member for 'labels' (cls); 12 of 16 samples have one" in texts["missing"]


def test_says_whom_the_set_serves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`webdataset` agrees: with 6 shards its workers all have the same only where their number divides 6."""
    shards = []
    for i in range(6):
        shards.append(str(write([(f"s{i}{j}.txt", b"x") for j in range(4)], f"{i}.tar")(tmp_path)))
    assert main(["shards", "lint", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "mmcl: any number of ranks and workers; a batch of at most 24 samples over all ranks\n" in out
    assert "webdataset: at most 6 ranks x workers, evenly at 1, 2, 3, 6\n" in out
    for workers in range(1, 9):
        given = []
        for worker in range(workers):
            monkeypatch.setenv("WORKER", str(worker))
            monkeypatch.setenv("NUM_WORKERS", str(workers))
            given.append(sum(1 for _ in webdataset.WebDataset(shards, shardshuffle=False, empty_check=False)))
        assert sum(given) == 24
        assert (min(given) > 0) == (workers <= 6) and (len(set(given)) == 1) == (workers in (1, 2, 3, 6))


def test_a_report_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(samples())(tmp_path)
    assert main(["shards", "lint", str(tmp_path / "a.tar"), "--json", str(tmp_path / "no" / "x.json")]) == 1
    assert "cannot be written: No such file or directory" in capsys.readouterr().err


def test_what_is_written_is_in_order(tmp_path: Path, lint: Lint) -> None:
    """`mmcl shards write` and lint agree, down to the checksums; without one shard they do not."""
    for i in range(9):
        (tmp_path / "birds" / f"kind{i % 2}").mkdir(parents=True, exist_ok=True)
        (tmp_path / "birds" / f"kind{i % 2}" / f"{i}.jpg").write_bytes(jpeg(i))
    made = tmp_path / "made"
    options = ("--samples_per_shard", "3", "--workers", "0")
    assert main(["shards", "write", str(tmp_path / "birds"), "--to", str(made), *options]) == 0
    code, report = lint()
    assert (code, report["findings"]) == (0, [])
    assert report["totals"] == {**report["totals"], "shards": 3, "samples": 9, "image": 9, "labels": 9}
    shards = sorted(made.glob("*.tar"))
    shards[1].unlink()
    shards[2].write_bytes(shards[2].read_bytes() + bytes(512))
    code, report = lint()
    assert code == 1 and where(report) == [(shards[1].name, "missing", ""), (shards[2].name, "manifest", "")]
