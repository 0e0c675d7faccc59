"""A folder of shards that were fetched: bounded, and shared by any number of processes on one machine.

For each shard there are ``NAME.data`` (the shard, whole and checked), ``NAME.index`` and ``NAME.record`` (which version
of the shard the two are of), ``NAME.lock``, and ``NAME.SIZE-TAG.part`` while it is on its way. Whoever fetches a shard
or changes its files holds its lock; whoever reads it holds a shared lock on the data themselves, so that nobody deletes
what a living process reads. All locks end with their process. The least recently used data go first; indexes stay.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mmcl import assets
from mmcl.datamodules.cache_entry import Entry, Known, named, writable
from mmcl.datamodules.eviction import Room, amount
from mmcl.datamodules.faults import REMAKE
from mmcl.datamodules.files import read_bytes
from mmcl.datamodules.index import FORMAT, ShardIndex, load_index, make_index, read_index
from mmcl.datamodules.manifest_check import MANIFEST, difference, read_manifest
from mmcl.datamodules.remote import beside, file_name, is_remote, name_of, public
from mmcl.datamodules.scan import scan
from mmcl.datamodules.transfer import Version, ask, download, small_file
from mmcl.errors import ConfigError, RunError

logger = logging.getLogger("mmcl")

GIGABYTES = 50.0
_OPENERS = 8


class ShardCache:
    """Reads shards, local ones where they lie and remote ones out of a cache folder.

    Args:
        folder: the cache; it should lie on a local disk. None is ``shards`` in mmcl's cache (``$MMCL_CACHE``, or
            ``~/.cache/mmcl``).
        gigabytes: bound of the fetched shards (1e9 bytes), those on their way included; indexes are not counted. It is
            passed, with a warning, only when running processes are reading all that is there.

    Raises:
        ConfigError: the bound is not above 0.
    """

    def __init__(self, folder: str | Path | None = None, gigabytes: float = GIGABYTES) -> None:
        if not gigabytes > 0.0:
            raise ConfigError(f"data: cache_gb is {gigabytes}; it must be above 0")
        self.folder = Path(folder).expanduser().absolute() if folder else assets.cache() / "shards"
        self.limit = int(gigabytes * 1e9)
        self._versions: dict[str, Version] = {}
        self._manifests: set[str] = set()
        self._held: OrderedDict[str, int] = OrderedDict()
        self._process = os.getpid()
        self._mutex = threading.RLock()

    # -- indexes ------------------------------------------------------------------------------------------------------

    def indexes(self, shards: Sequence[str]) -> list[ShardIndex]:
        """The index of each shard. Remote ones are opened several at a time.

        Raises:
            ConfigError: see `index`.
            RunError: see `index`.
        """
        if not any(map(is_remote, shards)):
            return [load_index(shard) for shard in shards]
        with ThreadPoolExecutor(_OPENERS) as pool:
            waiting = [pool.submit(self.index, shard) for shard in shards]
            try:
                return [future.result() for future in waiting]
            finally:
                pool.shutdown(cancel_futures=True)

    def index(self, shard: str) -> ShardIndex:
        """The index of a shard: the one in the cache, the one beside the shard, or one made of the fetched shard.

        A shard that the cache knows costs no request.

        Raises:
            ConfigError: there is no such shard, it may not be read, is damaged, or is larger than the cache.
            RunError: the server fails, or the cache cannot be written.
        """
        if not is_remote(shard):
            return load_index(shard)
        entry = self._entry(shard)
        found = entry.known()
        if found is None:
            with entry.alone(), named(shard):
                # Another process may have fetched it while this one waited.
                found = entry.known() or self._open(entry, ask(shard))
        self._versions[shard] = found.version
        return found.index

    def renew(self, shard: str) -> tuple[ShardIndex, str]:
        """Ask the server whether a remote shard has changed, and bring index and data in.

        Returns:
            The index, and what was done: ``kept``, ``fetched``, or ``renewed`` where the shard had changed.

        Raises:
            ConfigError: see `index`.
            RunError: see `index`.
        """
        entry = self._entry(shard)
        with entry.alone(), named(shard):
            version, found, here = ask(shard), entry.known(), entry.file("data").is_file()
            done = "kept" if here else "fetched"
            if found is None or found.version != version:
                done = "renewed" if found else "fetched"
                self._manifests.discard(entry.home.name if found else "")
                found = self._open(entry, version)
            self._versions[shard] = version
            if not entry.file("data").is_file():
                os.close(self._bring(entry, version, found.index)[0])
        return found.index, done

    def size(self, shard: str) -> int:
        """Bytes that an opened shard takes in the cache; 0 of a local one."""
        return self._versions[shard].size if shard in self._versions else 0

    # -- data ---------------------------------------------------------------------------------------------------------

    def read(self, shard: str, offset: int, size: int) -> bytes:
        """Bytes of a shard whose index was asked for. A remote one is fetched whole where it is not here.

        Raises:
            RunError: it cannot be fetched, it has changed since it was indexed, or the disk is full.
        """
        if shard not in self._versions:  # a local one
            return read_bytes(shard, offset, size)
        with self._mutex:
            data = os.pread(self._hold(shard), size, offset)
        if len(data) != size:
            raise RunError(f"shard {public(shard)} was cut in the cache ({self._entry(shard).file('data')}); delete it")
        return data

    def release(self) -> None:
        """Let others delete what this process has read."""
        with self._mutex:
            while self._held:
                os.close(self._held.popitem()[1])

    # -- inside -------------------------------------------------------------------------------------------------------

    def _entry(self, shard: str) -> Entry:
        name = name_of(shard)
        return Entry(shard, self.folder / name.folder, name.file)

    def _open(self, entry: Entry, version: Version) -> Known:
        """Make a version of a shard known. What is there of another one goes."""
        if version.size > self.limit:
            raise ConfigError(
                f"shard {public(entry.address)} has {amount(version.size)}, but the cache may have "
                f"{amount(self.limit)}: raise data.cache_gb"
            )
        entry.begin(version)
        self._bring_manifest(entry)
        index = self._index_beside(entry, version)
        if index is None:
            data, index = self._bring(entry, version, None)
            os.close(data)
        return Known(version, index)

    def _bring_manifest(self, entry: Entry) -> None:
        """Keep the manifest of the shard's folder, once for each process."""
        with self._mutex:
            place = beside(entry.address, MANIFEST)
            if place is not None and entry.home.name not in self._manifests:
                content = small_file(place)
                if content is not None:
                    entry.write(MANIFEST, content)
                else:
                    with writable(entry.home):
                        (entry.home / MANIFEST).unlink(missing_ok=True)
            self._manifests.add(entry.home.name)

    def _index_beside(self, entry: Entry, version: Version) -> ShardIndex | None:
        place = beside(entry.address, f"{file_name(entry.address)}.index")
        content = small_file(place) if place else None
        if content is None:
            return None
        entry.write("index", content)
        index = read_index(entry.file("index"), {"format": FORMAT, "size": version.size})
        if index is None:
            logger.info("%s.index does not fit the shard; it is made of the shard", public(entry.address))
        else:
            entry.keep(version, index)
        return index

    def _hold(self, shard: str) -> int:
        """A descriptor of the shard's data, locked against deletion."""
        if self._process != os.getpid():
            self.release()  # copies of the parent's: its own locks stay
            self._process = os.getpid()
        if shard not in self._held:
            entry = self._entry(shard)
            data = self._open_data(entry)
            if data is None:
                with entry.alone(), named(shard):
                    data = self._open_data(entry)  # another process may have fetched it
                    if data is None:
                        known = entry.known()
                        data, _ = self._bring(entry, self._versions[shard], known.index if known else None)
            self._held[shard] = data
            # Others may need the room of what was read long ago.
            while len(self._held) > 1 and sum(self.size(name) for name in self._held) > self.limit // 4:
                os.close(self._held.popitem(last=False)[1])
        self._held.move_to_end(shard)
        return self._held[shard]

    def _open_data(self, entry: Entry) -> int | None:
        try:
            data = os.open(entry.file("data"), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        fcntl.flock(data, fcntl.LOCK_SH)
        if os.fstat(data).st_nlink == 0:  # deleted before it was locked
            os.close(data)
            return None
        if entry.version() != self._versions[entry.address]:
            os.close(data)
            raise RunError(
                f"shard {public(entry.address)} was renewed in {self.folder} after this run had opened it; continue it"
            )
        os.utime(data)
        return data

    def _bring(self, entry: Entry, version: Version, known: ShardIndex | None) -> tuple[int, ShardIndex]:
        """Fetch a shard, check it, and give it its name: an open and locked descriptor, and its index."""
        part = entry.part(version)
        room = Room(self.folder, self.limit, self.release)
        logger.info("fetching %s (%s)", public(entry.address), amount(version.size))
        for last in (False, True):
            with writable(self.folder):
                room.make(part, version.size)
            download(entry.address, version, part)
            try:
                index = self._check(entry, version, part, known)
                break
            except ConfigError as error:
                part.unlink()  # what was continued may have been damaged
                if last:
                    raise
                logger.warning("%s; it is fetched once more", error)
                self._manifests.discard(entry.home.name)  # of an earlier run, perhaps of earlier shards
                self._bring_manifest(entry)
        if known is None:
            entry.keep(version, index)
        data = os.open(part, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(data, fcntl.LOCK_SH)
        os.fsync(data)
        os.replace(part, entry.file("data"))
        return data, index

    def _check(self, entry: Entry, version: Version, part: Path, known: ShardIndex | None) -> ShardIndex:
        """Read what has arrived: a whole archive, the one of the manifest and of the known index."""
        shown = public(entry.address)
        try:
            index = make_index(scan(str(part)))
            told = read_manifest(entry.home).get(file_name(entry.address))
        except ConfigError as error:
            manifest = str(beside(entry.address, MANIFEST))
            text = str(error).replace(str(part), shown).replace(str(entry.home / MANIFEST), public(manifest))
            raise ConfigError(text) from error
        if told is not None and (wrong := difference(str(part), len(index), told)):
            raise ConfigError(f"shard {shown}: {wrong}; {REMAKE}")
        if known is not None and not index.equals(known):
            raise ConfigError(
                f"shard {shown} is not the one that its index was made of; make the index beside it again "
                "(`mmcl shards index`), then `mmcl shards fetch`"
            )
        return index


def check_room(cache: ShardCache, shards: Sequence[Sequence[int]], window: int, where: str) -> None:
    """Refuse a cache in which shards that are read at a time would drive out one another.

    Args:
        cache: the cache.
        shards: for each pool the bytes that its shards take in the cache.
        window: shards of a pool that are read at a time.
        where: for messages.

    Raises:
        ConfigError: says how large it must be.
    """
    needed = sum(sum(sorted(sizes)[-window:]) for sizes in shards)
    if needed > cache.limit:
        raise ConfigError(
            f"{where}: the remote shards that are read at a time (data.window {window}) have {amount(needed)}, but the "
            f"cache may have {amount(cache.limit)}: raise data.cache_gb or lower data.window"
        )
