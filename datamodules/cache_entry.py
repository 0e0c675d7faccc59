"""The files of one shard in a cache folder, and the words for what stands in the way of them."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mmcl.datamodules.index import FORMAT, ShardIndex, read_index, write_index
from mmcl.datamodules.manifest_check import MANIFEST
from mmcl.datamodules.remote import public
from mmcl.datamodules.transfer import Version
from mmcl.errors import ConfigError, RunError


@dataclass(frozen=True, eq=False)
class Known:
    """A shard of which the cache has the index."""

    version: Version
    index: ShardIndex


@dataclass(frozen=True)
class Entry:
    """The files of one shard."""

    address: str
    home: Path
    name: str

    def file(self, kind: str) -> Path:
        """``data``, ``index``, ``record`` or ``lock``."""
        return self.home / f"{self.name}.{kind}"

    def part(self, version: Version) -> Path:
        """What has arrived of a version. The name holds the size that it will have."""
        tag = hashlib.blake2b(version.tag.encode(), digest_size=8).hexdigest()
        return self.home / f"{self.name}.{version.size}-{tag}.part"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """One process at a time; the others wait."""
        with writable(self.home):
            self.home.mkdir(parents=True, exist_ok=True)
            lock = self.file("lock").open("w")
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def version(self) -> Version | None:
        """Which version of the shard the index and the data are of, if the shard is known."""
        try:
            record = json.loads(self.file("record").read_text())
            return Version(int(record["size"]), str(record["tag"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def known(self) -> Known | None:
        """Version and index, if both are there and belong together."""
        version = self.version()
        index = read_index(self.file("index"), _stamp(version)) if version else None
        return Known(version, index) if version and index is not None else None

    def begin(self, version: Version) -> None:
        """Say that index and data will be of this version; those of another one go first."""
        with writable(self.home):
            self.file("data").unlink(missing_ok=True)
            self.file("index").unlink(missing_ok=True)
        self.write("record", json.dumps({"url": public(self.address), **version._asdict()}).encode())

    def keep(self, version: Version, index: ShardIndex) -> None:
        """Keep the index.

        Raises:
            RunError: it cannot be written.
        """
        if not write_index(self.file("index"), _stamp(version), index):
            raise RunError(f"the cache {self.home} cannot be written; make room there, or set data.cache_dir")

    def write(self, kind: str, content: bytes) -> None:
        """Write a file of the shard, or the folder's manifest, under its name only when it is whole."""
        place = self.home / MANIFEST if kind == MANIFEST else self.file(kind)
        temporary = place.with_name(f"{place.name}.{os.getpid()}.{threading.get_ident()}")
        with writable(self.home):
            temporary.write_bytes(content)
            temporary.replace(place)


def _stamp(version: Version) -> dict[str, int | str]:
    return {"format": FORMAT, "size": version.size, "tag": version.tag}


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Say what to do where the cache cannot be written.

    Raises:
        RunError: for every OSError.
    """
    try:
        yield
    except OSError as error:
        raise RunError(
            f"the cache {folder} cannot be written: {error.strerror}; make room there, or set data.cache_dir"
        ) from error


@contextmanager
def named(shard: str) -> Iterator[None]:
    """Say which shard is not there, or may not be read.

    Raises:
        ConfigError: for what a server answers.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise ConfigError(f"shard {public(shard)} does not exist") from error
    except PermissionError as error:
        why = public(" ".join(str(error).split()))
        raise ConfigError(
            f"shard {public(shard)} may not be read ({why}); credentials come from the environment, see docs/remote.md"
        ) from error
