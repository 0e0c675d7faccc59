"""What has been written so far, beside the shards: after any interruption the same command goes on from here."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmcl.datamodules.manifest_check import MANIFEST
from mmcl.datamodules.writing.plan import Bad
from mmcl.errors import ConfigError

NAME = ".writing.jsonl"
LOCK = ".writing.lock"


@dataclass(frozen=True)
class Entry:
    """A finished shard.

    Attributes:
        name: of the file.
        split: its split.
        samples: in it.
        bytes: of the file.
        sha256: of the file, as hexadecimal digits.
        upto: rows of the split that are done with it.
        bad: rows that were left out since the shard before it.
    """

    name: str
    split: str
    samples: int
    bytes: int
    sha256: str
    upto: int
    bad: tuple[Bad, ...] = ()


class Journal:
    """One line for each finished shard, after a line that says what they are made of.

    Args:
        folder: of the shards.
        identity: everything that decides their bytes.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder, self.identity = folder, json.loads(json.dumps(identity))
        self.entries: list[Entry] = []
        self._path = folder / NAME

    @contextmanager
    def locked(self, restart: bool) -> Iterator[None]:
        """Hold the folder for this process, and read what was written.

        Args:
            restart: take away what an earlier call wrote here, and begin anew.

        Raises:
            ConfigError: another process writes here, or what lies here was not made by the same call.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise ConfigError(f"--to {self.folder} is a file; give a folder")
        self._earlier(restart)
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / LOCK, "a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ConfigError(f"--to {self.folder}: another process is writing here; wait for it") from error
            entries = self._earlier(restart)  # by now the other one may have finished
            for half in self.folder.glob(".*.tar.*"):  # of a process that was killed
                half.unlink()
            if restart:
                for entry in entries:
                    (self.folder / entry.name).unlink(missing_ok=True)
                    (self.folder / f"{entry.name}.index").unlink(missing_ok=True)
                (self.folder / MANIFEST).unlink(missing_ok=True)
                entries = []
            self.keep(self._sound(entries))
            yield

    def add(self, entry: Entry) -> None:
        """Record a finished shard, for good."""
        self.entries.append(entry)
        with open(self._path, "ab") as file:
            file.write(_line(asdict(entry)))
            file.flush()
            os.fsync(file.fileno())

    def keep(self, entries: list[Entry]) -> None:
        """Forget all shards but these; the others are written again."""
        self.entries = entries
        half = self._path.with_name(f"{NAME}.half")
        with open(half, "wb") as file:
            file.write(_line(self.identity) + b"".join(_line(asdict(entry)) for entry in entries))
            file.flush()
            os.fsync(file.fileno())
        os.replace(half, self._path)

    def _earlier(self, restart: bool) -> list[Entry]:
        """What an earlier call wrote, if it was the same call."""
        begun, entries = self._read()
        if not begun:
            self._refuse_strangers()
        elif entries and not restart:
            self._refuse_others(begun)
        return entries

    def _read(self) -> tuple[dict[str, Any], list[Entry]]:
        try:
            lines = self._path.read_bytes().split(b"\n")[:-1]  # a line without an end was cut by a kill
        except FileNotFoundError:
            return {}, []
        try:
            rows = [json.loads(line) for line in lines]
            entries = [Entry(**{**row, "bad": tuple(Bad(*bad) for bad in row["bad"])}) for row in rows[1:]]
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{self._path} is damaged ({error}); give another folder, or empty this one") from error
        return rows[0] if rows else {}, entries

    def _sound(self, entries: list[Entry]) -> list[Entry]:
        """The first entries whose files are still what was written."""
        for i, entry in enumerate(entries):
            path = self.folder / entry.name
            if not path.is_file() or path.stat().st_size != entry.bytes:
                return entries[:i]
        return entries

    def _refuse_strangers(self) -> None:
        found = sorted(p.name for p in self.folder.glob("*.tar")) if self.folder.is_dir() else []
        if found or (self.folder / MANIFEST).exists():
            name = found[0] if found else MANIFEST
            raise ConfigError(
                f"--to {self.folder} holds {name}, which this command has not written; give another folder"
            )

    def _refuse_others(self, begun: Mapping[str, Any]) -> None:
        differ = [key for key in {**begun, **self.identity} if begun.get(key) != self.identity.get(key)]
        if differ == ["rows"]:
            raise ConfigError(
                f"--to {self.folder}: the rows of the source are not what they were when its shards were written; "
                "give another folder, or --restart to write them anew"
            )
        if differ:
            changes = "; ".join(
                f"{k}: {begun.get(k)!r} there, {self.identity.get(k)!r} now" for k in differ if k != "rows"
            )
            raise ConfigError(
                f"--to {self.folder} was written with other options ({changes}); give another folder, or --restart to "
                "write it anew"
            )


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=True).encode() + b"\n"
