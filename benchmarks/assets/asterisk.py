"""Asterisk's core sounds: telephone prompts, one professional speaker a language, with their transcripts."""

from __future__ import annotations

import gzip
import io
import re
import wave
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mmcl.assets import Asset, Package
from mmcl.benchmarks.assets.common import only, split_of, write_json, write_splits
from mmcl.errors import RunError

VOICES = {"en": "en_US_f_Allison", "es": "es_MX_f_Allison", "fr": "fr_CA_f_June"}
TEST = 0.2
SHORTEST, LONGEST = 0.3, 30.0
"""Seconds outside which a clip is left out; Whisper hears 30."""

_WHOLLY_BRACKETED = re.compile(r"[\[(<].*[\])>]")
_NOTE = re.compile(r"\s*[\[(<][^\[\](<>)]*[\])>]$")


@dataclass(frozen=True)
class Clip:
    """One prompt in one language."""

    key: str  # the same in every language
    text: str
    wav: bytes
    seconds: float


def build_asterisk(unpacked: Mapping[str, Path], out: Path) -> None:
    """Write ``LANGUAGE-train.tar``, ``LANGUAGE-test.tar`` (wav, txt, json) and ``summary.json``.

    A prompt is on one side in all languages, and so are prompts that have the same words in some language.

    Args:
        unpacked: the folders of ``asterisk-core-sounds-XX`` and ``...-XX-wav``.
        out: folder to fill.

    Raises:
        RunError: a transcript or a recording is not what the package had.
    """
    clips: dict[str, list[Clip]] = {}
    skipped: dict[str, Counter[str]] = {}
    for language, voice in VOICES.items():
        name = f"asterisk-core-sounds-{language}"
        texts = only(unpacked[name], f"usr/share/doc/{name}/core-sounds-{language}.txt.gz")
        sounds = only(unpacked[f"{name}-wav"], f"usr/share/asterisk/sounds/{voice}")
        clips[language], skipped[language] = _read(texts, sounds)
    groups = _groups(clips)
    summary = {}
    for language, found in clips.items():
        sides: dict[str, list[Clip]] = {"train": [], "test": []}
        for clip in found:
            sides[split_of(groups[clip.key], TEST)].append(clip)
        counts = write_splits(
            out,
            f"{language}-",
            {
                split: (
                    {
                        "__key__": f"{language}/{clip.key}",
                        "wav": clip.wav,
                        "txt": clip.text,
                        "json": {"language": language, "seconds": round(clip.seconds, 3)},
                    }
                    for clip in side
                )
                for split, side in sides.items()
            },
        )
        seconds = {split: round(sum(c.seconds for c in side), 1) for split, side in sides.items()}
        summary[language] = {"clips": counts, "seconds": seconds, "skipped": dict(skipped[language])}
    write_json(out / "summary.json", summary)


def _read(texts: Path, sounds: Path) -> tuple[list[Clip], Counter[str]]:
    try:
        lines = gzip.decompress(texts.read_bytes()).decode().splitlines()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise RunError(f"{texts.name} is damaged: {error}") from error
    clips: dict[str, Clip] = {}
    skipped: Counter[str] = Counter()
    for line in map(str.strip, lines):
        if not line or line.startswith(";"):
            continue
        key, _, text = (part.strip() for part in line.partition(":"))
        file = sounds / f"{key}.wav"
        if key in clips:
            skipped["listed twice"] += 1
        elif _WHOLLY_BRACKETED.fullmatch(text):
            skipped["a sound, not words"] += 1
        elif not any(letter.isalpha() for letter in text):
            skipped["no letters"] += 1
        elif not file.is_file():
            skipped["no recording"] += 1
        else:
            clip = _clip(key, text, file)
            if clip.seconds < SHORTEST:
                skipped[f"under {SHORTEST} s"] += 1
            elif clip.seconds > LONGEST:
                skipped[f"over {LONGEST:.0f} s"] += 1
            else:
                clips[key] = clip
    return list(clips.values()), skipped


def _clip(key: str, text: str, file: Path) -> Clip:
    data = file.read_bytes()
    try:
        with wave.open(io.BytesIO(data)) as audio:
            seconds = audio.getnframes() / audio.getframerate()
    except (wave.Error, EOFError, ZeroDivisionError) as error:
        raise RunError(f"recording '{key}' ({file.name}) is damaged: {error}") from error
    # A remark at the end, as in "dash [-]" and "after the tone. (simple tone sound plays)", is not spoken.
    return Clip(key, " ".join(_NOTE.sub("", text).split()), data, seconds)


def _groups(clips: Mapping[str, Iterable[Clip]]) -> dict[str, str]:
    """Key -> the first key, by name, of those that share their words with it."""
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while parent.setdefault(key, key) != key:
            key = parent[key]
        return key

    for found in clips.values():
        same: dict[str, str] = {}
        for clip in found:
            words = "".join(letter for letter in clip.text.lower() if letter.isalnum())
            one, other = root(clip.key), root(same.setdefault(words, clip.key))
            parent[max(one, other)] = min(one, other)
    return {key: root(key) for key in parent}


ASTERISK = Asset(
    name="asterisk",
    title="speech with transcripts: telephone prompts in English, Spanish and French, 8 kHz",
    licence="CC-BY-SA-3.0",
    source="Digium; voices of Allison Smith and June Wallack",
    megabytes=60.6,
    packages=tuple(
        Package("apt", f"asterisk-core-sounds-{name}", "1.6.1-1", sha256)
        for name, sha256 in {
            "en": "973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50",
            "en-wav": "2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d",
            "es": "9afdab7f559f036649fb406e625899306ca1004df8ebe39c30bfbd5912d66f74",
            "es-wav": "9283a09a6d56fccdcc2bcfe86c48f0f844289cfbd46a3184d8785a6f7f569903",
            "fr": "04c82c78c570c43a7136cbc5e2488d0c470b775468dff9fbce4a131b18cf1056",
            "fr-wav": "8d4e1bc32ed5ba7fbda40841ca1825ed20cc6232724a473c90f8bb0e53e6073e",
        }.items()
    ),
    build=build_asterisk,
    use="speech recognition and audio-text",
)
