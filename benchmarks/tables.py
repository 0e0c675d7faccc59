"""What the commands behind `docs/results.md` share: `mmcl fit` on one thread, its figures, and a page to fill."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any


class Record:
    """What a table needs of finished runs, in a JSON file that outlives their folders.

    Args:
        file: it is read where it exists and written after every run.
        keep: takes the figures out of a run's ``results.json``.
    """

    def __init__(self, file: Path, keep: Callable[[Mapping[str, Any]], dict[str, Any]]) -> None:
        self.file, self.keep = file, keep
        self.runs: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        self._lock = Lock()

    def run(self, name: str, arguments: Sequence[str], folder: Path, seed: int) -> None:
        """`mmcl fit`, unless a run of that name with those arguments is recorded; then its figures are recorded.

        Args:
            name: of the run in the file.
            arguments: of `mmcl fit`, without seed and folder.
            folder: of the run.
            seed: of the run.
        """
        command = shlex.join(["mmcl", "fit", *arguments, "--seed_everything", str(seed)])
        if self.runs.get(name, {}).get("command") == command or not fit(arguments, folder, seed):
            return
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        figures = {"command": command, "versions": results["run"]["versions"], "figures": self.keep(results)}
        with self._lock:
            self.runs[name] = figures
            self.file.parent.mkdir(parents=True, exist_ok=True)
            lines = (f"{json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(self.runs.items()))
            self.file.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")

    def figures(self, name: str) -> dict[str, Any] | None:
        """Of a recorded run."""
        return self.runs[name]["figures"] if name in self.runs else None


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
