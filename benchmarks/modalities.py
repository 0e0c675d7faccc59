"""Every run of the table of all modalities: `python -m mmcl.benchmarks.modalities --page docs/results.md`.

Runs that exist are continued or left alone, so that the command may be interrupted and typed again; figures of finished
runs are kept beside the page, or in the folder of the runs. The streams need fetched data and models; a run that lacks
one says which.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmcl import presets
from mmcl.benchmarks import tables
from mmcl.report.formats import memory

STREAMS = {
    "text": "SmolLM2-135M over three domains; perplexity",
    "speech": "Whisper tiny.en from English to Spanish and French; word error rate",
    "ctc": "A CTC head on the encoder of Whisper tiny.en, growing from English to Spanish and French; word error rate",
    "wav2vec": "a small wav2vec 2.0 from English to Spanish and French; pretraining loss",
    "classes": "Fashion-MNIST in five tasks of two classes on MobileNetV2; accuracy over the classes seen",
    "questions": "MobileNetV2 and SmolLM2-135M, questions about pictures",
    "towers": "MobileNetV2 and MiniLM with heads over five visual domains; retrieval",
}
"""Folder of configs under ``pocket/`` -> what it is."""
ALSO = {
    "classes": ("task_top1", "The same runs, choosing among the two classes of a column's task:"),
    "ctc": ("cer", "The same run in character error rates:"),
}
"""Stream -> another metric that its probe measured, and the words above that table."""
METHODS = ("frozen", "finetune", "mwi", "distillation", "lwf")
"""Configs in such a folder; a stream has one of `distillation` and `lwf`."""


def section(title: str, stream: str, runs: Mapping[str, dict[str, Any]]) -> list[str]:
    """The score matrices of a stream's runs, one below the other, in Markdown."""
    first = next(iter(runs.values()))
    matrix = first["matrix"]
    signs = {"lower": " ↓", "higher": ""}
    held = first["held_out"]
    names = [
        f"{'*' if c in held else ''}{c}{'*' if c in held else ''}{signs[d]} ({n})"
        for c, d, n in zip(matrix["columns"], matrix["directions"], matrix["counts"], strict=True)
    ]
    lines = [f"### {title}", "", f"    mmcl fit --config pocket/{stream}/METHOD", ""]
    lines += table(names, {method: (results, results["matrix"]["values"]) for method, results in runs.items()})
    if stream in ALSO:
        metric, words = ALSO[stream]
        lines += [words, "", *table(names, {m: (r, of_cells(r, metric)) for m, r in runs.items()})]
    return lines


def table(names: Sequence[str], runs: Mapping[str, tuple[dict[str, Any], list[list[float | None]]]]) -> list[str]:
    """Rows of every run: what `keep` took of it and the matrix to print."""
    lines = [f"| method | after | {' | '.join(names)} | training, peak memory |", "|---" * (len(names) + 3) + "|"]
    lines.append(line("any", "nothing", next(iter(runs.values()))[1][0], ""))
    for method, (results, values) in runs.items():
        rows = [(task, row) for task, row in zip(results["tasks"], values[1:], strict=True) if row != values[0]]
        for i, (after, row) in enumerate(rows):
            cost = f"{results['seconds']:.0f} s, {memory(results['peak'])}" if i == len(rows) - 1 else ""
            lines.append(line(method if i == 0 else "", after, row, cost))
    return [*lines, ""]


def of_cells(results: dict[str, Any], metric: str) -> list[list[float | None]]:
    """A matrix of another metric than the one that the score matrix holds."""
    found = {(cell["row"], cell["eval"]): cell["metrics"].get(metric) for cell in results["cells"]}
    matrix = results["matrix"]
    return [[found.get((row, c)) for c in matrix["columns"]] for row in range(len(matrix["values"]))]


def line(method: str, after: str, row: Sequence[float | None], cost: str) -> str:
    """One row of the table."""
    return f"| {method} | {after} | {' | '.join(map(figure, row))} | {cost} |"


def figure(value: float | None) -> str:
    """A score with three significant digits or three decimals."""
    if value is None:
        return "–"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def keep(results: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a run's results that its table shows."""
    return {
        "matrix": results["matrix"],
        "held_out": [e["name"] for e in results["stream"]["evals"] if e["name"] not in results["matrix"]["tasks"]],
        "tasks": [t["name"] for t in results["stream"]["tasks"]],
        "seconds": sum(t["train_seconds"] for t in results["tasks"]),
        "peak": max(t["peak_memory_bytes"] or 0 for t in results["tasks"]),
        "cells": [{name: cell[name] for name in ("row", "eval", "metrics")} for cell in results["cells"]],
    }


def gather(record: tables.Record, seed: int) -> str:
    """Sections of all streams that have finished runs."""
    lines: list[str] = []
    for stream, title in STREAMS.items():
        found = {m: record.figures(f"{stream}/{m}", ("--config", f"pocket/{stream}/{m}"), seed) for m in METHODS}
        runs = {method: figures for method, figures in found.items() if figures is not None}
        if runs:
            lines += section(title, stream, runs)
    return "\n".join(lines).rstrip()


def main() -> None:
    """Run, print the tables, and write them into a page between its two marks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", nargs="+", default=list(STREAMS), choices=list(STREAMS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/pocket"))
    parser.add_argument("--page", type=Path, help="Markdown page that holds the tables, for instance docs/results.md")
    parser.add_argument("--only_table", action="store_true", help="run nothing; the tables of recorded runs")
    given = parser.parse_args()
    record = tables.record(given.page, "modalities", given.out, keep)
    known = presets.listing()
    for stream in given.streams:
        for method in given.methods:
            config, name = f"pocket/{stream}/{method}", f"{stream}/{method}"
            if config in known and not given.only_table:
                record.run(name, ("--config", config), given.out / name, given.seed)
    text = gather(record, given.seed)
    print(text)
    if given.page is not None:
        tables.fill(given.page, "modalities", text)


if __name__ == "__main__":
    main()
