"""What the commands behind `docs/results.md` share: `mmcl fit` in a process of one thread, and filling a page."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


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
