"""Build the pocket benchmark's data from the four npm archives that it comes from.

    npm pack emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0 @lobehub/fluent-emoji-3d@1.1.0 \
        emojibase-data@17.0.0
    python -m mmcl.benchmarks.pocket.build --raw . --out benchmarks/pocket

The same archives and the same Pillow give the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import sys
import tarfile
import zlib
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from mmcl.errors import ConfigError

SIZE = 48
QUALITY = 90
TEMPLATES = ("{}", "an emoji of {}", "a picture of {}", "an icon of {}", "a drawing of {}")
COMPONENT = 2  # emojibase's group of skin tones and hair, which are not pictures of anything


@dataclass(frozen=True)
class Archive:
    """One npm archive: its file name, SHA-256 and the files in it that are used (group 1 is the picture's hexcode)."""

    file: str
    sha256: str
    pattern: str


ARCHIVES = {
    "google": Archive(
        "emoji-datasource-google-16.0.0.tgz",
        "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
        r"package/img/google/64/([0-9a-f-]+)\.png",
    ),
    "twitter": Archive(
        "emoji-datasource-twitter-16.0.0.tgz",
        "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
        r"package/img/twitter/64/([0-9a-f-]+)\.png",
    ),
    "fluent": Archive(
        "lobehub-fluent-emoji-3d-1.1.0.tgz",
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        r"package/assets/([0-9a-f-]+)\.webp",
    ),
    "names": Archive(
        "emojibase-data-17.0.0.tgz",
        "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
        r"package/(en/data|meta/groups)\.json",
    ),
}
STYLES = ("google", "fluent", "twitter")


def concept_of(hexcode: str) -> str:
    """One spelling for all vendors: lower case, without the variation selector and leading zeros."""
    return hexcode.lower().replace("-fe0f", "").lstrip("0")


def caption_of(key: str, label: str) -> str:
    """The sample's caption: its label in a template that the key picks, the same on every machine."""
    return TEMPLATES[zlib.crc32(key.encode()) % len(TEMPLATES)].format(label)


def read_archive(raw: Path, archive: Archive) -> dict[str, bytes]:
    """The archive's wanted files by the first group of its pattern.

    Raises:
        ConfigError: the archive is missing or is not the one that this module was written for.
    """
    path = raw / archive.file
    if not path.is_file():
        raise ConfigError(f"{path} is missing; fetch it with `npm pack`, as the head of this module shows")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != archive.sha256:
        raise ConfigError(f"{path} has SHA-256 {digest}, expected {archive.sha256}; fetch it again")
    found: dict[str, bytes] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            match = re.fullmatch(archive.pattern, member.name)
            handle = tar.extractfile(member) if match else None
            if match and handle is not None:
                found[match.group(1)] = handle.read()
    return found


def read_concepts(files: Mapping[str, bytes], drawn: Mapping[str, Set[str]]) -> dict[str, list[dict[str, Any]]]:
    """Per group the concepts that some style draws, in Unicode's order: hexcode, label, kind, tags, styles without it.

    Args:
        files: emojibase's files.
        drawn: style -> the concepts that it draws.
    """
    meta = json.loads(files["meta/groups"])
    groups, kinds = meta["groups"], meta["subgroups"]
    concepts: dict[str, list[dict[str, Any]]] = {}
    for entry in sorted(json.loads(files["en/data"]), key=lambda e: e.get("order", 0)):
        missing = [style for style, known in drawn.items() if concept_of(entry["hexcode"]) not in known]
        if entry.get("group") in (None, COMPONENT) or len(missing) == len(drawn):
            continue
        code = entry["hexcode"].lower().replace("-fe0f", "")
        kind = kinds[str(entry["subgroup"])].replace("-", " ")
        record = {"hexcode": code, "label": entry["label"], "kind": kind, "tags": entry.get("tags", [])}
        if missing:
            record["missing"] = missing
        concepts.setdefault(groups[str(entry["group"])], []).append(record)
    return concepts


def encode(picture: bytes) -> bytes:
    """The picture on white, 48 x 48, as WebP."""
    image = Image.open(io.BytesIO(picture)).convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    small = Image.alpha_composite(white, image).convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    small.save(out, format="WEBP", quality=QUALITY, method=6)
    return out.getvalue()


def write_sample(style: str, record: Mapping[str, Any], label: int, picture: bytes) -> list[tuple[str, bytes]]:
    """Members of one sample: picture, caption, class."""
    key = f"{style}-{record['hexcode']}"
    return [
        (f"{key}.webp", encode(picture)),
        (f"{key}.txt", caption_of(key, record["label"]).encode()),
        (f"{key}.cls", str(label).encode()),
    ]


def write_shard(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """A tar whose bytes depend on names and contents alone."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def build(raw: Path, out: Path) -> dict[str, int]:
    """Write `data/STYLE-GROUP.tar` for 3 styles and 9 groups, `classes.json` and `templates.json`.

    Args:
        raw: folder of the four archives.
        out: folder to write into.

    Returns:
        Samples by shard name.
    """
    names = read_archive(raw, ARCHIVES["names"])
    pictures: dict[str, dict[str, bytes]] = {}
    for style in STYLES:
        pictures[style] = {}
        for code, data in sorted(read_archive(raw, ARCHIVES[style]).items()):
            pictures[style].setdefault(concept_of(code), data)
    concepts = read_concepts(names, {style: pictures[style].keys() for style in STYLES})
    data_dir = out / "data"
    data_dir.mkdir(parents=True, exist_ok=True)
    counts: dict[str, int] = {}
    for style in STYLES:
        for group, records in concepts.items():
            members: list[tuple[str, bytes]] = []
            for label, record in enumerate(records):
                picture = pictures[style].get(concept_of(record["hexcode"]))
                if picture is not None:
                    members += write_sample(style, record, label, picture)
                    counts[f"{style}-{group}"] = counts.get(f"{style}-{group}", 0) + 1
            write_shard(data_dir / f"{style}-{group}.tar", members)
    lines = ",\n".join(
        f" {json.dumps(group)}: [\n"
        + ",\n".join("  " + json.dumps(record, ensure_ascii=False) for record in records)
        + "\n ]"
        for group, records in concepts.items()
    )
    (out / "classes.json").write_text("{\n" + lines + "\n}\n", encoding="utf-8")
    (out / "templates.json").write_text(json.dumps(TEMPLATES, indent=1) + "\n", encoding="utf-8")
    return counts


def main() -> int:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description="Build the pocket benchmark's data.")
    parser.add_argument("--raw", type=Path, required=True, help="folder of the four npm archives")
    parser.add_argument("--out", type=Path, required=True, help="folder to write data/ and the JSON files into")
    args = parser.parse_args()
    try:
        counts = build(args.raw, args.out)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    for name, count in counts.items():
        print(f"{name:32} {count}")
    print(f"{'total':32} {sum(counts.values())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
