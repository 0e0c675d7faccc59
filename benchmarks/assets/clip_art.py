"""Open Clip Art: drawings whose SVG files carry a title and keywords, and their PNG twins."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmcl.assets import Asset, Package
from mmcl.benchmarks.assets.common import Sample, only, small_picture, split_of, write_json, write_splits
from mmcl.errors import RunError

TEST = 0.1
LEFT_OUT = (
    "shapes/stars",
    "special/gradients",
    "recreation/games/cards",
    "computer/icons",
    "signs_and_symbols/flags",
)
"""Folders of near-equal or meaningless pictures."""
SERIES = 12
"""A title that more pictures have is the name of a series."""
LARGEST_FILE = 3_000_000
KEYWORDS = 3

_JUNK = re.compile(r"hash|unsorted|openclipart|clip ?art|\(0x")


@dataclass(frozen=True)
class Drawing:
    """What an SVG file says of itself; `name` is its path without the extension."""

    name: str
    title: str
    keywords: tuple[str, ...]


def build_clip_art(unpacked: Mapping[str, Path], out: Path) -> None:
    """Write ``train.tar``, ``test.tar`` (webp, txt, cls, json), ``classes.txt`` (categories) and ``summary.json``.

    The text is the title and up to three keywords. Pictures with the same title are on the same side. The json holds
    ``title``, ``category`` and ``keywords``.

    Args:
        unpacked: the folders of ``openclipart-png`` and ``openclipart-svg``.
        out: folder to fill.

    Raises:
        RunError: an SVG file is not what the package had.
    """
    svg = only(unpacked["openclipart-svg"], "usr/share/openclipart/svg")
    png = only(unpacked["openclipart-png"], "usr/share/openclipart/png")
    drawings = [
        _drawing(file, file.relative_to(svg).with_suffix("").as_posix())
        for file in sorted(svg.rglob("*.svg"))
        if not file.relative_to(svg).as_posix().startswith(LEFT_OUT)
    ]
    uses = Counter(drawing.title for drawing in drawings)
    categories = sorted({drawing.name.partition("/")[0] for drawing in drawings})
    sides: dict[str, list[Sample]] = {"train": [], "test": []}
    skipped: Counter[str] = Counter()
    for drawing in drawings:
        title = _title(drawing, uses[drawing.title])
        file = png / f"{drawing.name}.png"
        if sum(letter.isalpha() for letter in title) < 3:
            skipped["no title"] += 1
        elif not file.is_file() or file.stat().st_size > LARGEST_FILE:
            skipped["no PNG picture, or too large a file"] += 1
        else:
            try:
                webp = small_picture(file.read_bytes())
            except ValueError:  # a few of the package do not open
                skipped["unreadable or too many pixels"] += 1
                continue
            sides[split_of(title.lower(), TEST)].append(_sample(drawing, title, webp, categories))
    counts = write_splits(out, "", sides)
    (out / "classes.txt").write_text("\n".join(categories) + "\n", encoding="utf-8")
    write_json(out / "summary.json", {"pictures": counts, "skipped": dict(skipped)})


def _sample(drawing: Drawing, title: str, webp: bytes, categories: Sequence[str]) -> Sample:
    category = drawing.name.partition("/")[0]
    keywords = [word for word in drawing.keywords if word not in title.lower()]
    return {
        "__key__": drawing.name.replace(".", "_"),
        "webp": webp,
        "txt": ", ".join([title, *keywords[:KEYWORDS]]),
        "cls": categories.index(category),
        "json": {"title": title, "category": category, "keywords": list(drawing.keywords)},
    }


def _drawing(file: Path, name: str) -> Drawing:
    """Read the metadata, which come before the drawing."""
    title, keywords = "", []
    try:
        for _, element in ET.iterparse(file):
            if not isinstance(element.tag, str) or not element.tag.endswith("}Work"):
                continue
            for part in element:
                if part.tag.endswith("}title"):
                    title = " ".join((part.text or "").split())
                elif part.tag.endswith("}subject"):
                    keywords = [(item.text or "").strip() for item in part.iter() if item.tag.endswith("}li")]
            break
    except ET.ParseError as error:
        raise RunError(f"drawing '{name}.svg' is damaged: {error}") from error
    plain = (word.lower().replace("_", " ") for word in keywords if word)
    return Drawing(name, title, tuple(dict.fromkeys(word for word in plain if not _JUNK.search(word))))


def _title(drawing: Drawing, uses: int) -> str:
    """The title, or the file's name where the title is that of a series."""
    if drawing.title and uses <= SERIES and not drawing.title.startswith("Clipart by"):
        return drawing.title.replace("_", " ")
    words = re.split(r"[_\W]+", drawing.name.rpartition("/")[2])
    return " ".join(word for word in (re.sub(r"\d+$", "", word) for word in words) if word)


CLIP_ART = Asset(
    name="clip-art",
    title="pictures with captions: drawings of the Open Clip Art Library with title and keywords",
    licence="public domain",
    source="the Open Clip Art Library",
    megabytes=155.8,
    packages=(
        Package(
            "apt",
            "openclipart-png",
            "1:0.18+dfsg-19",
            "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02",
        ),
        Package(
            "apt",
            "openclipart-svg",
            "1:0.18+dfsg-19",
            "989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5",
        ),
    ),
    build=build_clip_art,
    use="contrastive training and captioning",
)
