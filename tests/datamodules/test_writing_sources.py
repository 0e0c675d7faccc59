"""What `mmcl shards write` makes of folders and of other shards."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import webdataset
from PIL import Image
from written import fill, manifest, picture, recording, write

from mmcl.datamodules import write_shard
from mmcl.datamodules.decode import decode
from mmcl.datamodules.writing import Recipe
from mmcl.errors import ConfigError, RunError

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


def test_neither_of_two_captions_is_taken_for_the_other(tmp_path: Path) -> None:
    files = {"a.png": picture(1), "a.txt": "one", "a.TXT": "two", "b.png": picture(2), "b.TXT": "three"}
    folder = fill(tmp_path / "in", files)
    assert list(write(folder, tmp_path / "out", max_bad=1)) == ["b"]
    (reason,) = [json.loads(line)["reason"] for line in (tmp_path / "out" / "bad.jsonl").read_text().splitlines()]
    assert reason == "there are two captions beside it"


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


def test_a_folder_of_texts(tmp_path: Path) -> None:
    files = {"news/b.1.txt": "Zwei\n", "news/a.txt": "\ufeffein Käfer", "c.txt": "three", "notes.md": "x"}
    folder = fill(tmp_path / "in", files)
    found = write(folder, tmp_path / "out")
    assert found == {"c": {"txt": b"three"}, "news/a": {"txt": "ein Käfer".encode()}, "news/b_1": {"txt": b"Zwei"}}
    assert manifest(tmp_path / "out")["unused"] == {".md": 1}
    (folder / "c.txt").unlink()
    assert "cls" not in write(folder, tmp_path / "plain")["news/a"]
    assert write(folder, tmp_path / "classes", classes="folders")["news/a"]["cls"] == b"0"
    for content, reason in (("", "is empty"), (b"\xff", "cannot be decoded")):
        with pytest.raises(RunError, match=rf"in/d\.txt: .*{reason}"):
            write(fill(folder, {"d.txt": content}), tmp_path / f"bad {reason}")


def test_folders_that_cannot_be_meant(tmp_path: Path) -> None:
    both = fill(tmp_path / "both", {"a.png": picture(1), "b.wav": recording(1)})
    with pytest.raises(ConfigError, match="say with --from images or --from audio"):
        write(both, tmp_path / "out")
    assert list(write(both, tmp_path / "out", kind="audio")) == ["b"]
    with pytest.raises(ConfigError, match="holds no pictures"):
        write(fill(tmp_path / "none", {"a.md": "x"}), tmp_path / "out")
    with pytest.raises(RunError, match=r"shards hold no \.gif; convert it"):  # captions alone are no documents
        write(fill(tmp_path / "gifs", {"a.gif": b"GIF89a", "a.txt": "x"}), tmp_path / "bad")
    beside = fill(tmp_path / "beside", {"rows.csv": "text\nx\n", "licence.txt": "free"})
    with pytest.raises(ConfigError, match=r"holds texts beside \.csv; name those files, or .* --from texts"):
        write(beside, tmp_path / "out")
    assert list(write(beside, tmp_path / "texts", kind="texts")) == ["licence"]
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


def raw_tar(path: Path, names: list[str]) -> Path:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, io.BytesIO(b"cap"))
    return path


def test_shards_of_a_whole_folder(tmp_path: Path) -> None:
    """`tar -C FOLDER -cf a.tar .` puts ./ before every name."""
    path = raw_tar(tmp_path / "a.tar", ["./a.txt", "./d/b.txt"])
    assert write(path, tmp_path / "out") == {"a": {"txt": b"cap"}, "d/b": {"txt": b"cap"}}


def test_keys_that_are_no_text_are_named(tmp_path: Path) -> None:
    path = raw_tar(tmp_path / "a.tar", ["\udcffa.txt", "b.txt"])
    assert list(write(path, tmp_path / "out", max_bad=1)) == ["b"]
    (row,) = [json.loads(line) for line in (tmp_path / "out" / "bad.jsonl").read_text("utf-8").splitlines()]
    assert row["key"] == "\udcffa" and "is no sample key" in row["reason"]
    with pytest.raises(RunError, match=r"no row can be used \(the first: .*is no sample key.*see .*bad.jsonl"):
        write(raw_tar(tmp_path / "none.tar", ["\udcffa.txt"]), tmp_path / "none", max_bad=1)


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
