"""Every run of the table of methods: `python -m mmcl.benchmarks.methods --page docs/results.md`.

Class-incremental streams on embedded or fetched pictures, one row for each method, mean and standard deviation over
seeds. Runs that exist are continued or left alone, so that the command may be interrupted and typed again; figures of
finished runs are kept beside the page, or in the folder of the runs.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from mmcl.benchmarks import tables
from mmcl.metrics import ScoreMatrix
from mmcl.metrics.summaries import average_accuracy, average_incremental_accuracy, forgetting
from mmcl.report.formats import memory

METHODS = Path(__file__).with_name("methods.yaml")
"""Stream -> what it is, its config, and for each method the arguments of `mmcl fit` that make it."""


@dataclass(frozen=True)
class Run:
    """The figures of one run; accuracies in percent."""

    last: float
    incremental: float
    forgotten: float | None
    known_task: float
    rate: float | None
    peak: int


def read(results: Mapping[str, Any]) -> Run:
    """The figures that the table shows."""
    matrix = ScoreMatrix.from_json(results["matrix"])
    final = [c for c in results["cells"] if c["row"] == len(matrix.tasks)]
    steps = [t for t in results["tasks"] if t["samples_per_second"] is not None]
    seconds = sum(t["train_seconds"] for t in steps)
    return Run(
        100 * float(average_accuracy(matrix)),
        100 * float(average_incremental_accuracy(matrix)),
        100 * float(forgetting(matrix)) if len(matrix.tasks) > 1 else None,
        100 * statistics.mean(c["metrics"]["task_top1"] for c in final),
        sum(t["samples_per_second"] * t["train_seconds"] for t in steps) / seconds if seconds else None,
        max(t["peak_memory_bytes"] or 0 for t in results["tasks"]),
    )


def table(runs: Mapping[str, Sequence[Run]]) -> list[str]:
    """Rows of the methods that have runs, in Markdown."""

    def shown(values: Iterable[float | None]) -> str:
        found = [value for value in values if value is not None]
        spread = f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
        return f"{statistics.mean(found):.1f}{spread}" if found else "–"

    lines = [
        "| method | seeds | average | average incremental | forgetting | task known | samples/s | peak memory |",
        "|---" * 8 + "|",
    ]
    for method, own in runs.items():
        figures = [shown(getattr(r, name) for r in own) for name in ("last", "incremental", "forgotten", "known_task")]
        rates = [r.rate for r in own if r.rate is not None]
        rate = f"{statistics.mean(rates):.0f}" if rates else "–"
        peak = memory(max(r.peak for r in own))
        lines.append(f"| {method} | {len(own)} | {' | '.join(figures)} | {rate} | {peak} |")
    return lines


def arguments(stream: Mapping[str, Any], method: str) -> tuple[str, ...]:
    """Of `mmcl fit`, for a row of a stream's table."""
    return ("--config", stream["config"], *stream["arguments"], *stream["methods"][method])


def section(name: str, stream: Mapping[str, Any], record: tables.Record, seeds: Sequence[int]) -> list[str]:
    """What a stream is and its table; nothing where no run has finished."""
    found: dict[str, list[Run]] = {}
    for method in stream["methods"]:
        figures = (record.figures(f"{name}/{method}/seed-{s}", arguments(stream, method), s) for s in seeds)
        done = [Run(**f) for f in figures if f is not None]
        if done:
            found[method] = done
    return [f"### {stream['title']}", "", *table(found), ""] if found else []


def main() -> None:
    """Run, print the tables, and write them into a page between its two marks."""
    streams = yaml.safe_load(METHODS.read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", nargs="+", default=list(streams), choices=list(streams))
    parser.add_argument("--methods", nargs="+", help="all of the stream's where none is named")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, of one thread each")
    parser.add_argument("--page", type=Path, help="Markdown page that holds the tables, for instance docs/results.md")
    parser.add_argument("--only_table", action="store_true", help="run nothing; the table of recorded runs")
    given = parser.parse_args()
    record = tables.record(given.page, "methods", given.out, lambda results: asdict(read(results)))
    runs = [
        (f"{name}/{method}/seed-{seed}", arguments(streams[name], method), seed)
        for seed in given.seeds
        for name in given.streams
        for method in streams[name]["methods"]
        if given.methods is None or method in given.methods
    ]
    if not given.only_table:
        with ThreadPoolExecutor(given.jobs) as pool:
            list(pool.map(lambda run: record.run(run[0], run[1], given.out / run[0], run[2]), runs))
    lines = [line for name, stream in streams.items() for line in section(name, stream, record, given.seeds)]
    text = "\n".join(lines).rstrip()
    print(text)
    if given.page is not None:
        tables.fill(given.page, "methods", text)


if __name__ == "__main__":
    main()
