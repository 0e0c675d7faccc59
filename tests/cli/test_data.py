"""`mmcl data`: the table, and fetching; how archives are fetched is tested with the core."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from mmcl import assets
from mmcl.assets import Asset

Command = Callable[..., Any]


def build(unpacked: Mapping[str, Path], out: Path) -> None:
    (out / "file").touch()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MMCL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        Asset(name, f"Some {name}s", "CC0-1.0", "A maker", 2.5, (), build, needs=needs)
        for name, needs in (("bird", ()), ("cat", ("bird",)))
    ]
    monkeypatch.setattr(assets, "catalogue", lambda: {asset.name: asset for asset in found})


def test_list_is_a_table_of_everything(mmcl: Command, cache: Path) -> None:
    answer = mmcl("data", "list")
    assert answer.code == 0
    lines = answer.out.splitlines()
    assert lines[0].split() == ["name", "MB", "here", "licence", "content"]
    rows = {line.split()[0]: line for line in lines[1:]}
    assert set(rows) == set(assets.catalogue())
    assert rows["minilm"].split()[1:4] == ["83.5", "no", "Apache-2.0"]
    assert all("; for " in row for row in rows.values())
    assert not cache.exists()  # listing writes nothing


def test_get_says_licence_and_source(mmcl: Command, cache: Path, known: None) -> None:
    answer = mmcl("data", "get", "cat")
    assert answer.code == 0, answer.err
    place = cache / "assets/cat"
    lines = ["cat: Some cats", "  licence: CC0-1.0", "  source: A maker", "  making bird", "  making cat", f"  {place}"]
    assert answer.out.splitlines() == lines
    assert (place / "file").is_file()
    assert [line.split()[2] for line in mmcl("data", "list").out.splitlines()[1:]] == ["yes", "yes"]
    again = mmcl("data", "get", "cat", "bird")
    assert again.code == 0 and "making" not in again.out


def test_an_unknown_name_fetches_nothing(mmcl: Command, cache: Path, known: None) -> None:
    answer = mmcl("data", "get", "bird", "cart")
    assert answer.code == 2 and answer.out == ""
    assert answer.err == "mmcl: error: there is no asset 'cart'; did you mean cat? (mmcl data list)\n"
    assert not cache.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["get"], "mmcl data get: say what"),
        (["fetch", "cat"], "invalid choice: 'fetch'"),
        ([], "arguments are required: action"),
        (["list", "cat"], "mmcl data list takes no names"),
    ],
)
def test_wrong_arguments_are_one_line(arguments: list[str], message: str, mmcl: Command, known: None) -> None:
    answer = mmcl("data", *arguments)
    assert answer.code == 2
    assert message in answer.err and answer.err.count("\n") == 1
