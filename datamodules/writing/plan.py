"""Before anything is written: which row goes to which split, which rows cannot be used, and what the classes are."""

from __future__ import annotations

import array
import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mmcl.datamodules.order import mix, shuffled
from mmcl.datamodules.write import key_fault
from mmcl.datamodules.writing.options import Options
from mmcl.datamodules.writing.rows import Row, RowSource
from mmcl.errors import ConfigError, RunError

LEFT_OUT = -1
ONLY = "shard"
"""What the shards are called where there is one split."""

_WHOLE = re.compile(r"-?\d{1,9}")
_SPLIT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")


class Bad(NamedTuple):
    """A row that is left out: its number in the source, its place, its key, and why."""

    row: int
    place: str
    key: str
    reason: str


@dataclass
class Plan:
    """What one pass over the rows found. It takes 17 bytes a row, and does not hold the rows.

    Attributes:
        splits: names, in the order in which they are written.
        owner: (N,) the number of each row's split, or `LEFT_OUT`.
        bad: rows that cannot be used, whatever their files hold.
        class_names: in the order of the labels; empty where there are none, or where labels are numbers.
        digest: of all rows: two sources with the same one have the same rows.
    """

    splits: list[str]
    owner: npt.NDArray[np.int16]
    bad: list[Bad]
    class_names: list[str]
    digest: str
    _labels: Mapping[str, int] = field(default_factory=dict)

    def rows(self, source: RowSource, split: int, options: Options) -> Iterator[tuple[int, Row]]:
        """Number and row of all rows of a split, in the order in which they are written.

        Raises:
            RunError: the source has another number of rows by now.
        """
        rows = ((n, row) for n, row in self._all(source) if self.owner[n] == split)
        if not options.shuffle:
            return rows
        held = list(rows)
        return (held[i] for i in shuffled(np.arange(len(held)), mix(options.seed, split)))

    def _all(self, source: RowSource) -> Iterator[tuple[int, Row]]:
        number = -1
        for number, row in enumerate(source.rows()):
            if number == len(self.owner):
                break
            yield number, row
        if number != len(self.owner) - 1:
            raise RunError("the rows of the source changed while they were read; run the command again")

    def size(self, split: int) -> int:
        """How many rows a split has."""
        return int((self.owner == split).sum())

    def label(self, row: Row) -> int | None:
        """The number of a row's class."""
        return None if row.label is None else _number(row.label, self._labels)


def make_plan(source: RowSource, options: Options) -> Plan:
    """Go through the rows once, without reading what they point to.

    Args:
        source: the rows.
        options: splits and classes.

    Raises:
        ConfigError: there are no rows, labels are partly numbers and partly names, or the source has too many splits.
    """
    known = _known_classes(source, options)
    numbers = {name: i for i, name in enumerate(known)}
    splits, preset = list(options.split), not options.split
    owner, keys, digest = array.array("h"), bytearray(), hashlib.sha256()
    labels: Counter[str | int] = Counter()
    bad: list[Bad] = []
    for number, row in enumerate(source.rows()):
        keys += hashlib.blake2b(row.key.encode("utf-8", "surrogateescape"), digest_size=16).digest()
        digest.update(
            repr((row.key, row.members, row.label, row.identity, row.split, row.fault)).encode("utf-8", "replace")
        )
        fault = row.fault or key_fault(row.key) or _class_fault(row.label, numbers)
        name = ""
        if not fault:
            name, fault = _side(row, options)
        if fault:
            bad.append(Bad(number, row.place, row.key, fault))
            owner.append(LEFT_OUT)
            continue
        if row.label is not None:
            labels[row.label] += 1
        if preset and name not in splits:
            splits.append(name)
            if len(splits) > 100:
                raise ConfigError(f"--split_from {options.split_from}: more than 100 splits; is that the right column?")
        owner.append(splits.index(name))
    if not owner:
        raise ConfigError(f"{' '.join(options.sources)}: there is nothing to write")
    owners = np.frombuffer(owner, np.int16).copy()
    bad += _duplicates(source, np.frombuffer(bytes(keys), "<u8").reshape(-1, 2), owners)
    names = known or _found_classes(labels)
    digest.update(repr(names).encode("utf-8", "replace"))
    numbers = {name: i for i, name in enumerate(names)}
    return Plan(splits, owners, sorted(bad), names, digest.hexdigest(), numbers)


