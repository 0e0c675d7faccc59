"""Fetching from a web server that fails, is slow, or lies about lengths."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from web import Fault, Web

from mmcl.datamodules import transfer, write_shard
from mmcl.datamodules.cache import ShardCache
from mmcl.datamodules.index import load_index
from mmcl.errors import ConfigError, MmclError, RunError

NAME = "a.tar"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "WAITS", (0.01, 0.01))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def web(tmp_path: Path, make_samples: Any) -> Iterator[Web]:
    folder = tmp_path / "web"
    folder.mkdir()
    write_shard(folder / NAME, make_samples(20))
    with Web(folder) as server:
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    return ShardCache(tmp_path / "shards", gigabytes=0.001)


def fetched(cache: ShardCache, web: Web) -> bytes:
    """The whole shard through the cache."""
    url = web.url(NAME)
    cache.index(url)
    return cache.read(url, 0, (web.folder / NAME).stat().st_size)


def failure(cache: ShardCache, web: Web, kind: type[MmclError] = RunError, address: str | None = None) -> str:
    with pytest.raises(kind) as error:
        cache.index(address or web.url(NAME))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_shard_is_fetched_once_and_whole(cache: ShardCache, web: Web, tmp_path: Path) -> None:
    assert fetched(cache, web) == (web.folder / NAME).read_bytes()
    assert cache.index(web.url(NAME)).equals(load_index(str(web.folder / NAME)))
    assert web.asked(NAME) == [""]
    count = len(web.requests)
    later = ShardCache(tmp_path / "shards")
    assert fetched(later, web) == (web.folder / NAME).read_bytes()
    assert len(web.requests) == count  # a known shard costs no request


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_a_failing_server_is_asked_again(cache: ShardCache, web: Web, status: int) -> None:
    web.faults[NAME] = [Fault(status=status)] * 2
    assert fetched(cache, web) == (web.folder / NAME).read_bytes()
    assert web.asked(NAME) == ["", "", ""]


def test_dropped_connections_are_continued(cache: ShardCache, web: Web) -> None:
    # Four faults with two pauses: whoever makes progress has all attempts anew.
    web.faults[NAME] = [Fault(after=5000), Fault(after=3000), Fault(after=1), Fault(after=7000)]
    assert fetched(cache, web) == (web.folder / NAME).read_bytes()
    assert web.asked(NAME) == ["", "bytes=5000-", "bytes=8000-", "bytes=8001-", "bytes=15001-"]


def test_a_slow_server_is_asked_again(cache: ShardCache, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "TIMEOUT", 0.5)
    web.faults[NAME] = [Fault(after=4000, stall=30.0), Fault(after=0, stall=30.0)]
    assert fetched(cache, web) == (web.folder / NAME).read_bytes()
    assert web.asked(NAME) == ["", "bytes=4000-", "bytes=4000-"]


def test_a_server_that_continues_nothing_begins_anew(cache: ShardCache, web: Web) -> None:
    web.ranges = False
    web.faults[NAME] = [Fault(), Fault(after=5000), Fault(after=3000)]  # the first one is asked for the length
    assert fetched(cache, web) == (web.folder / NAME).read_bytes()


def test_without_a_tag_nothing_is_continued_later(cache: ShardCache, web: Web) -> None:
    web.tags = False
    web.faults[NAME] = [Fault(after=5000)] + [Fault(status=500)] * 3
    failure(cache, web)
    assert fetched(cache, web) == (web.folder / NAME).read_bytes()
    assert web.asked(NAME)[-1] == ""


def test_what_arrived_is_continued_by_the_next_run(cache: ShardCache, web: Web) -> None:
    web.faults[NAME] = [Fault(after=5000)] + [Fault(status=500)] * 3
    failure(cache, web)
    assert fetched(cache, web) == (web.folder / NAME).read_bytes()
    assert web.asked(NAME)[-1] == "bytes=5000-"


def test_the_end_of_patience_is_one_line(cache: ShardCache, web: Web) -> None:
    web.faults[NAME] = [Fault(status=503)] * 9
    message = failure(cache, web, address=web.url(NAME, "joe:secret@"))
    assert message.startswith(f"{web.url(NAME)} cannot be fetched: HTTP 503")
    assert "tried 3 times" in message


def test_no_server(cache: ShardCache) -> None:
    with pytest.raises(
        RunError, match=r"^http://127\.0\.0\.1:1/a\.tar\?\.\.\. cannot be fetched: .*127\.0\.0\.1"
    ) as error:
        cache.index("http://joe:secret@127.0.0.1:1/a.tar?sig=secret")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("claim", [20_000, 90_000])
def test_a_server_that_lies_about_the_length(cache: ShardCache, web: Web, claim: int) -> None:
    """Too short: the archive is cut. Too long: what is missing never comes."""
    web.claim[NAME] = claim
    real = (web.folder / NAME).stat().st_size
    assert 20_000 < real < 90_000
    if claim < real:
        message = failure(cache, web, ConfigError)
        assert web.url(NAME) in message and "the file ends" in message
    else:
        assert "cannot be fetched" in failure(cache, web)
    assert not list(cache.folder.glob("*/*.data"))


def test_a_length_that_changes(cache: ShardCache, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = transfer.ask
    monkeypatch.setattr("mmcl.datamodules.cache.ask", lambda url: ask(url)._replace(size=50_000))
    assert "it said 50000 bytes, and then 71680" in failure(cache, web)


def test_no_length(cache: ShardCache, web: Web) -> None:
    web.ranges = web.lengths = False
    assert "the server does not say how long the file is" in failure(cache, web)


def test_a_missing_and_a_forbidden_shard(cache: ShardCache, web: Web) -> None:
    assert "no.tar?... does not exist" in failure(cache, web, ConfigError, web.url("no.tar", query="?id=5"))
    web.denied.add(NAME)
    message = failure(cache, web, ConfigError, web.url(NAME, "joe:secret@"))
    assert message.startswith(f"shard {web.url(NAME)} may not be read (HTTP 403)") and "secret" not in message


def test_an_empty_shard(cache: ShardCache, web: Web) -> None:
    (web.folder / NAME).write_bytes(b"")
    assert f"shard {web.url(NAME)}: the file is empty" in failure(cache, web, ConfigError)


def test_damage_on_the_way_is_fetched_once_more(cache: ShardCache, web: Web) -> None:
    """What a killed process left turns out to be wrong when the whole is checked."""
    web.faults[NAME] = [Fault(after=5000)] + [Fault(status=500)] * 3
    failure(cache, web)
    (part,) = cache.folder.glob("*/*.part")
    part.write_bytes(b"\xff" * 5000)
    assert fetched(cache, web) == (web.folder / NAME).read_bytes()
    assert web.asked(NAME)[-2:] == ["bytes=5000-", ""]


def test_damage_on_the_server_names_the_address(cache: ShardCache, web: Web) -> None:
    (web.folder / NAME).write_bytes((web.folder / NAME).read_bytes()[:20_000])
    message = failure(cache, web, ConfigError)
    assert f"shard {web.url(NAME)}: " in message and "the file ends" in message and str(cache.folder) not in message


def test_a_full_disk(cache: ShardCache, web: Web) -> None:
    web.faults[NAME] = [Fault(after=5000)] + [Fault(status=500)] * 3
    failure(cache, web)
    (part,) = cache.folder.glob("*/*.part")
    part.unlink()
    part.symlink_to("/dev/full")
    assert "No space left on device; make room there" in failure(cache, web)


def test_a_disk_with_too_little_room(cache: ShardCache, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr("mmcl.datamodules.eviction.shutil.disk_usage", lambda path: usage)
    assert "has 1 kB free on its disk and needs 71.7 kB; make room there" in failure(cache, web)


def test_a_cache_that_cannot_be_made(web: Web, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot be written: Not a directory; make room" in failure(ShardCache(tmp_path / "file" / "cache"), web)
