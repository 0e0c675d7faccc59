"""A stream of texts for a small language model: domains of different kinds, plain English as what was there before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmcl import assets
from mmcl.benchmarks.assets.common import rank
from mmcl.datamodules.index import load_index
from mmcl.errors import ConfigError, near
from mmcl.stream import Budget, EvalSet, Source, Stream, Task

DOMAINS = ("bible", "medical", "law", "german")
UPSTREAM = "english"
TASKS = ("bible", "medical", "german")
STEPS = 16
COLUMN_BYTES = 14_000
"""Most bytes of an evaluation set, so that it is measured in seconds on a CPU."""
PROTOCOL = (
    "Each task continues pretraining on the documents of one domain. A column is the perplexity, weighted by tokens, "
    "of documents of a domain that no task trains on: {columns}; they are those of the domain's test split whose keys "
    "have the smallest hashes, as many as fit into {size:,} bytes. English, the kind of text that the model was "
    "pretrained on, is held out.{replay}"
)


def pocket_text(tasks: Sequence[str] = TASKS, steps: int = STEPS, replay: float = 0.0) -> Stream:
    """Domains of the asset ``texts``, one after another, with plain English as the held-out column.

    Args:
        tasks: domains to train on, in order: bible, medical, law, german.
        steps: optimizer steps of each task.
        replay: share of plain English in every batch of every task.

    Raises:
        ConfigError: an unknown domain, a share outside [0, 1), or the asset was not fetched.
    """
    for domain in tasks:
        if domain not in DOMAINS:
            raise ConfigError(f"pocket_text: '{domain}' is no domain; {near(domain, DOMAINS)}")
    if not 0 <= replay < 1:
        raise ConfigError(f"pocket_text: replay is {replay}; it must be within [0, 1)")
    folder = assets.folder("texts")
    english = str(folder / f"{UPSTREAM}-train.tar")
    mix = [Source([english], name="replay", share=replay)] if replay else []
    columns = {domain: _held_out(folder / f"{domain}-test.tar") for domain in (*tasks, UPSTREAM)}
    counts = ", ".join(f"{len(keys)} of {domain}" for domain, keys in columns.items())
    share = f" {replay:.0%} of every batch is English replayed." if replay else ""
    return Stream(
        "pocket_text",
        [
            Task(
                name=domain,
                train=[Source([str(folder / f"{domain}-train.tar")], name=domain)],
                budget=Budget(steps=steps),
                evaluates=domain,
                domain=domain,
                mix=mix,
            )
            for domain in tasks
        ],
        [_column(folder, domain, keys) for domain, keys in columns.items()],
        {"reference": Source([english], name="reference", role="side")},
        PROTOCOL.format(columns=counts, size=COLUMN_BYTES, replay=share),
    )


def _column(folder: Path, domain: str, keys: Sequence[str]) -> EvalSet:
    source = Source([str(folder / f"{domain}-test.tar")], name=f"{domain}-test", keys=keys)
    return EvalSet(domain, source, "perplexity", group="held_out" if domain == UPSTREAM else "task")


def _held_out(shard: Path) -> list[str]:
    """Keys of a shard's documents, in the order of their hashes, as far as the bytes reach."""
    index = load_index(str(shard))
    sizes = {index.key(i): sum(m.size for m in index.members(i)) for i in range(len(index))}
    keys = sorted(sizes, key=rank)
    fit = np.cumsum([sizes[key] for key in keys]) <= COLUMN_BYTES
    return [key for key, fits in zip(keys, fit, strict=True) if fits]