def split_of(identity: str, shares: Mapping[str, float], seed: int) -> str:
    """The split of an identity: a function of seed and identity alone, wherever and how often it comes.

    Args:
        identity: any text.
        shares: name -> share; they add up to 1.
        seed: another one gives another split.
    """
    digest = hashlib.blake2b(f"{seed}\0{identity}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
    place, total = int.from_bytes(digest, "big") / 2**64, 0.0
    for name, share in shares.items():
        total += share
        if place < total:
            return name
    return list(shares)[-1]


def _side(row: Row, options: Options) -> tuple[str, str]:
    """Name of a row's split, and what is wrong with it."""
    if not options.split:
        if options.split_from is None and row.split is None:
            return ONLY, ""
        name = row.split or ""
        return name, "" if _SPLIT.fullmatch(name) else f"'{name}' is no name of a split: letters, digits, - and _"
    identity = row.key if row.identity is None else row.identity
    if options.split_by_key is not None:
        match = re.search(options.split_by_key, row.key)
        found = match and (match.group(1) if match.re.groups else match.group(0))
        if not found:
            return "", f"--split_by_key finds no identity in its key '{row.key}'"
        identity = found
    return split_of(identity, options.split, options.seed), ""


def _duplicates(source: RowSource, keys: npt.NDArray[np.uint64], owner: npt.NDArray[np.int16]) -> list[Bad]:
    """Rows whose key an earlier usable row has; they lose their split."""
    usable = np.flatnonzero(owner != LEFT_OUT)
    order = usable[np.lexsort((usable, keys[usable, 1], keys[usable, 0]))]
    again = {int(n) for n in order[1:][(keys[order[1:]] == keys[order[:-1]]).all(axis=1)]}
    owner[list(again)] = LEFT_OUT
    rows = enumerate(source.rows()) if again else iter(())
    return [Bad(n, row.place, row.key, "an earlier row has the same key") for n, row in rows if n in again]


def _known_classes(source: RowSource, options: Options) -> list[str]:
    if options.class_names is None:
        return list(source.class_names)
    path = Path(options.class_names)
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--class_names {path} cannot be read: {error}") from error
    twice = [name for name, count in Counter(names).items() if count > 1]
    if not names or twice:
        raise ConfigError(f"--class_names {path}: {f'it has {twice[0]!r} twice' if twice else 'it is empty'}")
    if source.class_names and list(source.class_names) != names:
        raise ConfigError(
            f"--class_names {path}: the source has names of its own in another order; leave the option out"
        )
    return names


def _number(label: str | int, names: Mapping[str, int]) -> int | None:
    """The number of a class: that of its name, or the number that it is; None for a name that is not known."""
    if isinstance(label, str) and label in names:
        return names[label]
    return int(label) if isinstance(label, int) or _WHOLE.fullmatch(label) else None


def _class_fault(label: str | int | None, names: Mapping[str, int]) -> str:
    if label is None or not names:
        return ""
    number = _number(label, names)
    if number is None:
        return f"its class '{label}' is none of the {len(names)} class names"
    return "" if 0 <= number < len(names) else f"its label {number} is none of the {len(names)} classes"


def _found_classes(labels: Counter[str | int]) -> list[str]:
    """Sorted names; none where all labels are whole numbers, which then are the classes."""
    texts = sorted(label for label in labels if isinstance(label, str))
    if all(_WHOLE.fullmatch(text) for text in texts):
        return []
    numbers = next((label for label in labels if isinstance(label, int)), None)
    if numbers is not None:
        raise ConfigError(f"labels are numbers ({numbers}) and names ('{texts[0]}') in one column; make them all names")
    return texts
