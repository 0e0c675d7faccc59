"""The pocket stream of pretraining on speech: a small wav2vec 2.0 from random weights, and telephone prompts.

English is the language that the model is pretrained on; it then continues on Spanish and French. Each language is one
speaker's recordings, so a change of task is a change of language and of voice (English and Spanish share theirs).
"""

from __future__ import annotations

from collections.abc import Sequence

from mmcl import assets
from mmcl.errors import ConfigError, near
from mmcl.stream import HELD_OUT, Budget, EvalSet, Source, Stream, Task

MODEL = "package:mmcl.benchmarks/models/pocket-wav2vec"
"""The configuration of the model: 2.6 million weights, 8 kHz, 50 frames a second."""
LANGUAGES = ("en", "es", "fr")
STEPS = 90
PRETRAINING = 500
PROTOCOL = (
    "Recordings of the `asterisk` asset at 8 kHz: English, then Spanish, then French. A column is the pretraining loss "
    "(contrast and diversity for one masked frame) on the test recordings of a language, whose prompts no language "
    "trains, with masks and distractors that stay the same; lower is better. No transcript is read. Row 0 is a model "
    "with random weights."
)


def pocket_wav2vec(languages: Sequence[str] = LANGUAGES, pretraining: int = PRETRAINING, steps: int = STEPS) -> Stream:
    """Pretraining on English, continued on Spanish and then French.

    Args:
        languages: to train on, in order. The columns stay the same; those of languages that are left out are held out.
        pretraining: optimizer steps on English.
        steps: optimizer steps on each of the others.

    Raises:
        ConfigError: a language is not among the three, or the asset ``asterisk`` was not fetched.
    """
    for language in languages:
        if language not in LANGUAGES:
            raise ConfigError(f"pocket_wav2vec: there is no language '{language}'; {near(language, LANGUAGES)}")
    tasks = [
        Task(
            name=language,
            train=[_source(language, "train")],
            budget=Budget(steps=pretraining if language == "en" else steps),
            evaluates=language,
            language=language,
        )
        for language in languages
    ]
    columns = [
        EvalSet(language, _source(language, "test"), "objective", group="task" if language in languages else HELD_OUT)
        for language in LANGUAGES
    ]
    return Stream("pocket_wav2vec", tasks, columns, protocol=PROTOCOL)


def _source(language: str, split: str) -> Source:
    shard = assets.folder("asterisk") / f"{language}-{split}.tar"
    return Source([str(shard)], name=f"{language}-{split}", augment=split == "train", fields={"audio": ("wav",)})
