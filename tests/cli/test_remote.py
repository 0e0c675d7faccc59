"""Remote shards on the command line."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from web import Fault, Web

from mmcl.datamodules import transfer


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(transfer, "WAITS", (0.01, 0.01))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("MMCL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def web(home: Path, tmp_path: Path) -> Iterator[Web]:
    folder = tmp_path / "web"
    folder.mkdir()
    for shard in home.glob("*.tar"):
        shutil.copy(shard, folder)
    with Web(folder) as server:
        yield server


@pytest.fixture
def config(web: Web, home: Path, tmp_path: Path) -> Path:
    """``tiny.yaml`` with a URL in place of every shard."""
    settings = tiny.config(home)

    def far(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: far(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [far(inner) for inner in value]
        return web.url(Path(value).name) if isinstance(value, str) and value.endswith(".tar") else value

    settings["data"] = far(settings["data"])
    return tiny.write_config(tmp_path, settings, name="far")


def test_a_run_equals_one_from_files(
    mmcl: Callable[..., Any], config: Path, finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = ("fit", "--config", config, "--run_dir", tmp_path / "run")
    answer = mmcl(*run)
    assert answer.code == 0, answer.err
    assert tiny.differences(finished, tmp_path / "run") == []
    again = mmcl(*run, "--data.cache_dir", tmp_path / "other", "--data.cache_gb", "3")
    assert again.code == 0 and "is finished; nothing to do" in caplog.text  # the cache is no part of what a run is


def test_refusals_and_faults(mmcl: Callable[..., Any], config: Path, web: Web, tmp_path: Path) -> None:
    run = ("fit", "--config", config, "--run_dir", tmp_path / "run")
    (web.folder / "dots.tar").rename(web.folder / "away.tar")
    answer = mmcl(*run)
    assert answer.code == 2 and f"shard {web.url('dots.tar')} does not exist" in answer.err
    assert answer.err.strip().count("\n") == 0 and not (tmp_path / "run").exists()
    (web.folder / "away.tar").rename(web.folder / "dots.tar")
    web.faults["dots.tar"] = [Fault(status=500)] * 9
    answer = mmcl(*run)
    assert answer.code == 1 and f"{web.url('dots.tar')} cannot be fetched: HTTP 500" in answer.err.splitlines()[-1]


def test_fetch(mmcl: Callable[..., Any], web: Web, tmp_path: Path) -> None:
    fetch = ("shards", "fetch", "--cache_dir", tmp_path / "shards", web.url("{dots,held}.tar", "joe:secret@"))
    answer = mmcl(*fetch)
    assert answer.code == 0
    assert answer.out.splitlines() == [
        f"{web.url('dots.tar')}: 24 samples, fetched",
        f"{web.url('held.tar')}: 15 samples, fetched",
        f"2 shards, 39 samples: 2 fetched; they lie in {tmp_path / 'shards'}",
    ]
    assert mmcl(*fetch).out.splitlines()[-1].startswith("2 shards, 39 samples: 2 kept")
    shutil.copy(web.folder / "stripes.tar", web.folder / "dots.tar")
    assert mmcl(*fetch).out.splitlines()[0].endswith("24 samples, renewed")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["here.tar"], "does not exist"),
        (["pipe:cat x"], "would run a shell command"),
        (["--cache_gb", "0", "https://h/a.tar"], "cache_gb is 0.0; it must be above 0"),
        (["--cache_gb", "nan", "https://h/a.tar"], "must be above 0"),
    ],
)
def test_fetch_refuses(mmcl: Callable[..., Any], arguments: list[str], message: str) -> None:
    answer = mmcl("shards", "fetch", *arguments)
    assert answer.code == 2 and message in answer.err and answer.err.count("\n") == 1


def test_fetch_has_nothing_to_do_for_files(mmcl: Callable[..., Any], home: Path) -> None:
    answer = mmcl("shards", "fetch", home / "dots.tar")
    assert answer.code == 2 and "is local: there is nothing to fetch" in answer.err


def test_other_actions_refuse_urls(mmcl: Callable[..., Any]) -> None:
    for action in ("index", "lint", "show"):
        answer = mmcl("shards", action, "https://joe:secret@h/a.tar")
        assert answer.code == 2 and "only local shards are looked into" in answer.err and "secret" not in answer.err
