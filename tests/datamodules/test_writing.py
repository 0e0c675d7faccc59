"""Whole sets of shards: the same bytes on any number of workers and after any interruption, and no row lost unseen."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import multiprocessing
import os
import signal
import tarfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from mmcl.datamodules.write import ShardFile
from mmcl.datamodules.writing import Columns, Options, Recipe, write_set
from mmcl.datamodules.writing.journal import Journal
from mmcl.datamodules.writing.plan import Plan, make_plan, split_of
from mmcl.errors import ConfigError, RunError
from mmcl.stream import Source

PAIRS = 23


def picture(number: int, size: tuple[int, int] = (12, 8)) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 255, (*size[::-1], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """``pairs.csv`` with `PAIRS` pictures; three of them of each painter."""
    folder = tmp_path / "data"
    (folder / "pictures").mkdir(parents=True)
    rows = []
    for i in range(PAIRS):
        (folder / "pictures" / f"{i}.png").write_bytes(picture(i))
        rows.append(
            {"image": f"pictures/{i}.png", "text": f"caption, {i}", "painter": f"p{i // 3}", "label": "ab"[i % 2]}
        )
    write_table(folder / "pairs.csv", rows)
    return folder / "pairs.csv"


def write_table(path: Path, rows: list[dict[str, str]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def options(table: Path, to: Path, **changes: object) -> Options:
    return replace(Options((str(table),), to, samples_per_shard=4), **changes)  # type: ignore[arg-type]


def content(folder: Path) -> dict[str, bytes]:
    """Everything a user sees of a set."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def keys(folder: Path, split: str) -> list[str]:
    found = []
    for shard in sorted(folder.glob(f"{split}-*.tar")):
        with tarfile.open(shard) as tar:
            found += [name.removesuffix(".txt") for name in tar.getnames() if name.endswith(".txt")]
    return found


def test_any_number_of_workers_gives_the_same_bytes(table: Path, tmp_path: Path) -> None:
    asked = {"split": {"train": 0.7, "test": 0.3}, "recipe": Recipe(resize=6, encode="jpg"), "shuffle": True}
    for workers in (0, 1, 3):
        write_set(options(table, tmp_path / str(workers), workers=workers, **asked))
    first = content(tmp_path / "0")
    assert first == content(tmp_path / "1") == content(tmp_path / "3")
    assert {"manifest.json", "classes.txt", "train-000000.tar", "test-000000.tar"} < first.keys()


def test_shuffled_order_is_a_function_of_the_seed(table: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        write_set(options(table, tmp_path / name, shuffle=True, seed=seed))
    plain = [f"row-{i:08d}" for i in range(PAIRS)]
    one, two = keys(tmp_path / "a", "shard"), keys(tmp_path / "b", "shard")
    assert one != plain and one != two and sorted(one) == sorted(two) == plain


def kill_at(target: type, name: str, call: int, after: bool) -> None:
    """Let this process end as `kill -9` ends it, at a call of a method."""
    method, calls = getattr(target, name), [0]

    def killed(*args: object, **kwargs: object) -> object:
        calls[0] += 1
        if calls[0] == call and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = method(*args, **kwargs)
        if calls[0] == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(target, name, killed)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("target", "name", "call", "after"),
    [(ShardFile, "add", 7, True), (Journal, "add", 2, False), (Journal, "add", 5, True), (Journal, "keep", 1, True)],
    ids=["inside a shard", "before its record", "after its record", "at the start"],
)
def test_a_killed_writing_goes_on(
    table: Path, tmp_path: Path, target: type, name: str, call: int, after: bool, workers: int
) -> None:
    (table.parent / "pictures" / "9.png").write_bytes(b"")
    asked = options(
        table, tmp_path / "out", split={"train": 0.7, "test": 0.3}, workers=workers, max_bad=1, shuffle=True
    )

    def child() -> None:
        kill_at(target, name, call, after)
        write_set(asked)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "out" / "manifest.json").exists()
    when_free(asked)
    write_set(replace(asked, to=tmp_path / "whole", workers=0))
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert not list((tmp_path / "out").glob(".*.tar.*"))


def when_free(asked: Options) -> None:
    """Workers outlive a killed writer by a moment, and the folder is theirs for as long."""
    for _ in range(100):
        with contextlib.suppress(ConfigError):
            write_set(asked)
            return
        time.sleep(0.1)
    write_set(asked)


