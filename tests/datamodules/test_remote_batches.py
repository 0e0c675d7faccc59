"""Batches out of remote shards: those of local ones, whatever happens on the way."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from web import Fault, Web, wait_for

from mmcl.datamodules import transfer
from mmcl.datamodules.index import load_index
from mmcl.datamodules.reader import SourceReader
from mmcl.errors import ConfigError, RunError
from mmcl.stream import Source

SIZES = (30, 30, 30, 30)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "WAITS", (0.01, 0.01))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def local(make_source: Callable[..., Source]) -> Source:
    """Four shards with an index beside each."""
    source = make_source(SIZES)
    for shard in source.shards:
        load_index(shard)
    return source


@pytest.fixture
def web(tmp_path: Path, local: Source) -> Iterator[Web]:
    with Web(tmp_path) as server:
        yield server


@pytest.fixture
def remote(web: Web) -> Source:
    return Source([web.url("train-s-{000..003}.tar")])


@pytest.fixture
def gigabytes(local: Source) -> float:
    """A cache for two of the four shards."""
    return 2.2e-9 * Path(local.shards[0]).stat().st_size


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_batches_as_from_files(
    local: Source,
    remote: Source,
    gigabytes: float,
    workers: int,
    make_data: Any,
    draw_batches: Any,
    same: Any,
    tmp_path: Path,
) -> None:
    here = draw_batches(make_data(local, window=2), steps=10)
    options = {"window": 2, "cache_dir": str(tmp_path / "shards"), "cache_gb": gigabytes, "workers": workers}
    far = draw_batches(make_data(remote, **options), steps=10)
    assert all(same(a, b) for a, b in zip(here, far, strict=True))
    data = make_data(remote, **options)
    evaluated = [key for batch in data.eval_loader(data.stream.tasks[0].train[0]) for key in batch["__key__"]]
    assert len(evaluated) == len(set(evaluated)) == sum(SIZES)


def test_a_killed_run_goes_on_with_the_same_batches(
    web: Web,
    local: Source,
    remote: Source,
    gigabytes: float,
    make_data: Any,
    draw_batches: Any,
    same: Any,
    tmp_path: Path,
) -> None:
    """It dies while a shard is half there; the next one begins in the middle of the epoch."""
    wanted = draw_batches(make_data(local, window=1), steps=15)
    options = {"window": 1, "cache_dir": str(tmp_path / "shards"), "cache_gb": gigabytes}
    reading, writing = os.pipe()

    def run() -> None:
        data = make_data(remote, **options)
        loader = data.train_loader(data.stream.tasks[0], (), positions={}, segment=0, first_step=0, steps=15)
        for batch, expected in zip(loader, wanted, strict=True):
            if not same(batch, expected):
                os._exit(1)
            os.write(writing, b"+")

    begun = int(wanted[0]["__key__"][0].removeprefix("s")) // SIZES[0]
    for number in {0, 1, 2, 3} - {begun}:  # whichever comes second
        web.faults[f"train-s-{number:03d}.tar"] = [Fault(after=9000, stall=90.0)]
    child = multiprocessing.get_context("fork").Process(target=run)
    child.start()
    wait_for(lambda: any(p.stat().st_size == 9000 for p in (tmp_path / "shards").glob("*/*.part")))
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join(60)
    os.close(writing)
    trained = len(os.read(reading, 100))
    os.close(reading)
    assert trained == 3  # whole batches of the first shard
    web.faults.clear()
    data = make_data(remote, **options)
    rest = draw_batches(data, steps=15, first_step=trained)
    assert len(rest) == 15 - trained
    assert all(same(a, b) for a, b in zip(rest, wanted[trained:], strict=True))
    assert "bytes=9000-" in [limits for _, limits in web.requests]


def test_a_cache_too_small_for_a_window_is_refused(
    remote: Source, gigabytes: float, make_data: Any, tmp_path: Path
) -> None:
    data = make_data(remote, window=3, cache_dir=str(tmp_path / "shards"), cache_gb=gigabytes)
    with pytest.raises(ConfigError, match=r"task 't': the remote shards .* raise data\.cache_gb or lower data\.window"):
        data.check()
    make_data(remote, window=2, cache_dir=str(tmp_path / "shards"), cache_gb=gigabytes).check()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_server_that_goes_away_ends_the_run_with_one_line(
    web: Web, remote: Source, workers: int, make_data: Any, draw_batches: Any, tmp_path: Path
) -> None:
    data = make_data(remote, cache_dir=str(tmp_path / "shards"), workers=workers)
    data.check()
    for name in sorted(p.name for p in tmp_path.glob("*.tar")):
        web.faults[name] = [Fault(status=503)] * 50
    with pytest.raises(RunError, match=r"cannot be fetched: HTTP 503 Service Unavailable \(tried 3 times\)"):
        draw_batches(data)


def test_messages_have_no_credentials(web: Web, tmp_path: Path) -> None:
    shard = web.url("train-s-000.tar", "joe:secret@", "?token=secret")
    reader = SourceReader(Source([shard]))
    assert reader.where(0) == f"sample 's00000' in shard {web.url('train-s-000.tar')}?..."
    assert "token=secret" in web.requests[0][0] and web.headers[0]["Authorization"].startswith("Basic ")
    kept = [path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert kept and not any(b"secret" in content for content in kept)
