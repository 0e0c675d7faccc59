"""What the commands behind `docs/results.md` share: `mmcl fit` on one thread, its figures, and a page to fill."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmcl.run_folder import write_text


class Record:
    """What a table needs of finished runs, in a JSON file that outlives their folders.

    Args:
        file: it is read where it exists and written after every run.
        keep: takes the figures out of a run's ``results.json``.
    """

    def __init__(self, file: Path, keep: Callable[[Mapping[str, Any]], dict[str, Any]]) -> None:
        self.file, self.keep = file, keep
        self.runs = self._read()

    def run(self, name: str, arguments: Sequence[str], folder: Path, seed: int) -> None:
        """`mmcl fit`, unless a run of that name with those arguments is recorded; then its figures are recorded.

        A preset that has changed under its name is not noticed: take the run's line out of the file.

        Args:
            name: of the run in the file.
            arguments: of `mmcl fit`, without seed and folder.
            folder: of the run.
            seed: of the run.
        """
        if self.figures(name, arguments, seed) is not None or not fit(arguments, folder, seed):
            return
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        versions, figures = results["run"]["versions"], self.keep(results)
        self._add(name, {"command": _command(arguments, seed), "versions": versions, "figures": figures})

    def figures(self, name: str, arguments: Sequence[str], seed: int) -> dict[str, Any] | None:
        """Of a recorded run; None where there is none of that name with those arguments."""
        found = self.runs.get(name)
        return found["figures"] if found is not None and found["command"] == _command(arguments, seed) else None

    def _add(self, name: str, run: dict[str, Any]) -> None:
        """To the file as it is by now: other threads and processes add to it, too."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(self.file.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            self.runs = {**self._read(), name: run}
            lines = (f"{json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(self.runs.items()))
            write_text(self.file, "{\n" + ",\n".join(lines) + "\n}\n")
        finally:
            os.close(folder)

    def _read(self) -> dict[str, dict[str, Any]]:
        return json.loads(self.file.read_text(encoding="utf-8")) if self.file.exists() else {}


def _command(arguments: Sequence[str], seed: int) -> str:
    return shlex.join(["mmcl", "fit", *arguments, "--seed_everything", str(seed)])


def record(page: Path | None, name: str, out: Path, keep: Callable[[Mapping[str, Any]], dict[str, Any]]) -> Record:
    """The record of a table: beside its page, as ``results/NAME.json``, or in the folder of the runs."""
    return Record(page.with_suffix("") / f"{name}.json" if page else out / f"{name}.json", keep)


def fit(arguments: Sequence[str], folder: Path, seed: int) -> bool:
    """`mmcl fit` into a run folder, continued or left alone where it exists; its output goes beside the folder.

    Args:
        arguments: of `mmcl fit`, without seed and folder.
        folder: of the run.
        seed: of the run.

    Returns:
        Whether it finished.
    """
    command = [sys.executable, "-m", "mmcl", "fit", *arguments, "--seed_everything", str(seed)]
    command += ["--run_dir", str(folder), "--trainer.enable_progress_bar", "false"]
    folder.parent.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with folder.with_suffix(".log").open("ab") as log:
        code = subprocess.run(command, env=env, stdout=log, stderr=log).returncode
    print(f"{folder}: {'done' if code == 0 else f'exit code {code}, see {log.name}'}", flush=True)
    return code == 0


def fill(page: Path, name: str, text: str) -> None:
    """Put a text between ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->`` of a page.

    Raises:
        SystemExit: the page has no such place.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    head, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, closed, tail = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"{page} has no place between '{begin}' and '{end}'")
    page.write_text(f"{head}{begin}\n{text}\n{end}{tail}", encoding="utf-8")
