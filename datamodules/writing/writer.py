"""From a source of rows to a folder of shards with a manifest."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import PIL
from tqdm import tqdm

import mmcl
from mmcl.datamodules.manifest_check import MANIFEST
from mmcl.datamodules.write import ShardFile
from mmcl.datamodules.writing.cluster import cluster_map
from mmcl.datamodules.writing.journal import Entry, Journal
from mmcl.datamodules.writing.options import Options, Recipe
from mmcl.datamodules.writing.plan import Bad, Plan, make_plan
from mmcl.datamodules.writing.rows import BadRow, Row, RowSource
from mmcl.datamodules.writing.sample import make_sample
from mmcl.datamodules.writing.sources import open_source
from mmcl.datamodules.writing.workers import ordered_map
from mmcl.errors import ConfigError, RunError

BAD = "bad.jsonl"
CLASSES = "classes.txt"
FORMAT = "mmcl.shards/1"
HOPELESS = 100
"""So many bad rows and no good one have one cause, such as a wrong folder; going on would tell no more."""

Made = tuple[int, Row, bytes | str]
"""Number of a row, the row without its members, and the packed sample or why there is none."""


def write_set(options: Options, restart: bool = False, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Write a whole set. The bytes of its files depend on source and options alone, not on workers or interruptions.

    Args:
        options: what to write, and where.
        restart: take away what an earlier call wrote into the same folder.
        say: receives a line for each finished shard.

    Returns:
        The manifest, which lies beside the shards as ``manifest.json``.

    Raises:
        ConfigError: refused before anything was written.
        RunError: more rows are bad than may be; what was written stays, and the same command goes on from there.
    """
    options.check()
    try:
        source = open_source(options)
        plan = make_plan(source, options)
    except OSError as error:
        raise ConfigError(f"{error.filename or options.sources[0]} cannot be read: {error.strerror}") from error
    journal = Journal(options.to, _identity(source, plan, options))
    try:
        with journal.locked(restart):
            return _write(source, plan, journal, options, say)
    except OSError as error:
        raise RunError(f"{options.to}: {error.strerror or error}; mend it and run the same command again") from error


def _write(
    source: RowSource, plan: Plan, journal: Journal, options: Options, say: Callable[[str], None]
) -> dict[str, Any]:
    (options.to / MANIFEST).unlink(missing_ok=True)
    _check_bad(options, plan, plan.bad, "")
    if len(_bad(plan, journal)) > options.max_bad:
        _look_again(source, plan, journal, options.recipe)
    if not plan.splits:
        raise RunError(
            f"no row can be used (the first: {plan.bad[0].place}: {plan.bad[0].reason}); see {options.to / BAD}"
        )
    _write_splits(source, plan, journal, options, say)
    _check_bad(options, plan, _bad(plan, journal), "")
    manifest = _manifest(source, plan, journal, options)
    if plan.class_names:
        _replace(options.to / CLASSES, "".join(f"{name}\n" for name in plan.class_names))
    _replace(options.to / MANIFEST, json.dumps(manifest, ensure_ascii=False, indent=1) + "\n")
    return manifest


def _identity(source: RowSource, plan: Plan, options: Options) -> dict[str, Any]:
    """What decides the bytes. The encoder does where it is used; another version may press pictures differently."""
    recipe = options.recipe
    tools = {"mmcl": mmcl.__version__} | ({"pillow": PIL.__version__} if recipe.resize or recipe.encode else {})
    return {**options.identity(), "kind": source.kind, "class_names": plan.class_names, "rows": plan.digest, **tools}


def _make(numbered: tuple[int, Row, int | None], recipe: Recipe) -> Made:
    number, row, label = numbered
    made: bytes | str
    try:
        made = make_sample(row, label, recipe)
    except BadRow as fault:
        made = str(fault)
    return number, row._replace(members={}), made


def _write_splits(
    source: RowSource, plan: Plan, journal: Journal, options: Options, say: Callable[[str], None]
) -> None:
    total = sum(plan.size(split) for split in range(len(plan.splits)))
    done = {name: max((e.upto for e in journal.entries if e.split == name), default=0) for name in plan.splits}
    with tqdm(total=total, initial=sum(done.values()), unit="rows", disable=None) as bar:
        for split, name in enumerate(plan.splits):
            rows = islice(plan.rows(source, split, options), done[name], None)
            labelled = ((number, row, plan.label(row)) for number, row in rows)
            job = partial(_make, recipe=options.recipe)
            bar.set_description(name)
            writer = _SplitWriter(name, done[name], plan, journal, options, say)
            local = options.engine == "local"
            made = ordered_map(job, labelled, options.workers) if local else cluster_map(job, labelled)
            with closing(made) as results:
                writer.write(_shown(results, bar))


def _shown(results: Iterator[Made], bar: Any) -> Iterator[Made]:
    for made in results:
        yield made
        bar.update()