def test_a_finished_set_is_left_as_it_is(table: Path, tmp_path: Path) -> None:
    write_set(options(table, tmp_path / "out"))
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    write_set(options(table, tmp_path / "out", workers=2))
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")} == before
    whole = content(tmp_path / "out")
    (tmp_path / "out" / "shard-000002.tar").unlink()
    write_set(options(table, tmp_path / "out"))
    assert content(tmp_path / "out") == whole


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples_per_shard": 5}, "other options .samples_per_shard: 4 there, 5 now"),
        ({"recipe": Recipe(encode="webp")}, "other options .*encode: None there, 'webp' now"),
        ({"split": {"a": 0.5, "b": 0.5}}, "other options .*split: {} there"),
    ],
)
def test_refuses_another_configuration(table: Path, tmp_path: Path, changes: dict[str, object], message: str) -> None:
    write_set(options(table, tmp_path / "out"))
    before = content(tmp_path / "out")
    with pytest.raises(ConfigError, match=message):
        write_set(options(table, tmp_path / "out", **changes))
    assert content(tmp_path / "out") == before
    write_set(options(table, tmp_path / "out", **changes), restart=True)
    write_set(options(table, tmp_path / "new", **changes))
    assert content(tmp_path / "out") == content(tmp_path / "new")


def test_refuses_other_rows_and_foreign_folders(table: Path, tmp_path: Path) -> None:
    write_set(options(table, tmp_path / "out"))
    table.write_text(table.read_text().replace("caption, 5", "another 5"))
    with pytest.raises(ConfigError, match="rows of the source are not what they were"):
        write_set(options(table, tmp_path / "out"))
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "a.tar").write_bytes(b"mine")
    with pytest.raises(ConfigError, match=r"holds a.tar, which this command has not written"):
        write_set(options(table, tmp_path / "foreign"), restart=True)
    assert [path.name for path in (tmp_path / "foreign").iterdir()] == ["a.tar"]


def test_two_at_a_time_are_refused(table: Path, tmp_path: Path) -> None:
    asked = options(table, tmp_path / "out")
    with Journal(asked.to, {}).locked(False), pytest.raises(ConfigError, match="another process is writing here"):
        write_set(asked)


def test_bad_rows_are_counted_named_and_refused(table: Path, tmp_path: Path) -> None:
    pictures = table.parent / "pictures"
    (pictures / "3.png").unlink()
    (pictures / "7.png").write_bytes(picture(7)[:60])
    (pictures / "11.png").write_bytes(b"GIF89a")
    out = tmp_path / "out"
    with pytest.raises(
        RunError, match=r"3 of 23 rows cannot be used; the first is .*pairs.csv line 5: the file .*3.png does"
    ):
        write_set(options(table, out))
    named = [json.loads(line) for line in (out / "bad.jsonl").read_text().splitlines()]
    assert [(row["key"], row["row"].rpartition(" ")[2]) for row in named] == [
        ("row-00000003", "5"),
        ("row-00000007", "9"),
        ("row-00000011", "13"),
    ]
    assert "cannot be decoded" in named[1]["reason"] and "no JPEG, PNG or WebP" in named[2]["reason"]
    assert not (out / "manifest.json").exists()
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    manifest = write_set(options(table, out, max_bad=3))  # accepted: nothing is written again
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.tar")} == before
    assert manifest["samples"] == PAIRS - 3 and manifest["bad"] == {"rows": 3, "file": "bad.jsonl"}


def test_mended_rows_take_their_place(table: Path, tmp_path: Path) -> None:
    good = (table.parent / "pictures" / "13.png").read_bytes()
    (table.parent / "pictures" / "13.png").write_bytes(b"")
    with pytest.raises(RunError, match="its picture is empty"):
        write_set(options(table, tmp_path / "out"))
    (table.parent / "pictures" / "13.png").write_bytes(good)
    write_set(options(table, tmp_path / "out"))
    write_set(options(table, tmp_path / "new"))
    assert content(tmp_path / "out") == content(tmp_path / "new")


def test_a_wrong_folder_stops_early(tmp_path: Path) -> None:
    write_table(tmp_path / "pairs.csv", [{"image": f"{i}.png", "text": "text"} for i in range(1000)])
    with pytest.raises(RunError, match=r"100 of 1000 rows cannot be used; .*found so far before any good one"):
        write_set(options(tmp_path / "pairs.csv", tmp_path / "out"))
    with pytest.raises(RunError, match="no row of split 'shard' can be used"):
        write_set(options(tmp_path / "pairs.csv", tmp_path / "out", max_bad=1000))


