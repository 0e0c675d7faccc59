"""What docs/remote.md says of schemes, waits and defaults is what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from mmcl.datamodules import StreamDataModule, remote, transfer
from mmcl.datamodules.cache import GIGABYTES
from mmcl.datamodules.shards import expand_shards
from mmcl.stream import Budget, Source, Stream, Task

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "remote.md").read_text()


def test_the_table_of_schemes() -> None:
    rows = re.findall(r"^\| (`\w+://.*?) \| (\w+) \| (.*?) \|", PAGE, flags=re.M)
    told = {scheme: (package, install) for urls, package, install in rows for scheme in re.findall(r"`(\w+)://", urls)}
    assert set(told) == set(remote.SCHEMES) - {"memory"}
    for scheme, (package, extra) in remote.STORES.items():
        assert scheme == "memory" or told[scheme] == (package, f"`pip install 'mmcl[{extra}]'`")


def test_the_waits() -> None:
    *first, last = transfer.WAITS
    assert f"after {', '.join(f'{wait:g}' for wait in first)} and {last:g}\nseconds" in PAGE
    assert transfer.TIMEOUT == 60.0  # a minute of silence


def test_the_config_is_read(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.S)
    settings = yaml.safe_load(block)["data"]
    (task,) = settings["stream"]["init_args"]["tasks"]
    stream = Stream("s", [Task(task["name"], [Source(**task["train"][0])], Budget(**task["budget"]))])
    data = StreamDataModule(stream, cache_dir=settings["cache_dir"], cache_gb=settings["cache_gb"])
    assert data.cache.limit == 200e9 and str(data.cache.folder) == "/scratch/shards"
    assert len(expand_shards(stream.tasks[0].train[0].shards, remote=True)) == 100
    assert f"# default: {GIGABYTES:g}\n" in block
