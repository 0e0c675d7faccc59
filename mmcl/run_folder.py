"""The run folder: config.yaml, results.json, matrix.csv, metrics.jsonl, checkpoints/, snapshots/, and its lock."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from multiprocessing.util import register_after_fork
from pathlib import Path
from typing import Any

from mmcl.errors import ConfigError, RunError

IDENTITY = "identity.json"


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings and lists as one level of dotted keys."""
    if isinstance(value, Mapping):
        items = [(str(k), v) for k, v in value.items()]
    elif isinstance(value, (list, tuple)):
        items = [(str(i), v) for i, v in enumerate(value)]
    else:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in items:
        flat.update(flatten(inner, f"{prefix}.{key}" if prefix else key))
    return flat or {prefix: "{}" if isinstance(value, Mapping) else "[]"}


def digest(identity: Mapping[str, Any]) -> str:
    """A hash of what makes two runs the same."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()


class RunFolder:
    """Paths and small records of one run.

    Args:
        path: the folder; it is created by `claim`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def snapshots(self) -> Path:
        return self.path / "snapshots"

    @property
    def results(self) -> Path:
        return self.path / "results.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process. One that is new and stays empty is removed again.

        Raises:
            ConfigError: another process holds it, or it cannot be made.
        """
        made = [p for p in (self.path, *self.path.parents) if not p.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"--run_dir {self.path} cannot be made: {error.strerror}; choose another --run_dir"
            ) from error
        lock = self.path / ".lock"
        try:
            opened = lock.open("a+")
        except OSError as error:
            raise ConfigError(f"{lock} cannot be locked: {error.strerror}; choose another --run_dir") from error
        with opened as file:
            register_after_fork(file, TextIOWrapper.close)  # else a worker that outlives this process would hold it
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                file.seek(0)
                holder = file.read().strip() or "another process"
                raise ConfigError(
                    f"{self.path} is in use by {holder}; wait for it or choose another --run_dir"
                ) from error
            file.seek(0)
            file.truncate()
            file.write(f"process {os.getpid()}")
            file.flush()
            for half in self.path.rglob(".*.part"):  # of a process that was killed while it wrote
                half.unlink()
            try:
                yield
            finally:
                if made and list(self.path.iterdir()) == [lock]:
                    lock.unlink()
                    with suppress(OSError):  # another run may have begun beside it
                        for folder in made:
                            folder.rmdir()
                fcntl.flock(file, fcntl.LOCK_UN)

    def check_identity(self, identity: Mapping[str, Any]) -> None:
        """Refuse a folder that holds a run of another configuration, naming the keys that differ.

        One whose run was stopped before anything was measured or saved is free for any.

        Raises:
            ConfigError: the folder belongs to another configuration, or holds something else.
        """
        file = self.path / IDENTITY
        if not file.exists():
            foreign = [p.name for p in self.path.iterdir() if not p.name.startswith(".")] if self.path.is_dir() else []
            if "results.json" in foreign or "checkpoints" in foreign:
                raise ConfigError(f"{self.path} holds a run without {IDENTITY}; choose another --run_dir")
            return
        old, new = flatten(_read_json(file)), flatten(json.loads(json.dumps(identity, default=str)))
        if not self.results.exists() and not any(self.checkpoints.glob("*.ckpt")):
            return  # it was stopped before its first row: there is nothing to continue
        keys = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
        if keys:
            shown = [f"{k} ({old.get(k, 'absent')} there, {new.get(k, 'absent')} here)" for k in keys[:6]]
            more = f" and {len(keys) - 6} more" if len(keys) > 6 else ""
            raise ConfigError(
                f"{self.path} belongs to another configuration; it differs in {', '.join(shown)}{more}; "
                "choose another --run_dir"
            )

    def write_identity(self, identity: Mapping[str, Any]) -> None:
        """Record what makes this run itself."""
        write_text(self.path / IDENTITY, json.dumps(identity, indent=1, sort_keys=True, default=str) + "\n")

    def read_results(self) -> dict[str, Any] | None:
        """results.json, or None before the first row."""
        return _read_json(self.results) if self.results.exists() else None


def _read_json(path: Path) -> dict[str, Any]:
    """A mapping that was written by `write_text`.

    Raises:
        ConfigError: it is damaged.
    """
    try:
        content = json.loads(path.read_text())
    except ValueError as error:  # of decoding too
        raise ConfigError(f"{path} is damaged ({error}); put it back as it was, or choose another --run_dir") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is damaged (no mapping); put it back as it was, or choose another --run_dir")
    return content


def write_text(path: Path, text: str) -> None:
    """Replace a small file at once, so that a reader never sees half of it, and a power cut leaves the old or the new.

    Raises:
        RunError: the disk is full or does not let itself be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RunError(f"{path} cannot be written: {error.strerror or error}") from error


class MetricsLog:
    """metrics.jsonl: one JSON object a line, appended, and cut back to a recorded length when a run is resumed.

    Every record has ``kind`` (``step``, ``row``, ``segment``) and ``time`` (seconds since the epoch), which is the only
    field that differs between two equal runs.

    Raises:
        RunError: the file is shorter than the recorded length.
    """

    def __init__(self, path: Path, offset: int, enabled: bool = True) -> None:
        self._path = path
        self._enabled = enabled
        if enabled:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                if file.tell() < offset:
                    raise RunError(
                        f"{path} has {file.tell()} bytes, and the checkpoint counts {offset} of it; put it back as it "
                        "was, or choose another --run_dir"
                    )
                file.truncate(offset)

    def write(self, kind: str, **record: Any) -> None:
        """Append one record."""
        if not self._enabled:
            return
        line = json.dumps({"kind": kind, **record, "time": round(time.time(), 3)})
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise RunError(f"{self._path} cannot be written: {error.strerror or error}") from error

    def offset(self) -> int:
        """Length in bytes, for the checkpoint, which must not reach the disk before what it counts."""
        if not (self._enabled and self._path.exists()):
            return 0
        with self._path.open("ab") as file:
            os.fsync(file.fileno())
            return file.tell()
