"""Pictures and captions of five domains, for an image-text model of two pretrained towers.

Emoji in three drawing styles lie in the repository; clip art and Tux Paint's stamps come with
`mmcl data get clip-art tux-paint`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from mmcl import assets
from mmcl.benchmarks.pocket.concepts import ROOT, concepts
from mmcl.datamodules.reader import SourceReader
from mmcl.errors import ConfigError, near
from mmcl.stream import Budget, EvalSet, Source, Stream, Task

STYLES = ("google", "twitter", "fluent")
ASSETS = ("clip-art", "tux-paint")
DOMAINS = (*STYLES, *ASSETS)
FIELDS: Mapping[str, Sequence[str]] = {"image": ("webp",), "text": ("txt",)}
STEPS = 30
"""Optimizer steps of a domain."""
PROTOCOL = (
    "Domain-incremental retrieval. Each task trains on pairs of picture and caption of one domain: emoji of three "
    "drawing styles, clip art, stamps and photographs of Tux Paint. A domain's column is retrieval both ways among "
    "pictures that no task trains: of the emoji one concept in five, the same ones in every style, and the test parts "
    "of the other two; of each domain a choice of {test}, drawn by the seed, with captions that differ. The emoji "
    "columns share their concepts, so that later styles may also help earlier columns. Nothing is held out from the "
    "stream: what is lost shows in the columns of earlier tasks."
)


def pocket_towers(
    seed: int | None = None, domains: Sequence[str] = DOMAINS, steps: int = STEPS, test: int = 100
) -> Stream:
    """Retrieval over five visual domains, one after another.

    Args:
        seed: of the split of the emoji and of the choice of test pictures; None takes the run's seed on the command
            line, and 0 in Python.
        domains: what is trained, in order.
        steps: optimizer steps of each domain.
        test: pictures of each column.

    Raises:
        ConfigError: an unknown domain, a number that cannot be, or pictures that were not fetched.
    """
    for name in domains:
        if name not in DOMAINS:
            raise ConfigError(f"pocket_towers: '{name}' is no domain; {near(name, DOMAINS)}")
    if test < 2:
        raise ConfigError(f"pocket_towers: test is {test}; take 2 pictures or more")
    tasks = [_task(name, seed or 0, steps) for name in domains]
    columns = [_column(name, seed or 0, test) for name in domains]
    return Stream("pocket_towers", tasks, columns, protocol=PROTOCOL.format(test=test))


def _task(name: str, seed: int, steps: int) -> Task:
    keys = sorted(_emoji(name, seed, test=False)) if name in STYLES else None
    source = Source(_shards(name, "train"), name=name, keys=keys, fields=FIELDS)
    return Task(name, [source], Budget(steps=steps), name, domain=name)


def _column(name: str, seed: int, test: int) -> EvalSet:
    captions = _emoji(name, seed, test=True) if name in STYLES else _captions(name)
    keys = sorted(captions)
    random.Random(f"{seed}/test").shuffle(keys)
    distinct = {captions[key]: key for key in reversed(keys)}  # of pictures with one caption the first in the order
    if len(distinct) < test:
        raise ConfigError(f"pocket_towers: '{name}' has {len(distinct)} test captions that differ, not {test}")
    chosen = [key for key in keys if distinct[captions[key]] == key][:test]
    source = Source(_shards(name, "test"), name=name, keys=chosen, augment=False, fields=FIELDS)
    return EvalSet(name, source, "retrieval", group="task", options={"k": [1, 5, 10]})


def _shards(name: str, split: str) -> list[str]:
    if name in STYLES:
        return [str(file) for file in sorted((ROOT / "data").glob(f"{name}-*.tar"))]
    return [str(assets.folder(name) / f"{split}.tar")]


def _emoji(style: str, seed: int, test: bool) -> dict[str, str]:
    """Key -> caption of a style's pictures: of one concept in five, or of the others."""
    concepts = _concepts()
    order = sorted(concepts)
    random.Random(f"{seed}/towers").shuffle(order)
    cut = len(order) // 5
    part = order[:cut] if test else order[cut:]
    return {f"{style}-{code}": concepts[code]["label"] for code in part if style not in concepts[code]["missing"]}


@cache
def _captions(name: str) -> dict[str, str]:
    """Key -> caption of an asset's test pictures."""
    reader = SourceReader(Source(_shards(name, "test"), name=name, fields={"text": FIELDS["text"]}))
    samples = [reader.read(i) for i in range(len(reader))]
    return {sample["__key__"]: sample["text"] for sample in samples}


@cache
def _concepts() -> dict[str, dict[str, Any]]:
    """Hexcode -> name, and the styles that lack it."""
    return {
        record["hexcode"]: {"label": record["label"], "missing": record.get("missing", ())}
        for records in concepts().values()
        for record in records
    }
