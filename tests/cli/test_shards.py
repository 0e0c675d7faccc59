"""`mmcl shards`."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmcl.cli import main
from mmcl.datamodules import write_shard


def test_index_builds_and_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(2):
        write_shard(tmp_path / f"a-{i}.tar", [{"__key__": f"k{j}", "txt": "text"} for j in range(3 + i)])
    assert main(["shards", "index", str(tmp_path / "a-{0..1}.tar")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2 shards, 7 samples"
    assert (tmp_path / "a-0.tar.index").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "required"), (["bake"], "invalid choice: 'bake'"), (["index", "no.tar"], "no.tar does not exist")],
)
def test_errors_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shards", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
