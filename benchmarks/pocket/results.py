"""Every run of docs/results.md, and its table: `python -m mmcl.benchmarks.pocket.results`.

Runs that exist are continued or left alone, so that the command may be interrupted and typed again.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcl.benchmarks import tables
from mmcl.metrics import ScoreMatrix
from mmcl.metrics.summaries import summarize

BASE = ("--config", "pocket/finetune")
ZSCL = ("--config", "pocket/zscl")
METHODS: dict[str, Sequence[str]] = {
    "frozen": (*BASE, "--strategies+=Frozen"),
    "finetune": BASE,
    "lwf": (*BASE, "--strategies+=LwF"),
    "wise": (*BASE, "--strategies+=WeightInterpolation"),
    "mwi": (*BASE, "--strategies+=MomentumInterpolation", "--strategies.decay=0.99"),
    "zscl": ZSCL,
    "zscl-no-distillation": (*ZSCL, "--strategies.image_to_text=0", "--strategies.text_to_image=0"),
    "zscl-no-ensemble": (*ZSCL, "--strategies.interval=0"),
    "zscl-no-consolidation": (*ZSCL, "--strategies.consolidation=0"),
}
"""Row of the table -> the arguments of `mmcl fit` that make it."""


@dataclass(frozen=True)
class Line:
    """One method over its seeds; accuracies in percent."""

    name: str
    seeds: int
    kept: tuple[int, int]  # correct and count over all held-out columns and seeds, after the last task
    before: list[float]
    after: list[float]
    learned: list[float]
    transfer: list[float]
    average: list[float]
    seconds: float


def run_all(methods: Iterable[str], seeds: Iterable[int], out: Path, jobs: int) -> None:
    """Run what is missing, `jobs` processes at a time with one thread each."""
    runs = [(out / m / f"seed-{s}", METHODS[m], s) for s in seeds for m in methods]
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda job: tables.fit(job[1], job[0], job[2]), runs))


def read(name: str, folders: Sequence[Path]) -> Line:
    """The figures of one method."""
    results = [json.loads((f / "results.json").read_text()) for f in folders]
    kept = [_kept(r) for r in results]
    summaries = [summarize(ScoreMatrix.from_json(r["matrix"])) for r in results]

    def values(key: str) -> list[float]:
        return [100 * float(s[key]) for s in summaries]

    retention = [s["zero_shot_retention"].parts for s in summaries]
    return Line(
        name,
        len(results),
        (sum(c for c, _ in kept), sum(n for _, n in kept)),
        [100 * (math.nan if (v := p["initial"]) is None else v) for p in retention],
        [100 * (math.nan if (v := p["final"]) is None else v) for p in retention],
        values("last"),
        values("transfer"),
        values("average"),
        statistics.mean(sum(t["train_seconds"] for t in r["tasks"]) for r in results),
    )


def _kept(results: dict[str, Any]) -> tuple[int, int]:
    trained = {t["evaluates"] for t in results["stream"]["tasks"]}
    last = len(results["stream"]["tasks"])
    cells = [c for c in results["cells"] if c["row"] == last and c["eval"] not in trained]
    return sum(c["correct"] for c in cells), sum(c["count"] for c in cells)


def wilson(correct: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a share, in percent (Wilson, 1927)."""
    share = correct / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return 100 * (middle - half), 100 * (middle + half)


def table(lines: Sequence[Line]) -> str:
    """The table in Markdown."""

    def shown(values: Sequence[float]) -> str:
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.1f}{spread}"

    rows = [
        "| method | held-out before | held-out after | lost | pooled after (n, 95 %) | learned | Transfer | Average "
        "| training |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        low, high = wilson(*line.kept)
        lost = [b - a for b, a in zip(line.before, line.after, strict=True)]
        pooled = f"{100 * line.kept[0] / line.kept[1]:.1f} ({line.kept[1]}, {low:.1f} to {high:.1f})"
        rows.append(
            f"| {line.name} | {shown(line.before)} | {shown(line.after)} | {shown(lost)} | {pooled} "
            f"| {shown(line.learned)} | {shown(line.transfer)} | {shown(line.average)} | {line.seconds:.0f} s |"
        )
    return "\n".join(rows)


def main() -> None:
    """Run, print the table, and write it into a page between its two marks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/pocket"))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--page", type=Path, help="Markdown page that holds the table, for instance docs/results.md")
    given = parser.parse_args()
    run_all(given.methods, given.seeds, given.out, given.jobs)
    lines = []
    for method in given.methods:
        folders = [given.out / method / f"seed-{s}" for s in given.seeds]
        done = [f for f in folders if (f / "results.json").exists()]
        if done:
            lines.append(read(method, done))
    text = table(lines)
    print(text)
    if given.page is not None:
        tables.fill(given.page, "table", text)


if __name__ == "__main__":
    main()
