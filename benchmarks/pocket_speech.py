"""Pocket streams of speech recognition: Asterisk's telephone prompts, one professional speaker a language."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mmcl import assets
from mmcl.errors import ConfigError, near
from mmcl.stream import HELD_OUT, Budget, EvalSet, Source, Stream, Task

LANGUAGES = ("en", "es", "fr")
LONGEST = 8.0
"""Seconds of the longest clip that is used."""
LONGEST_CTC = 5.0
"""The same where the network learns a new head: it needs more steps, and shorter ones are cheaper."""
CLIPS = 48
"""Clips of an evaluation set."""
SUBSET = 12
MAX_NEW_TOKENS = 48
_BYTES_A_SECOND = 2 * 8_000  # 16 bits, 8 kHz, one channel
_SELECTION = (
    "Asterisk's core sounds, 8 kHz, clips of at most {longest:g} s whose transcripts hold no digits; the test clips "
    "of a column are up to {clips} with two words or more, the same in every run. A prompt is on one side in all "
    "languages. WER pooled over a column's words."
)
PROTOCOL = _SELECTION.format(longest=LONGEST, clips=CLIPS) + (
    " Whisper tiny.en, which was pretrained on English alone, learns Spanish, then French; column en is "
    "trained by no task and measures what is retained."
)
CTC_PROTOCOL = _SELECTION.format(longest=LONGEST_CTC, clips=CLIPS) + (
    " A new CTC head on the encoder of Whisper tiny.en learns English, Spanish, then French; a task "
    "appends the letters that its language brings. Before the first task the head is random and the rates mean nothing."
)


@dataclass(frozen=True)
class Clip:
    """What is known of a clip without its sound."""

    key: str
    text: str
    seconds: float


def pocket_speech(seed: int | None = None, steps: int = 40, languages: Sequence[str] = ("es", "fr")) -> Stream:
    """Spanish, then French, for a recogniser that knows English.

    Args:
        seed: nothing depends on it: clips are on one side for good.
        steps: optimizer steps of each task.
        languages: of the tasks, in order.

    Raises:
        ConfigError: a language without data, or the data are not fetched.
    """
    columns = [_column("en", HELD_OUT, LONGEST)]
    columns += [_column(name, "trained", LONGEST) for name in languages if name != "en"]
    return Stream("pocket_speech", [_task(name, steps, LONGEST) for name in languages], columns, protocol=PROTOCOL)


def pocket_speech_ctc(seed: int | None = None, steps: int = 120, languages: Sequence[str] = LANGUAGES) -> Stream:
    """English, Spanish, French, for a recogniser whose alphabet grows.

    Args:
        seed: nothing depends on it: clips are on one side for good.
        steps: optimizer steps of each task.
        languages: of the tasks, in order.

    Raises:
        ConfigError: a language without data, or the data are not fetched.
    """
    columns = [_column(name, "trained", LONGEST_CTC) for name in languages]
    tasks = [_task(name, steps, LONGEST_CTC) for name in languages]
    return Stream("pocket_speech_ctc", tasks, columns, protocol=CTC_PROTOCOL)


def _task(language: str, steps: int, longest: float) -> Task:
    keys = [clip.key for clip in _usable(language, "train", longest)]
    source = Source([str(_shard(language, "train"))], keys=keys)
    return Task(language, [source], Budget(steps=steps), evaluates=language, language=language, domain=language)


def _column(language: str, group: str, longest: float) -> EvalSet:
    usable = [clip for clip in _usable(language, "test", longest) if len(clip.text.split()) > 1]
    chosen = sorted(usable, key=lambda clip: zlib.crc32(clip.key.encode()))[:CLIPS]
    source = Source([str(_shard(language, "test"))], keys=sorted(clip.key for clip in chosen), augment=False)
    options = {"max_new_tokens": MAX_NEW_TOKENS, "language": language}
    return EvalSet(language, source, "error_rate", group=group, options=options, subset=SUBSET)


def _usable(language: str, split: str, longest: float) -> list[Clip]:
    clips = _clips(_shard(language, split))
    return [c for c in clips if c.seconds <= longest and not any(letter.isdigit() for letter in c.text)]


def _shard(language: str, split: str) -> Path:
    if language not in LANGUAGES:
        raise ConfigError(f"pocket_speech: there is no speech in '{language}'; {near(language, LANGUAGES)}")
    return assets.folder("asterisk") / f"{language}-{split}.tar"


@cache
def _clips(shard: Path) -> list[Clip]:
    """Keys, transcripts and lengths, by the sizes of the recordings."""
    texts: dict[str, str] = {}
    seconds: dict[str, float] = {}
    with tarfile.open(shard) as tar:
        for member in tar:
            key, _, extension = member.name.partition(".")
            if extension == "wav":
                seconds[key] = member.size / _BYTES_A_SECOND
            elif extension == "txt":
                content = tar.extractfile(member)
                assert content is not None
                texts[key] = content.read().decode()
    return [Clip(key, text, seconds[key]) for key, text in texts.items()]
