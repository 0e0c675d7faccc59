"""The cache of remote shards: bounded, shared by processes, and exact."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import fsspec
import pytest
from web import Fault, Web, wait_for

from mmcl.datamodules import transfer, write_shard
from mmcl.datamodules.cache import ShardCache
from mmcl.datamodules.index import ShardIndex, load_index
from mmcl.datamodules.remote import name_of
from mmcl.errors import ConfigError, RunError

SHARDS = 6
fork = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "WAITS", (0.01, 0.01))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    """Six shards of one size."""
    folder = tmp_path / "web"
    folder.mkdir()
    for i in range(SHARDS):
        write_shard(folder / f"a-{i}.tar", [{"__key__": f"k{i}{j}", "txt": f"text {i} {j}"} for j in range(9)])
    with Web(folder) as server:
        yield server


@pytest.fixture
def size(web: Web) -> int:
    return (web.folder / "a-0.tar").stat().st_size


@pytest.fixture
def make_cache(tmp_path: Path, size: int) -> Callable[[float], ShardCache]:
    """A cache for so many shards."""
    return lambda shards: ShardCache(tmp_path / "shards", (shards + 0.5) * size / 1e9)


def text(cache: ShardCache, shard: str, index: ShardIndex, sample: int = 0) -> str:
    (member,) = index.members(sample)
    return cache.read(shard, member.offset, member.size).decode()


def here(cache: ShardCache) -> list[str]:
    return sorted(path.name.removesuffix(".tar.data") for path in cache.folder.glob("*/*.data"))


def put_indexes(web: Web) -> None:
    for shard in list(web.folder.glob("*.tar")):
        load_index(str(shard))


def run(function: Callable[[], None]) -> None:
    """In a process of its own that must end well."""
    child = fork.Process(target=function)
    child.start()
    child.join(60)
    assert child.exitcode == 0


def test_the_oldest_go_and_their_indexes_stay(web: Web, make_cache: Callable[[float], ShardCache]) -> None:
    cache = make_cache(3)
    shards = [web.url(f"a-{i}.tar") for i in range(SHARDS)]
    indexes = []
    for shard in shards:
        indexes.append(cache.index(shard))
        time.sleep(0.01)
    assert here(cache) == ["a-3", "a-4", "a-5"]
    assert text(cache, shards[3], indexes[3]) == "text 3 0"  # now it is the newest
    cache.release()
    count = len(web.requests)
    assert all(cache.index(s).equals(i) for s, i in zip(shards, indexes, strict=True))
    assert len(web.requests) == count  # also of those that went
    assert text(cache, shards[0], indexes[0], 4) == "text 0 4"
    assert here(cache) == ["a-0", "a-3", "a-5"]


def test_an_index_beside_the_shard_saves_fetching_it(web: Web, make_cache: Callable[[float], ShardCache]) -> None:
    put_indexes(web)
    cache, shard = make_cache(2), web.url("a-0.tar")
    index = cache.index(shard)
    assert web.asked("a-0.tar") == [] and here(cache) == []
    assert text(cache, shard, index, 2) == "text 0 2"
    assert web.asked("a-0.tar") == [""]


def test_an_index_of_another_shard_is_found(web: Web, make_cache: Callable[[float], ShardCache], size: int) -> None:
    put_indexes(web)
    (web.folder / "a-1.tar.index").rename(web.folder / "a-0.tar.index")
    cache, shard = make_cache(2), web.url("a-0.tar")
    index = cache.index(shard)  # sizes are equal, so nothing is seen yet
    with pytest.raises(ConfigError, match=r"a-0\.tar is not the one that its index was made of"):
        text(cache, shard, index)


@pytest.mark.parametrize("content", [b"", b"PK no index", b"x" * 5000])
def test_a_broken_index_is_made_of_the_shard(
    web: Web, make_cache: Callable[[float], ShardCache], content: bytes
) -> None:
    (web.folder / "a-0.tar.index").write_bytes(content)
    cache, shard = make_cache(2), web.url("a-0.tar")
    assert text(cache, shard, cache.index(shard)) == "text 0 0"


def manifest(web: Web, **changes: Any) -> None:
    files = sorted(web.folder.glob("*.tar"))
    rows = [
        {
            "name": f.name,
            "samples": 9,
            "bytes": f.stat().st_size,
            "sha256": sha256(f.read_bytes()).hexdigest(),
            **changes,
        }
        for f in files
    ]
    (web.folder / "manifest.json").write_text(json.dumps({"shards": rows}))


def test_the_manifest_is_asked_once_and_compared(web: Web, make_cache: Callable[[float], ShardCache]) -> None:
    manifest(web)
    cache = make_cache(6)
    cache.indexes([web.url(f"a-{i}.tar") for i in range(SHARDS)])
    assert len(web.asked("manifest.json")) == 1
    manifest(web, sha256="0" * 64)
    other = ShardCache(cache.folder.parent / "other")
    with pytest.raises(ConfigError, match=r"shard http://.*a-0\.tar: its SHA-256 is not the one in manifest\.json"):
        other.index(web.url("a-0.tar"))


def test_a_shard_larger_than_the_cache(web: Web, make_cache: Callable[[float], ShardCache]) -> None:
    with pytest.raises(ConfigError, match=r"has 10\.2 kB, but the cache may have 5\.12 kB: raise data\.cache_gb"):
        make_cache(0).index(web.url("a-0.tar"))


def test_processes_fetch_a_shard_once(web: Web, make_cache: Callable[[float], ShardCache]) -> None:
    put_indexes(web)
    cache, shard = make_cache(6), web.url("a-0.tar")
    index = cache.index(shard)
    web.faults["a-0.tar"] = [Fault(after=3000, stall=0.2)]
    children = [fork.Process(target=lambda: text(cache, shard, index)) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0] * 4
    assert web.asked("a-0.tar") == [""]


def test_what_a_living_process_reads_is_not_deleted(
    web: Web, make_cache: Callable[[float], ShardCache], caplog: pytest.LogCaptureFixture
) -> None:
    """A process that holds two shards keeps them while it lives, whatever others need."""
    cache = make_cache(2)
    shards = [web.url(f"a-{i}.tar") for i in range(SHARDS)]
    indexes = [cache.index(shard) for shard in shards]
    ready, go = fork.Event(), fork.Event()

    def hold() -> None:
        cache.limit *= 8  # a process keeps a quarter of the bound
        for i in (0, 1):
            text(cache, shards[i], indexes[i])
        ready.set()
        go.wait(60)
        assert text(cache, shards[0], indexes[0], 8) == "text 0 8"

    child = fork.Process(target=hold)
    child.start()
    assert ready.wait(60)
    with caplog.at_level(logging.WARNING):
        assert text(cache, shards[3], indexes[3]) == "text 3 0"
    assert here(cache) == ["a-0", "a-1", "a-3"]
    assert "beyond its bound" in caplog.text
    go.set()
    child.join(60)
    assert child.exitcode == 0
    assert text(cache, shards[4], indexes[4]) == "text 4 0"
    assert here(cache) == ["a-3", "a-4"]


def test_a_killed_process_leaves_what_is_continued(web: Web, make_cache: Callable[[float], ShardCache]) -> None:
    put_indexes(web)
    cache, shard = make_cache(2), web.url("a-0.tar")
    index = cache.index(shard)
    web.faults["a-0.tar"] = [Fault(after=7000, stall=90.0)]
    child = fork.Process(target=lambda: text(cache, shard, index))
    child.start()
    wait_for(lambda: any(p.stat().st_size == 7000 for p in cache.folder.glob("*/*.part")))
    assert here(cache) == []
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join(60)
    assert text(cache, shard, index, 3) == "text 0 3"
    assert web.asked("a-0.tar") == ["", "bytes=7000-"]
    assert not list(cache.folder.glob("*/*.part"))


def test_left_parts_count_and_go(web: Web, make_cache: Callable[[float], ShardCache], size: int) -> None:
    cache = make_cache(2)
    cache.index(web.url("a-0.tar"))
    left = cache.folder / "other"
    left.mkdir()
    (left / f"x.tar.{size}-00ff.part").write_bytes(b"half")
    os.utime(left / f"x.tar.{size}-00ff.part", (0, 0))
    cache.index(web.url("a-1.tar"))
    assert not list(left.glob("*.part")) and here(cache) == ["a-0", "a-1"]


def test_many_processes_in_a_small_cache(web: Web, make_cache: Callable[[float], ShardCache]) -> None:
    """Everybody reads everything, in another order, where half of it has room."""
    cache = make_cache(3)
    shards = [web.url(f"a-{i}.tar") for i in range(SHARDS)]
    indexes = cache.indexes(shards)

    def read(start: int) -> None:
        for turn in range(12):
            i = (start + turn * (1 + start % 3)) % SHARDS
            assert text(cache, shards[i], indexes[i], turn % 9) == f"text {i} {turn % 9}"

    children = [fork.Process(target=read, args=(start,)) for start in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0] * 4
    cache.index(web.url("a-0.tar"))
    assert len(here(cache)) <= 3 and not list(cache.folder.glob("*/*.part"))


def test_a_fork_reads_on(web: Web, make_cache: Callable[[float], ShardCache]) -> None:
    """The child has its own connections and descriptors, and the parent keeps its own."""
    cache = make_cache(6)
    shards = [web.url(f"a-{i}.tar") for i in range(3)]
    indexes = cache.indexes(shards)
    assert text(cache, shards[0], indexes[0]) == "text 0 0"
    (cache.folder / name_of(shards[1]).folder / "a-1.tar.data").unlink()

    def child() -> None:
        assert text(cache, shards[0], indexes[0], 1) == "text 0 1"
        assert text(cache, shards[1], indexes[1], 2) == "text 1 2"

    run(child)
    assert text(cache, shards[0], indexes[0], 3) == "text 0 3"


def replace(web: Web, name: str) -> None:
    number = name.removesuffix(".tar")[-1]
    write_shard(web.folder / name, [{"__key__": f"n{number}{j}", "txt": f"news {number} {j}"} for j in range(9)])


def test_a_shard_that_changes_while_it_is_used(web: Web, make_cache: Callable[[float], ShardCache]) -> None:
    cache, shard = make_cache(1), web.url("a-0.tar")
    index = cache.index(shard)
    cache.index(web.url("a-1.tar"))
    assert here(cache) == ["a-1"]
    replace(web, "a-0.tar")
    with pytest.raises(RunError, match=r"a-0\.tar was replaced on the server .* `mmcl shards fetch` takes the new one"):
        text(cache, shard, index)


def test_renewing(web: Web, make_cache: Callable[[float], ShardCache]) -> None:
    cache, shard = make_cache(2), web.url("a-0.tar")
    old = cache.index(shard)
    assert cache.renew(shard)[1] == "kept"
    replace(web, "a-0.tar")
    other = make_cache(2)
    other.index(shard)
    new, done = cache.renew(shard)
    assert done == "renewed" and text(cache, shard, new) == "news 0 0"
    with pytest.raises(RunError, match=r"was renewed in .* after this run had opened it"):
        text(other, shard, old)
    (cache.folder / name_of(shard).folder / "a-0.tar.data").unlink()
    assert cache.renew(shard)[1] == "fetched"


def test_stores_in_memory(tmp_path: Path, web: Web) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/shelf/a.tar", (web.folder / "a-0.tar").read_bytes())
    try:
        cache = ShardCache(tmp_path / "shards")
        assert text(cache, "memory://shelf/a.tar", cache.index("memory://shelf/a.tar")) == "text 0 0"
    finally:
        memory.rm("/shelf", recursive=True)


def test_a_manifest_that_was_mended_is_taken(web: Web, make_cache: Callable[[float], ShardCache]) -> None:
    """Also where the index is known, so that nothing else would ask for it again."""
    put_indexes(web)
    (web.folder / "manifest.json").write_text("<html>not found</html>")
    shard = web.url("a-0.tar")
    first = make_cache(2)
    index = first.index(shard)
    with pytest.raises(ConfigError, match=rf"^{web.url('manifest.json')} cannot be read"):
        text(first, shard, index)
    manifest(web)
    later = make_cache(2)
    assert text(later, shard, later.index(shard)) == "text 0 0"