class _SplitWriter:
    """Cuts the samples of a split into shards and records each one."""

    def __init__(
        self, name: str, done: int, plan: Plan, journal: Journal, options: Options, say: Callable[[str], None]
    ) -> None:
        self._name, self._plan, self._journal, self._options, self._say = name, plan, journal, options, say
        self._number = sum(entry.split == name for entry in journal.entries)
        self._upto = done
        self._bad: list[Bad] = []
        self._limit = options.megabytes_per_shard * 1e6

    def write(self, results: Iterator[Made]) -> None:
        held = self._next(results)
        while held is not None:
            path = self._options.to / f"{self._name}-{self._number:06d}.tar"
            with ShardFile(path) as shard:
                while held is not None and self._fits(shard, held):
                    shard.add(held)
                    held = self._next(results)
            assert shard.written is not None
            upto = self._upto - (held is not None)  # the sample that did not fit is for the next shard
            self._journal.add(Entry(path.name, self._name, *shard.written, upto, tuple(self._bad)))
            self._say(f"{path.name}: {shard.samples} samples, {shard.bytes / 1e6:.1f} MB")
            self._bad = []
            self._number += 1
        if not self._number:
            bad = [*_bad(self._plan, self._journal), *self._bad]
            _report(self._options.to, bad)
            first = f" (the first: {bad[0].place}: {bad[0].reason})" if bad else ""
            raise RunError(f"no row of split '{self._name}' can be used{first}; see {self._options.to / BAD}")

    def _next(self, results: Iterator[Made]) -> bytes | None:
        """The next sample."""
        for number, row, made in results:
            self._upto += 1
            if isinstance(made, bytes):
                return made
            self._bad.append(Bad(number, row.place, row.key, made))
            if not self._number and self._upto == len(self._bad) == HOPELESS:
                bad = [*self._plan.bad, *self._bad]
                _check_bad(self._options, self._plan, bad, " before any good one was found")
        return None

    def _fits(self, shard: ShardFile, packed: bytes) -> bool:
        if shard.samples == 0:
            return True
        full = shard.samples == self._options.samples_per_shard
        return not full and shard.size_with(packed) <= self._limit


def _look_again(source: RowSource, plan: Plan, journal: Journal, recipe: Recipe) -> None:
    """Rows that were bad in an earlier call may have been mended; shards from the first such one on are made anew."""
    bad = {entry_bad.row for entry in journal.entries for entry_bad in entry.bad}
    rows = ((n, row) for n, row in enumerate(source.rows()) if n in bad)
    mended = {
        number
        for number, _, members in (_make((n, row, plan.label(row)), recipe) for n, row in rows)
        if not isinstance(members, str)
    }
    for i, entry in enumerate(journal.entries):
        if any(found.row in mended for found in entry.bad):
            return journal.keep(journal.entries[:i])


def _bad(plan: Plan, journal: Journal) -> list[Bad]:
    return sorted([*plan.bad, *(bad for entry in journal.entries for bad in entry.bad)])


def _report(folder: Path, bad: list[Bad]) -> None:
    """Name all bad rows in a file; none without any."""
    if bad:
        lines = (
            json.dumps({"row": b.place, "key": b.key, "reason": b.reason}, ensure_ascii=False) for b in sorted(bad)
        )
        _replace(folder / BAD, "".join(f"{line}\n" for line in lines))
    else:
        (folder / BAD).unlink(missing_ok=True)


def _check_bad(options: Options, plan: Plan, bad: list[Bad], when: str) -> None:
    _report(options.to, bad)
    if len(bad) > options.max_bad:
        first, rows = bad[0], f"{len(bad)} of {len(plan.owner)} rows"
        raise RunError(
            f"{rows} cannot be used; the first is {first.place}: {first.reason}. All found so far{when} are named in "
            f"{options.to / BAD}. Mend them, or leave them out with --max_bad {len(bad)}, and run the command again"
        )


def _manifest(source: RowSource, plan: Plan, journal: Journal, options: Options) -> dict[str, Any]:
    shards = [{k: getattr(e, k) for k in ("name", "split", "samples", "bytes", "sha256")} for e in journal.entries]
    splits = {name: [e for e in journal.entries if e.split == name] for name in plan.splits}
    counts = {n: {"samples": sum(e.samples for e in s), "bytes": sum(e.bytes for e in s)} for n, s in splits.items()}
    bad = _bad(plan, journal)
    return {
        "format": FORMAT,
        "licence": options.licence,
        "origin": options.origin,
        "source": {"kind": source.kind, "paths": list(options.sources), "rows": len(plan.owner)},
        "samples": sum(e.samples for e in journal.entries),
        "bytes": sum(e.bytes for e in journal.entries),
        "splits": {name: {**count, "shards": len(splits[name])} for name, count in counts.items()},
        "class_names": plan.class_names,
        "bad": {"rows": len(bad), "file": BAD if bad else None},
        "unused": dict(sorted(source.unused.items())),
        "options": journal.identity,
        "shards": shards,
    }


def _replace(path: Path, text: str) -> None:
    half = path.with_name(f".{path.name}.half")
    half.write_text(text, encoding="utf-8", errors="backslashreplace")  # names need not be UTF-8; it is JSON's escape
    os.replace(half, path)
