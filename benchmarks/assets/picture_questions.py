"""Questions and answers about pictures, for models that see and speak: the embedded emoji, and Tux Paint's stamps."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmcl.assets import Asset, folder
from mmcl.benchmarks.assets.common import Sample, rank, read_shard, split_of, write_json, write_splits
from mmcl.errors import RunError

TEST = 0.2
MOST = 200
"""Samples of an emoji task's test splits."""
TRAINED_STYLES = ("google", "fluent")
TESTED_STYLE = "twitter"
GROUPS = {
    "animals-nature": "animals and plants",
    "food-drink": "food and drink",
    "travel-places": "places and vehicles",
    "activities": "activities",
    "objects": "objects",
    "smileys-emotion": "faces",
    "symbols": "symbols",
}
NAMED = ("animals-nature", "food-drink", "travel-places", "activities", "objects")
"""Groups whose names can be told from a picture."""
KINDS = {"naturalforces": "forces of nature", "seasonal": "seasons and feasts", "town": "buildings and towns"}
"""Tux Paint's categories whose folder is no plain word."""
FEWEST = 10
"""Pictures of a category that is asked for."""
LONGEST = 40
"""Characters of a caption that is asked for."""

NAME = "What is this?"
GROUP = f"Which group does it belong to: {', '.join(list(GROUPS.values())[:-1])} or symbols?"
KIND = "What kind of thing does this picture show?"
CAPTION = "What does this picture show?"


@dataclass(frozen=True)
class Stamp:
    """One picture of Tux Paint."""

    key: str
    webp: bytes
    caption: str
    kind: str


def build_picture_questions(unpacked: Mapping[str, Path], out: Path) -> None:
    """Write ``TASK-train.tar``, ``TASK-test.tar`` (webp, json, txt) of four tasks, and ``summary.json``.

    The json holds ``conversations``, a question and its answer, and ``choices``, the answer among wrong ones; the txt
    holds the answer. ``emoji-names`` and ``emoji-groups`` train on Google's and Fluent's drawings and test Twitter's of
    concepts that neither of them trains; ``emoji-names-style.tar`` has Twitter's drawings of trained concepts.
    ``tux-kinds`` and ``tux-captions`` are split like the asset `tux-paint`.

    Args:
        unpacked: empty.
        out: folder to fill.

    Raises:
        ConfigError: `tux-paint` was not fetched.
        RunError: a sample of it is not what the asset writes.
    """
    stamps = {split: _stamps(folder("tux-paint") / f"{split}.tar") for split in ("train", "test")}
    pictures = _emoji()
    counts = {
        "emoji-names": write_splits(out, "emoji-names-", _names(pictures)),
        "emoji-groups": write_splits(out, "emoji-groups-", _groups(pictures)),
        "tux-kinds": write_splits(out, "tux-kinds-", _kinds(stamps)),
        "tux-captions": write_splits(out, "tux-captions-", _captions(stamps)),
    }
    write_json(out / "summary.json", counts)


def _emoji() -> dict[tuple[str, str], bytes]:
    """(style, hexcode) -> picture, of all concepts that are asked for."""
    from mmcl.benchmarks.pocket.concepts import shard

    styles = (*TRAINED_STYLES, TESTED_STYLE)
    shards = [(style, Path(shard(style, group))) for style in styles for group in GROUPS]
    return {
        (style, sample["__key__"].decode().partition("-")[2]): sample["webp"]
        for style, path in shards
        for sample in read_shard(path)
    }


