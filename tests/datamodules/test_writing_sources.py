"""What `mmcl shards write` makes of folders, tables, saved data sets and other shards."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile
import webdataset
from PIL import Image

from mmcl.datamodules import write_shard
from mmcl.datamodules.decode import decode
from mmcl.datamodules.writing import Columns, Options, Recipe, write_set
from mmcl.errors import ConfigError, RunError

datasets = pytest.importorskip("datasets")


def picture(number: int, form: str = "PNG", size: tuple[int, int] = (12, 8), **options: Any) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 255, (*size[::-1], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


def recording(number: int, form: str = "WAV") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.random.default_rng(number).uniform(-0.5, 0.5, 800), 8000, format=form)
    return buffer.getvalue()


def fill(folder: Path, files: Mapping[str, bytes | str]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def write(source: Path | list[Path], to: Path, restart: bool = False, **options: Any) -> dict[str, dict[str, bytes]]:
    """Write, and return key -> extension -> content of all samples."""
    sources = tuple(map(str, source)) if isinstance(source, list) else (str(source),)
    write_set(Options(sources, to, **options), restart)
    return read(to)


def read(folder: Path) -> dict[str, dict[str, bytes]]:
    shards = sorted(map(str, folder.glob("*.tar")))
    found = webdataset.WebDataset(shards, shardshuffle=False)
    return {s["__key__"]: {k: v for k, v in s.items() if not k.startswith("__")} for s in found}


def manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return found


# Folders


def test_class_folders(tmp_path: Path) -> None:
    files = {
        "dog/b.jpeg": picture(1, "JPEG"),
        "cat/x/a.1.png": picture(2),
        "dog/a.JPG": picture(3, "JPEG"),
        "README": "x",
    }
    found = write(fill(tmp_path / "in", {**files, "dog/.DS_Store": "x", "notes.txt": "x"}), tmp_path / "out")
    assert found == {
        "cat/x/a_1": {"png": files["cat/x/a.1.png"], "cls": b"0"},
        "dog/a": {"jpg": files["dog/a.JPG"], "cls": b"1"},
        "dog/b": {"jpg": files["dog/b.jpeg"], "cls": b"1"},
    }
    assert manifest(tmp_path / "out")["class_names"] == ["cat", "dog"]
    assert manifest(tmp_path / "out")["unused"] == {".txt": 1, "hidden files": 1, "without extension": 1}


def test_captions_beside_pictures_and_classes_when_asked(tmp_path: Path) -> None:
    files = {"a/1.png": picture(1), "a/1.txt": "\ufeffein Käfer\n", "b/2.webp": picture(2, "WEBP"), "b/2.txt": "zwei"}
    folder = fill(tmp_path / "in", files)
    found = write(folder, tmp_path / "out")
    assert found["a/1"] == {"png": files["a/1.png"], "txt": "ein Käfer".encode()} and set(found["b/2"]) == {
        "webp",
        "txt",
    }
    found = write(folder, tmp_path / "classes", classes="folders")
    assert [sample["cls"] for sample in found.values()] == [b"0", b"1"] and found["b/2"]["txt"] == b"zwei"


def test_what_is_wrong_in_a_folder_is_named(tmp_path: Path) -> None:
    files = {
        "a.png": picture(1),
        "a.txt": "one",
        "b.png": picture(2),
        "c.png": picture(3),
        "c.txt": " \n",
        "d.txt": "lost",
    }
    more = {
        "e.gif": b"GIF89a",
        "e.txt": "x",
        "f.png": picture(4),
        "f.txt": b"\xff",
        "g.jpg": picture(5),
        "g.png": picture(6),
    }
    folder = fill(tmp_path / "in", {**files, **more, "g.txt": "two of them"})
    assert list(write(folder, tmp_path / "out", max_bad=6)) == ["a", "g"]
    reasons = [json.loads(line) for line in (tmp_path / "out" / "bad.jsonl").read_text().splitlines()]
    found = {(Path(row["row"]).name, row["reason"]) for row in reasons}
    assert {name for name, _ in found} == {"b.png", "c.png", "d.txt", "e.gif", "f.png", "g.png"}
    for part in ("there is no caption beside it", "its caption is empty", "but there is no file of kind images"):
        assert any(part in reason for _, reason in found)
    for part in ("shards hold no .gif", "its txt cannot be decoded", "an earlier row has the same key"):
        assert any(part in reason for _, reason in found)


def test_class_names_keep_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("zebra\ncat\ndog\n")
    folder = fill(tmp_path / "in", {"dog/1.png": picture(1), "cat/2.png": picture(2)})
    found = write(folder, tmp_path / "out", class_names=str(tmp_path / "names.txt"))
    assert {key: sample["cls"] for key, sample in found.items()} == {"cat/2": b"1", "dog/1": b"2"}
    (tmp_path / "names.txt").write_text("cat\n")
    with pytest.raises(RunError, match="its class 'dog' is none of the 1 class names"):
        write(folder, tmp_path / "less", class_names=str(tmp_path / "names.txt"))


def test_recordings_get_the_extension_of_their_content(tmp_path: Path) -> None:
    files = {
        "a.wav": recording(1),
        "b.wav": recording(2, "FLAC"),
        "c.mp3": recording(3, "OGG"),
        "d.mp3": recording(4, "MP3"),
    }
    captions = {"a.txt": "a", "b.txt": "b", "c.txt": "c", "d.txt": "d"}
    found = write(fill(tmp_path / "in", {**files, **captions}), tmp_path / "out")
    assert [sorted(sample) for sample in found.values()] == [
        ["txt", "wav"],
        ["flac", "txt"],
        ["ogg", "txt"],
        ["mp3", "txt"],
    ]
    assert found["b"]["flac"] == files["b.wav"]
    silent = io.BytesIO()
    soundfile.write(silent, np.zeros(800), 8000, format="WAV")
    with pytest.raises(RunError, match="its wav cannot be decoded: the recording is silent"):
        write(fill(tmp_path / "quiet", {"a.wav": silent.getvalue()}), tmp_path / "bad")


def test_folders_that_cannot_be_meant(tmp_path: Path) -> None:
    both = fill(tmp_path / "both", {"a.png": picture(1), "b.wav": recording(1)})
    with pytest.raises(ConfigError, match="say with --from images or --from audio"):
        write(both, tmp_path / "out")
    assert list(write(both, tmp_path / "out", kind="audio")) == ["b"]
    with pytest.raises(ConfigError, match="holds no pictures"):
        write(fill(tmp_path / "none", {"a.md": "x"}), tmp_path / "out")
    with pytest.raises(ConfigError, match="does not exist; give a folder, a table"):
        write(tmp_path / "gone", tmp_path / "out")


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    fill(tmp_path / "far", {"a.png": picture(1)})
    folder = fill(tmp_path / "in", {"b.png": picture(2)})
    os.symlink(tmp_path / "far", folder / "link")
    os.symlink(folder, folder / "loop")
    assert list(write(folder, tmp_path / "out")) == ["b", "link/a"]
    assert manifest(tmp_path / "out")["unused"] == {"linked folders that were read already": 1}


# Pictures


@pytest.mark.parametrize(("form", "kind"), [("jpg", "JPEG"), ("webp", "WEBP"), ("png", "PNG")])
def test_resize_only_downwards_and_encode(tmp_path: Path, form: Any, kind: str) -> None:
    files = {"large.png": picture(1, size=(40, 20)), "small.png": picture(2), "same.jpg": picture(3, "JPEG")}
    found = write(fill(tmp_path / "in", files), tmp_path / "out", recipe=Recipe(resize=10, encode=form))
    opened = {key: Image.open(io.BytesIO(sample[form])) for key, sample in found.items()}
    assert {key: image.size for key, image in opened.items()} == {"large": (20, 10), "same": (12, 8), "small": (12, 8)}
    assert {image.format for image in opened.values()} == {kind}
    if form == "jpg":
        assert found["same"]["jpg"] == files["same.jpg"]  # it has the format already
    if form == "png":
        assert found["small"]["png"] == files["small.png"]


def test_resize_keeps_the_format_and_what_training_sees(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    clear = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    buffer = io.BytesIO()
    clear.save(buffer, "PNG")
    files = {"turned.jpg": picture(1, "JPEG", (40, 20), exif=turned), "clear.png": buffer.getvalue()}
    found = write(fill(tmp_path / "in", files), tmp_path / "out", recipe=Recipe(resize=10))
    assert decode("jpg", found["turned"]["jpg"]).size == (10, 20)
    assert Image.open(io.BytesIO(found["clear"]["png"])).convert("RGB").getpixel((0, 0)) == (255, 255, 255)


def test_quality_is_heeded(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", {"a.png": picture(1, size=(64, 64))})
    sizes = [
        len(write(folder, tmp_path / str(q), recipe=Recipe(encode="jpg", quality=q))["a"]["jpg"]) for q in (20, 95)
    ]
    assert sizes[0] < sizes[1]


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


def test_empty_cells_of_a_data_set_are_named(tmp_path: Path) -> None:
    rows = {"image": [{"bytes": picture(0), "path": None}, None], "text": ["a", "b"]}
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    datasets.Dataset.from_dict(rows).cast(features).save_to_disk(tmp_path / "saved")
    with pytest.raises(
        RunError, match=r"1 of 2 rows cannot be used; the first is .*saved row 1: its column 'image' is empty"
    ):
        write(tmp_path / "saved", tmp_path / "out")


# Other shards


def test_shards_from_shards(tmp_path: Path) -> None:
    samples = [
        {
            "__key__": f"v/{i}",
            "png": picture(i, size=(40, 40)),
            "seg.png": picture(i),
            "cls": i,
            "json": {"a": i},
            "txt": "t",
        }
        for i in range(5)
    ]
    write_shard(tmp_path / "a-0.tar", samples[:2])
    with webdataset.TarWriter(str(tmp_path / "a-1.tar")) as sink:
        for sample in samples[2:]:
            sink.write({**sample, "pyd": {"never": "read"}})
    found = write(tmp_path / "a-{0..1}.tar", tmp_path / "out", recipe=Recipe(resize=20, encode="jpg"))
    assert list(found) == [f"v/{i}" for i in range(5)] and manifest(tmp_path / "out")["unused"] == {".pyd": 3}
    assert set(found["v/4"]) == {"jpg", "seg.png", "cls", "json", "txt"} and found["v/4"]["seg.png"] == picture(4)
    assert Image.open(io.BytesIO(found["v/4"]["jpg"])).size == (20, 20)
    again = write(tmp_path / "out" / "*.tar", tmp_path / "again")
    assert again == found


def test_damaged_members_of_shards_are_named(tmp_path: Path) -> None:
    objects = io.BytesIO()
    np.save(objects, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    good = {"__key__": "good", "txt": "x"}
    broken = [
        ("npy", objects.getvalue()),
        ("json", b"{"),
        ("json", b'{"captions": [""]}'),
        ("cls", b"x"),
        ("txt", b" "),
    ]
    write_shard(tmp_path / "a.tar", [good, *({"__key__": f"b{i}", e: data} for i, (e, data) in enumerate(broken))])
    assert list(write(tmp_path / "a.tar", tmp_path / "out", max_bad=5)) == ["good"]
    with tarfile.open(tmp_path / "cut.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("a.txt"))
    (tmp_path / "cut.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:1500])
    with pytest.raises(ConfigError, match="make or fetch the shard again"):
        write(tmp_path / "cut.tar", tmp_path / "none")
