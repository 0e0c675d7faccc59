"""Room in a cache folder: the least recently used data go, never those that a living process uses."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mmcl.errors import RunError

logger = logging.getLogger("mmcl")

_PART = re.compile(r"\.(\d+)-[0-9a-f]+\.part$")
_PAUSE = 0.05


def amount(size: int) -> str:
    """Bytes in a unit that a person reads."""
    number, units = float(size), iter(("B", "kB", "MB", "GB"))
    for unit in units:
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


@dataclass(frozen=True)
class _Item:
    """Data, or data on their way: bytes that they have or will have, and when they were last used."""

    path: Path
    size: int
    used: float

    def remove(self) -> bool:
        """Delete it unless somebody uses it; say whether it went."""
        part = _PART.search(self.path.name)
        lock = self.path.with_name(f"{self.path.name[: part.start()]}.lock") if part else self.path
        try:
            descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC | (os.O_CREAT if part else 0), 0o644)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        else:
            self.path.unlink(missing_ok=True)
            logger.debug("deleted %s", self.path)
            return True
        finally:
            os.close(descriptor)


class Room:
    """Makes room for one file.

    Args:
        folder: the cache.
        limit: bytes that it may have.
        release: called when nothing else can be deleted; lets go of what this process does not read at the moment.
    """

    def __init__(self, folder: Path, limit: int, release: Callable[[], None]) -> None:
        self._folder, self._limit, self._release = folder, limit, release

    def make(self, part: Path, size: int) -> None:
        """Claim `size` bytes for a file that begins to arrive at `part`.

        Raises:
            RunError: the disk is too full.
        """
        waiting = False
        while not self._claim(part, size):
            if not waiting:
                logger.info("waiting for room in the cache %s: shards on their way fill it", self._folder)
            waiting = True
            time.sleep(_PAUSE)  # what others fetch just now can be deleted when it is there and indexed

    def _claim(self, part: Path, size: int) -> bool:
        with (self._folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            items = [item for item in _items(self._folder) if item.path != part]
            kept = self._evict(items, size, part)
            if self._lacks(kept, size, part):
                self._release()
                kept = self._evict(kept, size, part)
            have = part.stat().st_size if part.exists() else 0
            if (free := shutil.disk_usage(self._folder).free) < size - have:
                raise RunError(
                    f"the cache {self._folder} has {amount(free)} free on its disk and needs {amount(size - have)}; "
                    "make room there, or set data.cache_dir to another disk"
                )
            if self._lacks(kept, size, part):
                if any(_PART.search(item.path.name) for item in kept):
                    part.unlink(missing_ok=True)  # it would look like one on its way, and others would wait for it
                    return False
                logger.warning(
                    "the cache %s grows to %s, beyond its bound of %s: running processes read all that is in it; "
                    "raise data.cache_gb",
                    *(self._folder, amount(sum(item.size for item in kept) + size), amount(self._limit)),
                )
            part.touch()
            return True

    def _lacks(self, items: list[_Item], size: int, part: Path) -> bool:
        have = part.stat().st_size if part.exists() else 0
        full = sum(item.size for item in items) + size > self._limit
        return full or shutil.disk_usage(self._folder).free < size - have

    def _evict(self, items: list[_Item], size: int, part: Path) -> list[_Item]:
        """Delete from the oldest on until there is room; return what is left."""
        left = sorted(items, key=lambda item: item.used)
        for item in list(left):
            if not self._lacks(left, size, part):
                break
            if item.remove():
                left.remove(item)
        return left


def _items(folder: Path) -> Iterator[_Item]:
    for path in [*folder.glob("*/*.data"), *folder.glob("*/*.part")]:
        try:
            stat = path.stat()
        except FileNotFoundError:
            continue
        part = _PART.search(path.name)
        yield _Item(path, int(part.group(1)) if part else stat.st_size, stat.st_mtime)
