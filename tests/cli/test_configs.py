"""Every file in configs/ loads: each key is known, each class is found; its first line is the command that runs it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmcl import presets

CONFIGS = sorted(presets.FOLDER.rglob("*.yaml"))


def name(file: Path) -> str:
    return file.relative_to(presets.FOLDER).with_suffix("").as_posix()


@pytest.mark.parametrize("file", CONFIGS, ids=name)
def test_the_first_line_is_the_command(file: Path) -> None:
    command = shlex.split(file.read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("#"))
    assert command[:2] == ["mmcl", "fit"], f"{file} begins with no command"
    given = [value for flag, value in pairwise(command) if flag == "--config"]
    assert file in [presets.find(value) for value in given]


@pytest.mark.parametrize("file", CONFIGS, ids=name)
def test_it_loads(mmcl: Callable[..., Any], file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a preset does not depend on the working directory
    answer = mmcl("fit", "--config", name(file), "--print_config")
    assert answer.code == 0, answer.err
    content = yaml.safe_load(answer.out)
    assert content["model"]["class_path"] and content["data"]["stream"]["class_path"]
    assert not list(tmp_path.iterdir())


def test_there_are_configs() -> None:
    assert CONFIGS and set(presets.listing()) == {name(file) for file in CONFIGS}
