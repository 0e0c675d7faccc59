"""A stream of questions about pictures for a small model that sees and answers; plain English is held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmcl import assets
from mmcl.benchmarks.assets.common import rank
from mmcl.benchmarks.pocket.concepts import concepts
from mmcl.datamodules.index import load_index
from mmcl.errors import ConfigError, near
from mmcl.stream import Budget, EvalSet, Source, Stream, Task

FIELDS = {"image": ("webp",), "conversation": ("json",)}
STEPS = 50
"""Optimizer steps of a task."""
TEST = 100
"""Most questions of a column."""
PROTOCOL = (
    "Each task trains on questions of one kind about pictures, and its column asks the same of pictures that no task "
    "trains on: {kinds}. Each column has the questions whose keys have the smallest hashes, {test} at most. Held out: "
    "the perplexity of plain English, text alone, over the first tokens of each document."
)


@dataclass(frozen=True)
class Kind:
    """One kind of question.

    Attributes:
        test: split that its column takes.
        probe: how answers are scored.
        options: of the probe.
        groups: emoji that are asked about; None asks about all.
        protocol: what is asked, and what is new in the column.
    """

    test: str
    probe: str
    protocol: str
    options: Mapping[str, Any] = field(default_factory=dict)
    groups: tuple[str, ...] | None = None


MATCH = {"max_new_tokens": 8}
CHOICE = {"score": "sum"}
KINDS = {
    "emoji-groups": Kind(
        *("test", "exact_match", "to which of 7 groups an emoji belongs, written out (new concepts, a new style)"),
        options=MATCH,
    ),
    "tux-kinds": Kind(
        *("test", "exact_match", "which of 12 kinds of things a stamp of Tux Paint shows, written out"), options=MATCH
    ),
    "emoji-names": Kind(
        *("style", "choice", "which of 4 names an animal, a plant or a food has (trained concepts, a new style)"),
        options=CHOICE,
        groups=("animals-nature", "food-drink"),
    ),
    "tux-captions": Kind("test", "choice", "which of 4 captions a stamp of Tux Paint has", options=CHOICE),
}
TASKS = ("emoji-groups", "tux-kinds", "emoji-names")


def pocket_questions(tasks: Sequence[str] = TASKS, steps: int = STEPS, test: int = TEST) -> Stream:
    """Questions of the asset ``picture-questions``, a kind at a time, and English of the asset ``texts`` held out.

    Args:
        tasks: kinds of questions, in order: emoji-groups, tux-kinds, emoji-names, tux-captions.
        steps: optimizer steps of each task.
        test: most questions of a column.

    Raises:
        ConfigError: an unknown kind, no question to measure, or an asset was not fetched.
    """
    for kind in tasks:
        if kind not in KINDS:
            raise ConfigError(f"pocket_questions: '{kind}' is no kind of question; {near(kind, KINDS)}")
    if test < 1:
        raise ConfigError(f"pocket_questions: test is {test}; a column needs a question")
    questions, texts = assets.folder("picture-questions"), assets.folder("texts")
    english = EvalSet("english", Source([str(texts / "english-test.tar")], name="english-test"), "perplexity")
    reference = Source([str(texts / "english-train.tar")], name="reference", role="side", batch_size=2)
    return Stream(
        "pocket_questions",
        [_task(questions, kind, steps) for kind in tasks],
        [*(_column(questions, kind, test) for kind in tasks), english],
        {"reference": reference},
        PROTOCOL.format(kinds="; ".join(KINDS[kind].protocol for kind in tasks), test=test),
    )


def _task(folder: Path, kind: str, steps: int) -> Task:
    shard = str(folder / f"{kind}-train.tar")
    keys = None if KINDS[kind].groups is None else _keys(shard, kind)
    source = Source([shard], name=kind, keys=keys, fields=FIELDS)
    return Task(kind, [source], Budget(steps=steps), evaluates=kind, domain=kind)


def _column(folder: Path, kind: str, test: int) -> EvalSet:
    own = KINDS[kind]
    shard = str(folder / f"{kind}-{own.test}.tar")
    keys = sorted(_keys(shard, kind), key=rank)[:test]
    source = Source([shard], name=f"{kind}-{own.test}", keys=keys, fields=FIELDS)
    return EvalSet(kind, source, own.probe, group="task", options=own.options)


def _keys(shard: str, kind: str) -> list[str]:
    """Keys of the questions, those about other groups of emoji left out."""
    index = load_index(shard)
    keys = [index.key(i) for i in range(len(index))]
    groups = KINDS[kind].groups
    if groups is None:
        return keys
    codes = {record["hexcode"] for group in groups for record in concepts()[group]}
    return [key for key in keys if key.partition("-")[2] in codes]
