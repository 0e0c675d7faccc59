"""The command line in this process, and one finished run that tests look at."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny

from mmcl.cli import main


@dataclass
class Answer:
    """What a command gave back."""

    code: int
    out: str
    err: str


def call(*arguments: str | Path) -> Answer:
    """Run the command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(a) for a in arguments])
    return Answer(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def mmcl() -> Callable[..., Answer]:
    return call


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards, model and ``tiny.yaml``; nothing is written here after that."""
    folder = tmp_path_factory.mktemp("home")
    tiny.build(folder)
    return folder


@pytest.fixture(scope="session")
def finished(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, for reading."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    answer = call("fit", "--config", home / "tiny.yaml", "--run_dir", folder)
    assert answer.code == 0, answer.err
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, for writing."""
    return shutil.copytree(finished, tmp_path / "copy")


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield folder


@pytest.fixture
def changed(home: Path, tmp_path: Path) -> Callable[..., Path]:
    """A config with dotted keys changed."""

    def write(**changes: Any) -> Path:
        dotted = {key.replace("__", "."): value for key, value in changes.items()}
        return tiny.write_config(tmp_path, tiny.config(home), dotted, name="changed")

    return write
