"""`mmcl shards write` on a Ray cluster of two workers on this machine: the bytes are those of the local writer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from written import fill, picture, read, reasons

from mmcl.datamodules.shards import expand_shards
from mmcl.datamodules.writing import Options, Recipe, cluster, write_set
from mmcl.errors import ConfigError, RunError


@pytest.fixture(scope="module")
def two_workers() -> Iterator[None]:
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100_000_000,
        _node_ip_address="127.0.0.1",
    )
    yield
    ray.shutdown()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    files: dict[str, bytes | str] = {f"class{i % 3}/{i:02d}.png": picture(i) for i in range(40)}
    return fill(tmp_path / "pictures", files)


def options(pictures: Path, to: Path, **changes: Any) -> Options:
    recipe = Recipe(resize=6, encode="jpg")
    return Options((str(pictures),), to, samples_per_shard=7, recipe=recipe, shuffle=True, **changes)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.mark.slow
def test_the_same_bytes(two_workers: None, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In several rounds, with a split, a bad row, and an interruption after which the local writer goes on."""
    (pictures / "class1" / "07.png").write_bytes(b"no picture")
    monkeypatch.setattr(cluster.cluster_map, "__defaults__", (5, 4))
    split = {"split": {"train": 0.7, "test": 0.3}, "max_bad": 1}
    write_set(options(pictures, tmp_path / "local", **split), say=lambda line: None)
    write_set(options(pictures, tmp_path / "ray", engine="ray", **split), say=lambda line: None)
    assert files(tmp_path / "local") == files(tmp_path / "ray")
    assert len(read(tmp_path / "ray")) == 39 and set(reasons(tmp_path / "ray")) == {"07.png"}
    said: list[str] = []

    def stop(line: str) -> None:
        said.append(line)
        if len(said) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_set(options(pictures, tmp_path / "cut", engine="ray", **split), say=stop)
    write_set(options(pictures, tmp_path / "cut", **split), say=said.append)
    assert files(tmp_path / "cut") == files(tmp_path / "local") and len(said) == len(set(said))


@pytest.mark.slow
def test_results_come_in_order_and_a_failure_is_one_line(two_workers: None) -> None:
    """What goes to the cluster must be found there, so it is a function that every Python has."""
    assert list(cluster.cluster_map(int, map(str, range(20)), 3, 4)) == list(range(20))
    assert list(cluster.cluster_map(int, [])) == []
    with pytest.raises(RunError, match=r"^source 'train': shard missing.tar does not exist; relative paths begin in "):
        list(cluster.cluster_map(expand_shards, [["missing.tar"]]))
    with pytest.raises(RunError, match=r"^the Ray cluster failed \(.*\); run the same command again$"):
        list(cluster.cluster_map(int, ["1", "2", "x", "4"], 2, 2))


def test_without_ray(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"--engine ray takes Ray.*pip install 'mmcl\[ray\]'"):
        write_set(options(pictures, tmp_path / "out", engine="ray"))
