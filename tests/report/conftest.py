"""Synthetic runs: numbers that can be worked out by hand, written the way the runner writes them."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

Write = Callable[..., Path]

TASKS = ("flags", "food")
COLUMNS = ("flags", "food", "smileys", "places")
COUNTS = (100, 100, 200, 200)
FINETUNE = [[0.50, 0.40, 0.50, 0.46], [0.80, 0.38, 0.40, 0.36], [0.70, 0.75, 0.31, 0.29]]
ZSCL = [[0.50, 0.40, 0.50, 0.46], [0.78, 0.40, 0.49, 0.45], [0.76, 0.72, 0.48, 0.44]]
DISTILL = {
    "name": "Distillation",
    "class_path": "mmcl.strategies.X",
    "arguments": {"teacher": "initial", "weight": 0.5},
}


def results(
    values: Sequence[Sequence[float | None]] = tuple(FINETUNE),
    *,
    name: str = "finetune",
    seed: int = 0,
    strategies: Sequence[Mapping[str, Any]] = (),
    columns: Sequence[str] = COLUMNS,
    tasks: Sequence[str] = TASKS,
    lower: Sequence[str] = (),
    groups: Mapping[str, str] | None = None,
    status: str = "finished",
    segments: Sequence[Mapping[str, Any]] = (),
    stream: str = "pocket",
    seconds: float = 10.0,
    **run: Any,
) -> dict[str, Any]:
    """The content of a `results.json`."""
    counts = [COUNTS[i % 4] for i in range(len(columns))]
    directions = ["lower" if column in lower else "higher" for column in columns]
    metrics = ["error" if column in lower else "top1" for column in columns]
    return {
        "format": "mmcl.results/1",
        "run": {
            **{"name": name, "status": status, "seed": seed, "command": f"mmcl fit --config {name} --seed {seed}"},
            **{"config_hash": f"hash-{name}-{seed}", "created": "2025-01-01T10:00:00", "finished": None},
            **{"versions": {"mmcl": "0.1.0", "torch": "2.11.0"}, "world_size": 1, "precision": "32-true"},
            **{"device": "cpu", **run},
        },
        "stream": {
            "name": stream,
            "protocol": "One group of pictures after another.",
            "tasks": [
                {"name": t, "evaluates": t, "budget": "150 steps", "steps": 150, "samples": 9600, "own_samples": 123}
                for t in tasks
            ],
            "evals": [
                {
                    **{"name": column, "group": (groups or {}).get(column, "held_out"), "probe": "zero_shot"},
                    **{"metric": metric, "direction": direction, "count": count},
                    "protocol": "zero-shot top-1 over 131 class names",
                }
                for column, metric, direction, count in zip(columns, metrics, directions, counts, strict=True)
            ],
        },
        "strategies": list(strategies),
        "matrix": {
            "format": "mmcl.score-matrix/1",
            **{"columns": list(columns), "tasks": list(tasks), "task_names": list(tasks)},
            **{"directions": directions, "counts": counts, "values": [list(row) for row in values]},
        },
        "cells": [
            {
                **{"row": row, "task": tasks[row - 1] if row else None, "eval": columns[j], "count": counts[j]},
                **{"metrics": {metrics[j]: score}, "seconds": 0.4},
                "correct": None if columns[j] in lower else round(score * counts[j]),
            }
            for row, scores in enumerate(values)
            for j, score in enumerate(scores)
            if score is not None
        ],
        "segments": list(segments),
        "tasks": [
            {
                **{"name": t, "train_seconds": seconds, "eval_seconds": 2.0, "samples_per_second": 812.0},
                **{"peak_memory_bytes": 3 * 2**30, "steps": 150, "final_loss": 1.25},
            }
            for t in tasks[: max(len(values) - 1, 0)]
        ],
        "notes": ["a note of the runner"],
    }


@pytest.fixture
def data() -> Callable[..., dict[str, Any]]:
    return results


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a run folder below `tmp_path` and return it."""

    def make(folder: str, *args: Any, **kwargs: Any) -> Path:
        path = tmp_path / folder
        path.mkdir(parents=True)
        (path / "results.json").write_text(json.dumps(results(*args, **kwargs)), encoding="utf-8")
        return path

    return make


@pytest.fixture
def pair(write: Write) -> list[Path]:
    """A fine-tuning run that forgets and one that does not; the baseline is not the first."""
    return [
        write("zscl", ZSCL, name="zscl", strategies=[DISTILL], seconds=15.0),
        write("finetune", FINETUNE, name="finetune"),
    ]
