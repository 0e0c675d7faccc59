"""Fish Fillets: acted dialogue of a game in Czech and Dutch, with transcripts and an English translation."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from mmcl.assets import Asset, Package
from mmcl.benchmarks.assets.common import Sample, only, split_of, write_json, write_splits
from mmcl.errors import RunError

LANGUAGES = ("cs", "nl")
TEST = 0.2
SHORTEST, LONGEST = 0.3, 30.0
"""Seconds outside which a clip is left out; Whisper hears 30."""

_STRING = r'"((?:[^"\\]|\\.)*)"'
_LINE = re.compile(rf"dialogId\({_STRING},\s*{_STRING},\s*{_STRING}\)\s*dialogStr\({_STRING}\)")
_ESCAPE = re.compile(r"\\(.)")


class Line(NamedTuple):
    """One line of a dialogue: its level and name, who says it, the words and their English translation."""

    level: str
    name: str
    voice: str
    english: str
    text: str


def build_fish_fillets(unpacked: Mapping[str, Path], out: Path) -> None:
    """Write ``LANGUAGE-train.tar``, ``LANGUAGE-test.tar`` (ogg, txt, json) and ``summary.json``.

    A level is on one side in both languages, since its lines answer one another. The json holds ``language``, ``voice``
    (the game's name of the character), ``english`` and ``seconds``. Words that are not spoken (empty lines) and clips
    that are too short or too long are left out and counted.

    Args:
        unpacked: the folders of ``fillets-ng-data``, ``fillets-ng-data-cs`` and ``fillets-ng-data-nl``.
        out: folder to fill.

    Raises:
        RunError: a script or a recording is not what the packages had.
    """
    scripts = only(unpacked["fillets-ng-data"], "usr/share/games/fillets-ng/script")
    summary = {}
    for language in LANGUAGES:
        sounds = only(unpacked[f"fillets-ng-data-{language}"], "usr/share/games/fillets-ng/sound")
        skipped: Counter[str] = Counter()
        sides: dict[str, list[Sample]] = {"train": [], "test": []}
        seconds = {"train": 0.0, "test": 0.0}
        for line in _lines(scripts, language):
            file = sounds / line.level / language / f"{line.name}.ogg"
            if not any(letter.isalpha() for letter in line.text):
                skipped["no letters"] += 1
            elif not file.is_file():
                skipped["no recording"] += 1
            elif (length := _seconds(file, line)) < SHORTEST:
                skipped[f"under {SHORTEST} s"] += 1
            elif length > LONGEST:
                skipped[f"over {LONGEST:.0f} s"] += 1
            else:
                split = split_of(line.level, TEST)
                sides[split].append(_sample(language, line, file, length))
                seconds[split] += length
        counts = write_splits(out, f"{language}-", sides)
        lengths = {split: round(total, 1) for split, total in seconds.items()}
        summary[language] = {"clips": counts, "seconds": lengths, "skipped": dict(skipped)}
    write_json(out / "summary.json", summary)


def _lines(scripts: Path, language: str) -> Iterator[Line]:
    """The lines of all levels; of two with one name in a level the first."""
    for file in sorted(scripts.rglob(f"dialogs_{language}.lua")):
        level, seen = file.parent.relative_to(scripts).as_posix(), set()
        try:
            script = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise RunError(f"script '{level}/{file.name}' is damaged: {error}") from error
        for match in _LINE.finditer(script):
            name, voice, english, text = (_ESCAPE.sub(r"\1", part) for part in match.groups())
            if name not in seen:
                seen.add(name)
                yield Line(level, name, voice.removeprefix("font_"), english, " ".join(text.split()))


def _seconds(file: Path, line: Line) -> float:
    import soundfile

    try:
        found = soundfile.info(io.BytesIO(file.read_bytes()))
    except soundfile.LibsndfileError as error:
        raise RunError(f"recording '{line.level}/{line.name}' ({file.name}) is damaged: {error}") from error
    return float(found.duration)


def _sample(language: str, line: Line, file: Path, seconds: float) -> Sample:
    told = {"language": language, "voice": line.voice, "english": line.english, "seconds": round(seconds, 3)}
    key = f"{language}/{line.level}/{line.name}".replace(".", "_")
    return {"__key__": key, "ogg": file.read_bytes(), "txt": line.text, "json": told}


FISH_FILLETS = Asset(
    name="fish-fillets",
    title="speech with transcripts: acted dialogue in Czech and Dutch, each line with its English translation",
    licence="GPL-2",
    source="ALTAR interactive and the makers of Fish Fillets - Next Generation; from Debian packages",
    megabytes=142.3,
    packages=tuple(
        Package("apt", name, "1.0.1-1.1", sha256)
        for name, sha256 in {
            "fillets-ng-data": "25de89afd8b1adf7bcace8290248a6a22c89cd42300317e69000e162c032cf84",
            "fillets-ng-data-cs": "3ecef99b9456f1c80c9625c6f2418642b52d58e7167a46bad7a412db17991b14",
            "fillets-ng-data-nl": "afb4443fda9ab507dee578b75be857d121718a1cd6017a474f30e0eb13dc9d10",
        }.items()
    ),
    build=build_fish_fillets,
    use="speech recognition and translation",
)
