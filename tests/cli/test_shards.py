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


def test_index_of_folders_in_parallel(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder in a folder, a hidden file, an index older than its tar, one that is kept, two shards of one name."""
    for name in ("one/x", "one/.x", "two/x", "two/y"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_shard(tmp_path / f"{name}.tar", [{"__key__": name.replace(".", ""), "txt": name}])
    assert main(["shards", "index", str(tmp_path / "one"), str(tmp_path / "two" / "y.tar")]) == 0
    write_shard(tmp_path / "two" / "y.tar", [{"__key__": f"k{j}", "txt": "text"} for j in range(5)])
    capsys.readouterr()
    assert main(["shards", "index", "--workers", "2", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.removeprefix(f"{tmp_path}/") for line in lines] == [
        "one/x.tar: 1 samples, kept",
        "two/x.tar: 1 samples, built",
        "two/y.tar: 5 samples, rebuilt",
        "3 shards, 7 samples",
    ]


def test_index_goes_on_behind_a_damaged_shard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "abc":
        write_shard(tmp_path / f"{name}.tar", [{"__key__": "k", "txt": name}])
    (tmp_path / "b.tar").write_bytes(b"")
    assert main(["shards", "index", "--workers", "0", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert "b.tar: the file is empty; make or fetch the shard again\n" in out and out.endswith("3 shards, 2 samples\n")
    assert "1 of 3 shards cannot be indexed" in err
    assert (tmp_path / "c.tar.index").is_file() and not (tmp_path / "b.tar.index").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lint", "{0}"], "has no tar files in it"),
        (["show", "--out", "x.pdf", "{0}"], "a contact sheet is a .png or an .html file"),
        (["show", "--samples", "0", "{0}"], "must be 1 or more"),
        (["index", "--workers", "-1", "{0}"], "'-1' is no number of processes"),
    ],
)
def test_arguments_that_cannot_be(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["shards", *(a.format(tmp_path) for a in arguments)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
