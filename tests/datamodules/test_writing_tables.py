"""What `mmcl shards write` makes of tables and of data sets saved by `datasets`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from written import fill, manifest, picture, reasons, recording, write

from mmcl.datamodules.writing import Columns, Recipe
from mmcl.errors import ConfigError, RunError

# Tables


def pairs(folder: Path) -> list[dict[str, Any]]:
    """Three pictures, and the rows that name them."""
    fill(folder, {f"{i}.png": picture(i) for i in range(3)})
    return [{"file": f"{i}.png", "words": f'a "large" tree, {i}', "class": i * 2} for i in range(3)]


COLUMNS = Columns(image="file", text="words", label="class")


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet"])
def test_every_kind_of_table_gives_the_same_shards(tmp_path: Path, form: str) -> None:
    rows, table = pairs(tmp_path), tmp_path / f"pairs.{form}"
    if form == "csv":
        quoted = [f'{r["file"]},"{r["words"].replace(chr(34), chr(34) * 2)}",{r["class"]}' for r in rows]
        table.write_text("\ufefffile,words,class\r\n" + "\r\n".join(quoted) + "\r\n")
    elif form == "tsv":
        table.write_text("file\twords\tclass\n" + "".join(f"{r['file']}\t{r['words']}\t{r['class']}\n" for r in rows))
    elif form == "jsonl":
        table.write_text("\n\n".join(json.dumps(row) for row in rows))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), table)
    found = write(table, tmp_path / "out", columns=COLUMNS)
    assert found == {
        f"row-{i:08d}": {"png": picture(i), "txt": f'a "large" tree, {i}'.encode(), "cls": str(i * 2).encode()}
        for i in range(3)
    }


def test_parquet_with_pictures_inside_is_sent_elsewhere(tmp_path: Path) -> None:
    rows = [{"image": {"bytes": picture(0), "path": None}, "text": "a"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    with pytest.raises(ConfigError, match=r"column 'image' holds no paths but struct.*save_to_disk"):
        write(tmp_path / "t.parquet", tmp_path / "out")


def test_several_captions_keys_and_further_columns(tmp_path: Path) -> None:
    fill(tmp_path, {"1.png": picture(1)})
    row = {"image": "1.png", "text": ["one", "two"], "key": "a/b", "width": 12, "note": None}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row))
    found = write(tmp_path / "pairs.jsonl", tmp_path / "out", columns=Columns(json=("width", "note")))
    assert json.loads(found["a/b"]["json"]) == {"captions": ["one", "two"], "width": 12, "note": None}


def test_no_line_of_a_table_is_lost(tmp_path: Path) -> None:
    fill(tmp_path, {"1.png": picture(1)})
    lines = ["image,text", "1.png,good", "1.png", "1.png,a,b", ",none", "1.png,", "https://x.org/1.png,far"]
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    assert len(write(tmp_path / "pairs.csv", tmp_path / "out", max_bad=5)) == 1
    named = {
        json.loads(line)["row"].rpartition(" ")[2]: json.loads(line)["reason"]
        for line in (tmp_path / "out" / "bad.jsonl").read_text().splitlines()
    }
    assert list(named) == ["3", "4", "5", "6", "7"]
    assert "1 cells, and the header has 2" in named["3"] and "3 cells" in named["4"]
    assert "holds no path" in named["5"] and "caption is empty" in named["6"] and "no path of a local" in named["7"]
    (tmp_path / "lines.jsonl").write_text('{"text": "good"}\n{"text": \n[1]\n{"other": 1}\n')
    with pytest.raises(RunError, match=r"3 of 4 rows cannot be used; the first is .*lines.jsonl line 2: it is no JSON"):
        write(tmp_path / "lines.jsonl", tmp_path / "json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('image,text\n1.png,"never closed\n1.png,x\n', "is a quote not closed"),
        ("image,image\n1.png,1.png\n", "must name the columns, each once"),
        ("image,text\n", "has no rows"),
        ("a,b\n1,2\n", "none of its columns is called image, audio or text"),
        (b"image,text\n1.png,\xff\n", "save it as UTF-8"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path: Path, text: str | bytes, message: str) -> None:
    fill(tmp_path, {"pairs.csv": text})
    with pytest.raises(ConfigError, match=message):
        write(tmp_path / "pairs.csv", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_columns_are_checked(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,label,key,part\nx,a,k,train\ny,b,k,test\nz,c,,test\n")
    with pytest.raises(ConfigError, match="--label: there is no column 'lable'; did you mean label"):
        write(tmp_path / "t.csv", tmp_path / "out", columns=Columns(label="lable"))
    with pytest.raises(
        RunError, match=r"2 of 3 rows cannot be used; the first is .* line 3: an earlier row has the same key"
    ):
        write(tmp_path / "t.csv", tmp_path / "out")
    found = manifest_of(tmp_path / "t.csv", tmp_path / "split", columns=Columns(key="text"), split_from="part")
    assert {name: split["samples"] for name, split in found["splits"].items()} == {"train": 1, "test": 2}
    (tmp_path / "mixed.csv").write_text("text,label\nx,1\ny,b\n")
    assert manifest_of(tmp_path / "mixed.csv", tmp_path / "mixed")["class_names"] == ["1", "b"]


def test_labels_are_numbers_or_names(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("ant\nbee\ncow\n")
    (tmp_path / "t.csv").write_text("text,label\nx,2\ny,bee\nz,-1\nw,3\n")
    found = write(tmp_path / "t.csv", tmp_path / "out", class_names=str(tmp_path / "names.txt"), max_bad=2)
    assert [sample["cls"] for sample in found.values()] == [b"2", b"1"]
    assert reasons(tmp_path / "out") == {
        "4": "its label -1 is none of the 3 classes",
        "5": "its label 3 is none of the 3 classes",
    }
    (tmp_path / "numbers.csv").write_text("text,label\nx,7\ny,-1\n")
    found = write(tmp_path / "numbers.csv", tmp_path / "numbers")
    assert [sample["cls"] for sample in found.values()] == [b"7", b"-1"]
    assert manifest(tmp_path / "numbers")["class_names"] == []
    (tmp_path / "both.jsonl").write_text('{"text": "x", "label": 1}\n{"text": "y", "label": "b"}\n')
    with pytest.raises(ConfigError, match=r"labels are numbers \(1\) and names \('b'\) in one column"):
        write(tmp_path / "both.jsonl", tmp_path / "both")


def manifest_of(source: Path, to: Path, **options: Any) -> dict[str, Any]:
    write(source, to, **options)
    return manifest(to)


def test_keys_may_not_leave_the_archive(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,key\nx,../../etc/a\ny,/b\nz,c.d\nw,good\n")
    assert list(write(tmp_path / "t.csv", tmp_path / "out", max_bad=3)) == ["good"]


def test_several_tables_are_one_set(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.csv").write_text(f"text\n{name}1\n{name}2\n")
    found = write([tmp_path / "a.csv", tmp_path / "b.csv"], tmp_path / "out")
    assert [sample["txt"] for sample in found.values()] == [b"a1", b"a2", b"b1", b"b2"]
    (tmp_path / "c.csv").write_text("text,more\nx,y\n")
    with pytest.raises(ConfigError, match=r"have different columns \(more\)"):
        write([tmp_path / "a.csv", tmp_path / "c.csv"], tmp_path / "other")


# Data sets of `datasets`


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A dictionary of two splits with pictures, recordings, classes and texts."""
    rows = {
        "image": [{"bytes": picture(i), "path": None} for i in range(4)],
        "audio": [{"bytes": recording(i, "FLAC"), "path": "x.flac"} for i in range(4)],
        "label": [0, 1, 0, 1],
        "text": ["eins", "zwei", "drei", "vier"],
    }
    features = {"image": datasets.Image(), "audio": datasets.Audio(decode=False), "text": datasets.Value("string")}
    made = datasets.Dataset.from_dict(rows).cast(
        datasets.Features({**features, "label": datasets.ClassLabel(names=["dog", "cat"])})
    )
    datasets.DatasetDict({"train": made.select([2, 0]), "test": made.select([1, 3])}).save_to_disk(tmp_path / "saved")
    made.with_format("numpy").save_to_disk(tmp_path / "single")
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
def test_a_saved_dictionary_keeps_its_splits_and_bytes(saved: Path, workers: int) -> None:
    found = write(saved / "saved", saved / "out", workers=workers)
    assert found["train-00000000"] == {"png": picture(2), "flac": recording(2, "FLAC"), "txt": b"drei", "cls": b"0"}
    assert found["test-00000001"] == {"png": picture(3), "flac": recording(3, "FLAC"), "txt": b"vier", "cls": b"1"}
    told = manifest(saved / "out")
    assert told["class_names"] == ["dog", "cat"] and list(told["splits"]) == ["train", "test"]
    assert told["source"]["kind"] == "datasets"


