"""results.json and matrix.csv: what a run measured, written after every row."""

from __future__ import annotations

import json
import platform
import resource
from collections.abc import Mapping, Sequence, Sized
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import nn

from mmcl.evaluate import Cell
from mmcl.metrics.matrix import ScoreMatrix
from mmcl.outputs import Recorded
from mmcl.run_folder import RunFolder, write_text
from mmcl.stream import Stream

FORMAT = "mmcl.results/1"
PACKAGES = ("mmcl", "torch", "lightning", "open_clip_torch", "timm", "transformers", "webdataset", "torchmetrics")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def describe(strategy: Recorded) -> dict[str, Any]:
    """Name, class path and arguments of a strategy or a module."""
    arguments = {name: _plain(value) for name, value in getattr(strategy, "arguments", {}).items()}
    kind = type(strategy)
    return {"name": kind.__name__, "class_path": f"{kind.__module__}.{kind.__qualname__}", "arguments": arguments}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)) and len(value) <= 20:
        return [_plain(v) for v in value]
    if isinstance(value, nn.Module):
        return type(value).__name__
    if len(str(value)) <= 200:
        return str(value)
    return f"{type(value).__name__} of {len(value)} items" if isinstance(value, Sized) else f"{str(value)[:197]}..."


def now() -> str:
    """The time, for records."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def peak_memory(device: torch.device) -> int:
    """Largest memory so far in bytes: the accelerator's where there is one, the process's otherwise."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Record:
    """Builds results.json row by row.

    Args:
        folder: the run folder.
        stream: its tasks and evaluation sets.
        header: the keys ``run`` and ``strategies``.
        plans: one entry for each task: name, evaluates, budget, steps, samples, own_samples.
        enabled: only rank 0 writes.
    """

    def __init__(
        self,
        folder: RunFolder,
        stream: Stream,
        header: Mapping[str, Any],
        plans: Sequence[Mapping[str, Any]],
        enabled: bool = True,
    ) -> None:
        self.folder = folder
        self.stream = stream
        self.enabled = enabled
        self.rows: list[list[float]] = []
        self.data: dict[str, Any] = {
            "format": FORMAT,
            **header,
            "stream": {"name": stream.name, "protocol": stream.protocol, "tasks": list(plans), "evals": []},
            "matrix": None,
            "cells": [],
            "segments": [],
            "tasks": [],
            "notes": [],
        }

    def resume(self, rows: int, task: int, segment: int) -> None:
        """Take back what an interrupted run recorded, as far as its checkpoint goes.

        Args:
            rows: rows of the matrix that the checkpoint covers.
            task: position of the task at hand.
            segment: position of its segment at hand.
        """
        old = self.folder.read_results()
        if old is None:
            return
        names = {t.name: i for i, t in enumerate(self.stream.tasks)}
        values = old["matrix"]["values"] if old["matrix"] else []
        if not self.stream.evals:  # rows without columns, which no matrix holds
            values = [[] for _ in range(len(old["tasks"]) + 1)]
        self.rows = [[float(v) for v in row] for row in values[:rows]]
        self.data["run"]["created"] = old["run"]["created"]
        self.data["stream"]["evals"] = old["stream"]["evals"]
        self.data["cells"] = [c for c in old["cells"] if c["row"] < rows]
        self.data["segments"] = [s for s in old["segments"] if (names[s["task"]], s["segment"]) < (task, segment)]
        self.data["tasks"] = [t for t in old["tasks"] if names[t["name"]] < rows - 1]
        self.data["notes"] = old["notes"]

    def add_row(self, cells: Sequence[Cell], probes: Mapping[str, Any]) -> None:
        """A row of the matrix."""
        row = len(self.rows)
        self.rows.append([c.result.value for c in cells])
        task = self.stream.tasks[row - 1].name if row else None
        for cell in cells:
            self.data["cells"].append(
                {
                    "row": row,
                    "task": task,
                    "eval": cell.evalset,
                    "count": cell.result.count,
                    "correct": cell.result.correct,
                    "metrics": cell.result.metrics,
                    "seconds": round(cell.seconds, 3),
                }
            )
        if row == 0:
            self.data["stream"]["evals"] = [
                {
                    "name": e.name,
                    "group": e.group,
                    "probe": e.probe,
                    "metric": probes[e.name].metric,
                    "direction": probes[e.name].direction,
                    "count": cell.result.count,
                    "protocol": probes[e.name].protocol,
                }
                for e, cell in zip(self.stream.evals, cells, strict=True)
            ]

    def matrix(self) -> ScoreMatrix:
        """The score matrix so far."""
        evals = self.data["stream"]["evals"]
        return ScoreMatrix(
            self.rows,
            columns=[e["name"] for e in evals],
            tasks=self.stream.trained_columns(),
            directions=[e["direction"] for e in evals],
            counts=[e["count"] for e in evals],
            task_names=[t.name for t in self.stream.tasks],
        )

    def write(self, finished: bool = False) -> None:
        """Write results.json and matrix.csv."""
        if not self.enabled:
            return
        if finished:
            self.data["run"].update(status="finished", finished=now())
        if self.rows and self.data["stream"]["evals"]:
            matrix = self.matrix()
            self.data["matrix"] = json.loads(matrix.to_json())
            write_text(self.folder.path / "matrix.csv", matrix.to_csv())
        write_text(self.folder.results, json.dumps(self.data, indent=1) + "\n")