def test_a_table_that_changes_meanwhile_is_an_error(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def then_cut(*arguments: Any) -> Plan:
        plan = make_plan(*arguments)
        table.write_text("".join(table.read_text().splitlines(keepends=True)[:-3]))
        return plan

    monkeypatch.setattr("mmcl.datamodules.writing.writer.make_plan", then_cut)
    with pytest.raises(RunError, match="the rows of the source changed while they were read"):
        write_set(options(table, tmp_path / "out"))


def test_a_dead_worker_is_an_error(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmcl.datamodules.writing.writer.make_sample", lambda *_: os._exit(9))
    with pytest.raises(RunError, match="a worker process died"):
        write_set(options(table, tmp_path / "out", workers=2))


def test_a_full_disk_is_an_error_and_goes_on(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(RunError, match="out: No space left on device; mend it and run the same command again"):
            write_set(options(table, tmp_path / "out"))
    assert write_set(options(table, tmp_path / "out"))["samples"] == PAIRS


def test_identities_stay_on_one_side(table: Path, tmp_path: Path) -> None:
    shares = {"train": 0.6, "val": 0.2, "test": 0.2}
    manifest = write_set(options(table, tmp_path / "out", split=shares, split_by="painter", seed=1))
    sides = {name: {int(key[-2:]) // 3 for key in keys(tmp_path / "out", name)} for name in shares}
    assert sides["train"] and sides["test"] and sides["val"]
    assert not sides["train"] & sides["test"] and not sides["train"] & sides["val"] and not sides["val"] & sides["test"]
    assert sum(split["samples"] for split in manifest["splits"].values()) == PAIRS
    assert manifest["options"]["split"] == shares
    other = write_set(options(table, tmp_path / "other", split=shares, split_by="painter", seed=2))
    assert [s["sha256"] for s in other["shards"]] != [s["sha256"] for s in manifest["shards"]]


def test_a_split_is_a_function_of_seed_and_identity() -> None:
    shares = {"train": 0.9, "test": 0.1}
    sides = [split_of(f"speaker {i}", shares, seed=3) for i in range(20_000)]
    assert 0.09 < sides.count("test") / len(sides) < 0.11
    # What has been published stays on its side in every later version.
    assert [split_of(name, shares, 0) for name in ("a", "b", "c", "ü")] == ["train", "train", "train", "test"]


def test_shards_keep_their_limits(table: Path, tmp_path: Path) -> None:
    by_count = write_set(options(table, tmp_path / "count", samples_per_shard=10))
    assert [shard["samples"] for shard in by_count["shards"]] == [10, 10, 3]
    by_size = write_set(options(table, tmp_path / "size", samples_per_shard=1000, megabytes_per_shard=0.02048))
    assert max(shard["bytes"] for shard in by_size["shards"]) <= 20_480
    for one, two in zip(by_size["shards"], by_size["shards"][1:], strict=False):
        assert one["bytes"] + two["bytes"] > 20_480
    single = write_set(options(table, tmp_path / "single", megabytes_per_shard=1e-6))
    assert [shard["samples"] for shard in single["shards"]] == [1] * PAIRS


def test_the_manifest_tells_the_files(table: Path, tmp_path: Path) -> None:
    manifest = write_set(options(table, tmp_path / "out", licence="CC0-1.0", origin="my camera"))
    assert manifest == json.loads((tmp_path / "out" / "manifest.json").read_text())
    for shard in manifest["shards"]:
        data = (tmp_path / "out" / shard["name"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard["bytes"], shard["sha256"])
    assert (manifest["licence"], manifest["origin"], manifest["class_names"]) == ("CC0-1.0", "my camera", ["a", "b"])
    assert manifest["source"] == {"kind": "table", "paths": [str(table)], "rows": PAIRS}
    assert manifest["unused"] == {"column 'painter'": 1}
    assert (tmp_path / "out" / "classes.txt").read_text() == "a\nb\n"


def test_webdataset_and_our_reader_read_what_was_written(
    table: Path, tmp_path: Path, make_data: Callable[..., object]
) -> None:
    write_set(options(table, tmp_path / "out", columns=Columns(json=("painter",))))
    shards = sorted(str(path) for path in (tmp_path / "out").glob("*.tar"))
    found = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert [s["__key__"] for s in found] == [f"row-{i:08d}" for i in range(PAIRS)]
    for i, sample in enumerate(found):
        assert sample["png"] == picture(i) and sample["txt"].decode() == f"caption, {i}"
        assert sample["cls"] == b"01"[i % 2 : i % 2 + 1] and json.loads(sample["json"]) == {"painter": f"p{i // 3}"}
    source = Source([str(tmp_path / "out" / "shard-*.tar")])
    data = make_data(source, class_names=str(tmp_path / "out" / "classes.txt"))
    data.check()  # type: ignore[attr-defined]
    batches = list(data.eval_loader(source))  # type: ignore[attr-defined]
    labels = [
        label
        for batch in batches
        for label, valid in zip(batch["labels"].tolist(), batch["valid"], strict=True)
        if valid
    ]
    assert labels == [i % 2 for i in range(PAIRS)]
