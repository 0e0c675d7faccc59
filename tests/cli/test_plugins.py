"""A strategy of another package, found through its entry point."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

PACKAGE = Path(__file__).parent / "plugin_package"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package in it, as pip puts it there."""
    folder = tmp_path_factory.mktemp("plugin")
    source = shutil.copytree(PACKAGE, folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
    target = folder / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--disable-pip-version-check", "--target", target, source], check=True, timeout=120)
    return target


def test_its_short_name_is_listed_and_works_in_yaml(installed: Path, home: Path, tmp_path: Path) -> None:
    listed = tiny.mmcl("list", "strategies", PYTHONPATH=str(installed))
    assert "Anchor" in listed.stdout and "from the package mmcl-anchor" in listed.stdout
    strategies = [{"class_path": "Anchor", "init_args": {"strength": 1.0}}]
    file = tiny.write_config(tmp_path, tiny.config(home) | {"strategies": strategies}, name="anchored")
    ran = tiny.mmcl("fit", "--config", file, "--run_dir", tmp_path / "run", PYTHONPATH=str(installed))
    assert ran.returncode == 0, ran.stderr
    results = tiny.results(tmp_path / "run")
    assert results["strategies"][0]["class_path"] == "mmcl_anchor.Anchor"
    assert results["strategies"][0]["arguments"] == {"strength": 1.0}
    rows = results["matrix"]["values"]
    assert rows[0] == rows[1] == rows[2]  # with strength 1 it goes back all the way
