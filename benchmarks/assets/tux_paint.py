"""Tux Paint's stamps: photographs and drawings with captions in up to 78 languages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mmcl.assets import Asset, Package
from mmcl.benchmarks.assets.common import Sample, only, small_picture, split_of, write_json, write_splits
from mmcl.errors import RunError

TEST = 0.2
LANGUAGES = ("de", "es", "fr", "it", "ja", "nl", "pl", "pt", "ru", "zh_CN")


def build_tux_paint(unpacked: Mapping[str, Path], out: Path) -> None:
    """Write ``train.tar``, ``test.tar`` (webp, txt, cls, json), ``classes.txt`` (the categories) and ``summary.json``.

    The text is the English caption without its full stop. Pictures with the same caption are on the same side.
    The json holds the ``category`` and, under ``languages``, the caption in some languages.

    Args:
        unpacked: the folder of ``tuxpaint-stamps-default``.
        out: folder to fill.

    Raises:
        RunError: a caption or a picture is not what the package had.
    """
    root = only(unpacked["tuxpaint-stamps-default"], "usr/share/tuxpaint/stamps")
    categories = sorted(folder.name for folder in root.iterdir() if folder.is_dir())
    sides: dict[str, list[Sample]] = {"train": [], "test": []}
    skipped = {"no English caption": 0, "no PNG picture": 0}
    for file in sorted(root.rglob("*.txt")):
        captions = _captions(file, root)
        if not captions["en"]:
            skipped["no English caption"] += 1
            continue
        picture = file.with_suffix(".png")
        if not picture.is_file():  # some are drawn as SVG alone
            skipped["no PNG picture"] += 1
            continue
        name = file.relative_to(root).with_suffix("").as_posix()
        try:
            webp = small_picture(picture.read_bytes())
        except ValueError as error:
            raise RunError(f"picture '{name}' is damaged: {error}") from error
        category = name.partition("/")[0]
        sides[split_of(captions["en"].lower(), TEST)].append(
            {
                "__key__": name.replace(".", "_"),
                "webp": webp,
                "txt": captions["en"],
                "cls": categories.index(category),
                "json": {"category": category, "languages": captions},
            }
        )
    counts = write_splits(out, "", sides)
    (out / "classes.txt").write_text("\n".join(categories) + "\n", encoding="utf-8")
    write_json(out / "summary.json", {"pictures": counts, "skipped": skipped})


def _captions(file: Path, root: Path) -> dict[str, str]:
    """Language -> caption; English stands alone in the first line, others as ``LANG.utf8=caption``."""
    try:
        first, *others = file.read_text(encoding="utf-8").splitlines() or [""]
    except UnicodeDecodeError as error:
        raise RunError(f"caption '{file.relative_to(root).as_posix()}' is damaged: {error}") from error
    found = {"en": first.strip().removesuffix(".")}
    for line in others:
        language, mark, text = line.partition(".utf8=")
        if mark and language in LANGUAGES and text.strip():
            found[language] = text.strip()
    return found


TUX_PAINT = Asset(
    name="tux-paint",
    title="pictures with captions: Tux Paint's stamps, many of them photographs; captions in 11 languages",
    licence="GPL-2",
    source="the Tux Paint team and the artists that its changelog names",
    megabytes=160.9,
    packages=(
        Package(
            "apt",
            "tuxpaint-stamps-default",
            "2022.06.04-1",
            "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
        ),
    ),
    build=build_tux_paint,
    use="contrastive training and captioning",
)
