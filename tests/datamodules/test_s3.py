"""Shards in an object store: a real client and a real server on 127.0.0.1."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from s3 import KEY, S3

from mmcl.benchmarks.throughput import scale
from mmcl.datamodules import remote, transfer
from mmcl.datamodules.cache import ShardCache
from mmcl.datamodules.index import load_index
from mmcl.datamodules.shards import expand_shards
from mmcl.errors import ConfigError, RunError
from mmcl.stream import Source


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    with S3() as running:
        yield running


@pytest.fixture
def s3(server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY["aws_access_key_id"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEY["aws_secret_access_key"])
    monkeypatch.setenv("AWS_DEFAULT_REGION", KEY["region_name"])
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(remote, "_filesystems", {})  # the environment is read once
    monkeypatch.setattr(transfer, "WAITS", (0.01, 0.01))
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)  # each with a pause of its own
    server.requests.clear()
    server.faults.clear()
    return server


@pytest.fixture
def local(make_source: Callable[..., Source]) -> Source:
    return make_source((20, 20, 20))


@pytest.fixture
def far(s3: S3, local: Source) -> Source:
    for path in map(Path, local.shards):
        s3.put(path, f"set/{path.name}")
    return Source([f"s3://{s3.bucket}/set/*.tar"])


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_batches_as_from_files(
    far: Source, local: Source, workers: int, make_data: Any, draw_batches: Any, same: Any, tmp_path: Path
) -> None:
    here = draw_batches(make_data(local))
    size = Path(local.shards[0]).stat().st_size
    options = {"cache_dir": str(tmp_path / "shards"), "cache_gb": 2.2e-9 * size, "window": 2, "workers": workers}
    here = draw_batches(make_data(local, window=2))
    assert all(same(a, b) for a, b in zip(here, draw_batches(make_data(far, **options)), strict=True))


def test_an_index_in_the_store_saves_fetching(s3: S3, far: Source, local: Source, tmp_path: Path) -> None:
    key = f"set/{Path(local.shards[0]).name}"
    index = load_index(local.shards[0])
    s3.put(Path(f"{local.shards[0]}.index"), f"{key}.index")
    cache = ShardCache(tmp_path / "shards")
    assert cache.index(f"s3://{s3.bucket}/{key}").equals(index)
    assert s3.asked(key) == []
    s3.client.delete_object(Bucket=s3.bucket, Key=f"{key}.index")


def test_requests_are_those_of_the_plan(
    s3: S3, far: Source, local: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`docs/scale.md` counts on so many for each shard; the manifest is asked for once a folder."""
    for path in map(Path, local.shards):
        load_index(str(path))
        s3.put(Path(f"{path}.index"), f"set/{path.name}.index")
    monkeypatch.setattr(transfer, "CHUNK", 30_000)
    monkeypatch.setattr(scale, "CHUNK", 30_000)
    cache = ShardCache(tmp_path / "shards")
    addresses = expand_shards(far.shards, remote=True)
    s3.requests.clear()
    for address in addresses:
        cache.index(address)
        cache.read(address, 512, 10)
    shards = [r for r in s3.requests if "manifest" not in r[1] and ".tar" in r[1]]
    sizes = [Path(path).stat().st_size for path in local.shards]
    assert len(shards) == sum(map(scale.requests_of, sizes))
    for path in map(Path, local.shards):
        s3.client.delete_object(Bucket=s3.bucket, Key=f"set/{path.name}.index")


def test_pieces_are_continued(s3: S3, local: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "CHUNK", 30_000)
    address = s3.put(Path(local.shards[0]), "pieces/a.tar")
    size = Path(local.shards[0]).stat().st_size
    cache = ShardCache(tmp_path / "shards")
    s3.faults[:] = [503, "drop"]
    cache.index(address)
    assert cache.read(address, 0, size) == Path(local.shards[0]).read_bytes()
    asked = s3.asked("pieces/a.tar")
    assert len(asked) > len(set(asked)) == 3  # some were asked for again


def test_a_store_that_fails_for_good(s3: S3, local: Source, tmp_path: Path) -> None:
    address = s3.put(Path(local.shards[0]), "bad/a.tar")
    s3.faults[:] = [503] * 100
    with pytest.raises(RunError, match=rf"^{address} cannot be fetched: .*\(tried 3 times\)") as error:
        ShardCache(tmp_path / "shards").index(address)
    assert "\n" not in str(error.value) and "very-secret" not in str(error.value)


def test_what_is_not_there(s3: S3, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "shards")
    for address in (f"s3://{s3.bucket}/no.tar", "s3://no-such-bucket/no.tar"):
        with pytest.raises(ConfigError, match=f"shard {address} does not exist"):
            cache.index(address)
    with pytest.raises(ConfigError, match="no shard matches"):
        expand_shards([f"s3://{s3.bucket}/no*.tar"], remote=True)


def test_without_credentials(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"may not be read .*credentials come from the environment"):
        ShardCache(tmp_path / "shards").index(f"s3://{s3.bucket}/a.tar")


def test_an_object_that_is_replaced(s3: S3, local: Source, tmp_path: Path) -> None:
    address = s3.put(Path(local.shards[0]), "new/a.tar")
    cache = ShardCache(tmp_path / "shards")
    cache.index(address)
    (data,) = cache.folder.glob("*/*.data")
    data.unlink()
    s3.put(Path(local.shards[1]), "new/a.tar")
    with pytest.raises(RunError, match="was replaced on the server after it had been opened"):
        cache.read(address, 0, 10)


def test_a_fork_has_its_own_connections(s3: S3, local: Source, tmp_path: Path) -> None:
    """After the parent has talked to the store, children and the parent go on talking."""
    one, two, three = (s3.put(Path(shard), f"fork/{i}.tar") for i, shard in enumerate(local.shards))
    cache = ShardCache(tmp_path / "shards")
    cache.index(one)
    child = multiprocessing.get_context("fork").Process(target=lambda: cache.index(two))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert len(cache.index(three)) == 20