def test_a_single_data_set_is_split_as_asked(saved: Path) -> None:
    found = write(
        saved / "single", saved / "out", split={"a": 0.5, "b": 0.5}, split_by="text", recipe=Recipe(encode="jpg")
    )
    assert sorted(found) == [f"row-{i:08d}" for i in range(4)] and all("jpg" in sample for sample in found.values())
    with pytest.raises(ConfigError, match="column 'text' holds no Image but Value"):
        write(saved / "single", saved / "wrong", columns=Columns(image="text"))


def test_extras_that_are_missing_are_named(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}), saved / "t.parquet")
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ConfigError, match=r"pip install 'mmcl\[datasets\]'"):
        write(saved / "saved", saved / "out")
    with pytest.raises(ConfigError, match=r"pip install 'mmcl\[tables\]'"):
        write(saved / "t.parquet", saved / "out")


def test_a_data_set_of_nothing_but_pictures(tmp_path: Path) -> None:
    rows = {"image": [{"bytes": picture(i), "path": None} for i in range(3)]}
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).save_to_disk(tmp_path / "saved")
    found = write(tmp_path / "saved", tmp_path / "out")
    assert found == {f"row-{i:08d}": {"png": picture(i)} for i in range(3)}


def test_empty_cells_of_a_data_set_are_named(tmp_path: Path) -> None:
    rows = {"image": [{"bytes": picture(0), "path": None}, None], "text": ["a", "b"]}
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    datasets.Dataset.from_dict(rows).cast(features).save_to_disk(tmp_path / "saved")
    with pytest.raises(
        RunError, match=r"1 of 2 rows cannot be used; the first is .*saved row 1: its column 'image' is empty"
    ):
        write(tmp_path / "saved", tmp_path / "out")
