"""Emoji in three drawing styles with names in eleven languages, larger than those that mmcl carries itself."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from mmcl.assets import Asset, Package
from mmcl.benchmarks.assets.common import QUALITY, Sample, only, split_of, write_json, write_splits
from mmcl.errors import RunError

TEST = 0.2
COMPONENT = 2
"""emojibase's group of skin tones and hair, which are not pictures of anything."""
PICTURES = {
    "google": ("emoji-datasource-google", "package/img/google/64", ".png"),
    "twitter": ("emoji-datasource-twitter", "package/img/twitter/64", ".png"),
    "fluent": ("@lobehub/fluent-emoji-3d", "package/assets", ".webp"),
}
"""Style -> package, folder and extension of its pictures: 64 x 64 px, 64 x 64 px, 256 x 256 px."""
LANGUAGES = ("de", "es", "fr", "it", "ja", "nl", "pl", "pt", "ru", "zh")


def build_emoji(unpacked: Mapping[str, Path], out: Path) -> None:
    """Write ``STYLE-train.tar``, ``STYLE-test.tar`` (webp, txt, cls, json), ``classes.txt`` (groups), ``summary.json``.

    The text is the English name. An emoji is on the same side in all styles. The json holds ``style``, ``group``,
    ``tags`` and, under ``languages``, the name in eleven languages. Skin tones are left out.

    Args:
        unpacked: the folders of the three packages of pictures and of ``emojibase-data``.
        out: folder to fill.

    Raises:
        RunError: names or pictures are not what the packages had.
    """
    names = only(unpacked["emojibase-data"], "package")
    try:
        groups = json.loads((names / "meta/groups.json").read_text(encoding="utf-8"))["groups"]
        entries = [e for e in _names(names, "en") if e.get("group") not in (None, COMPONENT)]
        classes = sorted({str(groups[str(e["group"])]) for e in entries})
        others = {code: {e["hexcode"]: e["label"] for e in _names(names, code)} for code in LANGUAGES}
        concepts = [_concept(e, groups, others) for e in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"names of emojibase-data are damaged: {type(error).__name__}: {error}") from error
    counts = {}
    for style, (package, place, extension) in PICTURES.items():
        files = {_code(f.stem): f for f in sorted(only(unpacked[package], place).glob(f"*{extension}"))}
        sides: dict[str, list[Sample]] = {"train": [], "test": []}
        for concept in concepts:
            if concept["code"] in files:
                sides[split_of(concept["code"], TEST)].append(_sample(style, concept, files[concept["code"]], classes))
        counts[style] = write_splits(out, f"{style}-", sides)
    (out / "classes.txt").write_text("\n".join(classes) + "\n", encoding="utf-8")
    write_json(out / "summary.json", {"emoji": len(concepts), "pictures": counts})


def _names(folder: Path, language: str) -> Iterator[dict[str, Any]]:
    found = json.loads((folder / language / "data.json").read_text(encoding="utf-8"))
    return iter(sorted(found, key=lambda entry: entry.get("order", 0)))


def _concept(entry: Mapping[str, Any], groups: Mapping[str, str], others: Mapping[str, Mapping[str, str]]) -> Sample:
    languages = {"en": str(entry["label"]), **{code: names[entry["hexcode"]] for code, names in others.items()}}
    group = groups[str(entry["group"])]
    return {
        "code": _code(entry["hexcode"]),
        "group": group,
        "tags": list(entry.get("tags", ())),
        "languages": languages,
    }


def _code(hexcode: str) -> str:
    """One spelling for all vendors: lower case, without the variation selector and leading zeros."""
    return hexcode.lower().replace("-fe0f", "").lstrip("0")


def _sample(style: str, concept: Mapping[str, Any], picture: Path, classes: list[str]) -> Sample:
    try:
        webp = _on_white(picture.read_bytes())
    except (OSError, ValueError, SyntaxError, struct.error) as error:
        raise RunError(f"picture '{style}/{picture.name}' is damaged: {error}") from error
    kept = {key: value for key, value in concept.items() if key != "code"}
    return {
        "__key__": f"{style}/{concept['code']}",
        "webp": webp,
        "txt": concept["languages"]["en"],
        "cls": classes.index(concept["group"]),
        "json": {"style": style, **kept},
    }


def _on_white(data: bytes) -> bytes:
    """The picture in its own size as WebP."""
    from PIL import Image

    image = Image.open(BytesIO(data), formats=("PNG", "WEBP")).convert("RGBA")
    out = BytesIO()
    flat = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    flat.save(out, "WEBP", quality=QUALITY, method=4)
    return out.getvalue()


EMOJI = Asset(
    name="emoji",
    title="pictures with captions: 1,900 emoji in three drawing styles, nine groups, names in 11 languages",
    licence="Apache-2.0 (google), CC-BY-4.0 (twitter), MIT (fluent, names)",
    source="Google (Noto Emoji), Twitter (Twemoji), Microsoft (Fluent Emoji), emojibase; from npm packages",
    megabytes=158.5,
    packages=tuple(
        Package("npm", name, version, sha256)
        for name, version, sha256 in (
            ("emoji-datasource-google", "16.0.0", "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438"),
            ("emoji-datasource-twitter", "16.0.0", "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877"),
            ("@lobehub/fluent-emoji-3d", "1.1.0", "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58"),
            ("emojibase-data", "17.0.0", "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a"),
        )
    ),
    build=build_emoji,
    use="contrastive training and captioning",
)
