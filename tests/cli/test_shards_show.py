"""`mmcl shards show`: samples on the terminal and on a contact sheet."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from damage import jpeg, samples, sound, write
from PIL import Image

from mmcl.cli import main
from mmcl.datamodules.sheet import spectrogram
from mmcl.outputs import Audio

ATTACK = '<script src="https://example.org/x.js">"\'</script> \x1b[2J'


def show(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert main(["shards", "show", *map(str, arguments)]) == 0
    out: str = capsys.readouterr().out
    return out


def mixed(folder: Path) -> Path:
    """A sample of each kind, with an attack where data can hold one."""
    array = io.BytesIO()
    np.save(array, np.zeros((3, 4), np.float32))
    members = [
        ("<b>.jpg", jpeg(1, side=300)),
        ("<b>.txt", ATTACK.encode()),
        ("<b>.cls", b"7"),
        ("sound.wav", sound(np.sin(np.arange(16000) * 0.5), rate=8000)),
        ("sound.json", b'{"captions": ["a beep"]}'),
        ("vector.npy", array.getvalue()),
        ("broken.png", b"<svg onload=alert(1)>"),
    ]
    return write(members)(folder)


def test_prints_what_samples_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = show(capsys, mixed(tmp_path))
    for line in (
        "<b>  (",
        "  jpg: 300 x 300 pixels, ",
        "  cls: 7",
        "  wav: 2.00 s at 8000 Hz, ",
        '  json: {"captions": ["a beep"]}',
        "  npy: float32 (3, 4)",
        "  png: cannot be decoded: not a JPEG, PNG or WebP picture",
    ):
        assert line in out
    assert "\x1b" not in out and "x1b[2J" in out


def test_the_choice_is_a_function_of_the_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(3):
        write([(f"{i}{name}", data) for name, data in samples()], f"{i}.tar")(tmp_path)

    def keys(*options: str) -> list[str]:
        return re.findall(r"^(\S+)  \(", show(capsys, tmp_path, *options), re.M)

    assert keys("--samples", "5") == keys("--samples", "5") != keys("--samples", "5", "--seed", "1")
    assert len(set(keys("--samples", "5"))) == 5 and len(keys("--samples", "99")) == 36
    assert keys("--samples", "13", "--seed", "-1") == [*(f"0s{i:02d}" for i in range(12)), "1s00"]


class Page(HTMLParser):
    """Tags, sources of pictures and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.pictures: list[Image.Image] = []
        self.texts = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attributes:
            assert not name.startswith("on") and name != "href"
            if name == "src":
                data = (value or "").removeprefix("data:image/png;base64,")
                self.pictures.append(Image.open(io.BytesIO(base64.b64decode(data, validate=True))))

    def handle_data(self, data: str) -> None:
        self.texts += data


def test_the_page_shows_all_and_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sheet.html"
    assert str(out) in show(capsys, mixed(tmp_path), "--out", out)
    page = Page(out.read_text())
    assert set(page.tags) <= {"html", "head", "meta", "title", "style", "body", "h1", "main"} | {
        *("figure", "figcaption", "img", "div", "small")
    }
    assert page.tags.count("figure") == 4
    assert [picture.size for picture in page.pictures] == [(224, 224), (224, 224)]
    assert ATTACK[:50] in page.texts and "a beep" in page.texts and "<b>" in page.texts
    assert "png: cannot be decoded" in page.texts
    assert "default-src 'none'" in out.read_text()


def test_the_picture_has_a_cell_for_each_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sheet.png"
    show(capsys, write(samples())(tmp_path), "--samples", "6", "--seed", "-1", "--out", out)
    sheet = np.asarray(Image.open(out).convert("RGB"))
    assert sheet.shape == (2 * (224 + 14 * 6 + 24) + 12, 4 * 236 + 12, 3)
    first = np.asarray(Image.open(io.BytesIO(jpeg(0))))
    assert np.array_equal(sheet[12 : 12 + 4 * 48 : 4, 12 : 12 + 4 * 48 : 4], first)
    assert (sheet[240:320, 12:200] < 128).any(), "no text below the picture"
    assert (sheet[350:, 500:] == 255).all(), "the last two cells are empty"


def test_a_spectrogram_tells_high_from_low() -> None:
    times = np.arange(16000, dtype=np.float32) / 8000
    for pitch, row in ((500, 196), (3500, 28)):
        image = np.asarray(spectrogram(Audio(np.sin(2 * np.pi * pitch * times), 8000)).convert("L"), np.int64)
        assert abs(int(image.sum(axis=1).argmax()) - row) < 4
    assert spectrogram(Audio(np.ones(3, np.float32), 8000)).size == (224, 224)
    assert spectrogram(Audio(np.zeros(900_000, np.float32), 8000)).size == (224, 224)