def _concepts(groups: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """(hexcode, name, group) in Unicode's order."""
    from mmcl.benchmarks.pocket.concepts import concepts

    for group in groups:
        yield from ((record["hexcode"], record["label"], group) for record in concepts()[group])


def _names(pictures: Mapping[tuple[str, str], bytes]) -> dict[str, list[Sample]]:
    concepts = list(_concepts(NAMED))
    labels: dict[str, list[str]] = {"train": [], "test": []}
    for code, label, _ in concepts:
        labels[split_of(code, TEST)].append(label)
    found: dict[str, list[Sample]] = {"train": [], "test": [], "style": []}
    for code, label, _ in concepts:
        side = split_of(code, TEST)
        for style in (*TRAINED_STYLES, TESTED_STYLE):
            if (style, code) in pictures and not (side == "test" and style in TRAINED_STYLES):
                split = "style" if side == "train" and style == TESTED_STYLE else side
                key = f"names/{style}-{code}"
                choices = _choices(key, label, labels[side])
                found[split].append(_sample(key, pictures[style, code], NAME, label, choices))
    return {split: samples if split == "train" else _fewer(samples) for split, samples in found.items()}


def _groups(pictures: Mapping[tuple[str, str], bytes]) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = {"train": [], "test": []}
    for code, _, group in _concepts(GROUPS):
        side = split_of(code, TEST)
        style = TRAINED_STYLES[rank(f"style/{code}") < 0.5] if side == "train" else TESTED_STYLE
        if (style, code) in pictures:
            key = f"groups/{style}-{code}"
            found[side].append(_sample(key, pictures[style, code], GROUP, GROUPS[group], list(GROUPS.values())))
    return {"train": found["train"], "test": _fewer(found["test"])}


def _stamps(shard: Path) -> list[Stamp]:
    found = []
    for sample in read_shard(shard):
        try:
            category = json.loads(sample["json"])["category"]
            stamp = Stamp(sample["__key__"].decode(), sample["webp"], sample["txt"].decode(), category)
        except (KeyError, TypeError, ValueError) as error:
            key = sample["__key__"].decode()
            raise RunError(f"{shard.name} of tux-paint: sample '{key}' is damaged: {error}") from error
        found.append(stamp)
    return found


def _kinds(stamps: Mapping[str, Sequence[Stamp]]) -> dict[str, list[Sample]]:
    counts = Counter(stamp.kind for side in stamps.values() for stamp in side)
    asked = sorted(kind for kind, count in counts.items() if count >= FEWEST)
    choices = [KINDS.get(kind, kind) for kind in asked]
    return {
        split: [
            _sample(f"kinds/{stamp.key}", stamp.webp, KIND, KINDS.get(stamp.kind, stamp.kind), choices)
            for stamp in side
            if stamp.kind in asked
        ]
        for split, side in stamps.items()
    }


def _captions(stamps: Mapping[str, Sequence[Stamp]]) -> dict[str, list[Sample]]:
    short = {split: [stamp for stamp in side if len(stamp.caption) <= LONGEST] for split, side in stamps.items()}
    found: dict[str, list[Sample]] = {}
    for split, side in short.items():
        captions = sorted({stamp.caption for stamp in side})
        found[split] = [
            _sample(key := f"captions/{s.key}", s.webp, CAPTION, s.caption, _choices(key, s.caption, captions))
            for s in side
        ]
    return found


def _choices(key: str, answer: str, others: Sequence[str]) -> list[str]:
    """The answer among three of the others, which are of the same split, so that none is better known."""
    dice = random.Random(key)
    wrong = [other for other in others if other.lower() != answer.lower()]
    choices = [answer, *dice.sample(wrong, min(3, len(wrong)))]
    dice.shuffle(choices)
    return choices


def _sample(key: str, webp: bytes, question: str, answer: str, choices: Sequence[str]) -> Sample:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"__key__": key, "webp": webp, "txt": answer, "json": {"conversations": turns, "choices": list(choices)}}


def _fewer(samples: Sequence[Sample]) -> list[Sample]:
    """At most `MOST`, chosen by key, in their order."""
    chosen = {sample["__key__"] for sample in sorted(samples, key=lambda sample: rank(sample["__key__"]))[:MOST]}
    return [sample for sample in samples if sample["__key__"] in chosen]


PICTURE_QUESTIONS = Asset(
    name="picture-questions",
    title="questions and answers about pictures: names and groups of emoji, kinds and captions of Tux Paint's stamps",
    licence="Apache-2.0, CC-BY-4.0, MIT (emoji), GPL-2 (Tux Paint)",
    source="Google, Twitter and Microsoft; the Tux Paint team",
    megabytes=0.0,
    packages=(),
    build=build_picture_questions,
    needs=("tux-paint",),
    use="multimodal language models",
)
