"""What a run measured, as read from the `results.json` of its folder (format ``mmcl.results/1``)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mmcl.errors import MmclError
from mmcl.metrics.matrix import DIRECTIONS, ScoreMatrix
from mmcl.report._node import Node
from mmcl.stream import HELD_OUT

FORMAT = "mmcl.results/1"
FILE = "results.json"
STATUSES = ("running", "finished")


@dataclass(frozen=True)
class Run:
    """Who ran what, when and with which versions."""

    name: str
    status: str
    seed: int | None
    command: str
    config_hash: str
    created: str
    finished: str | None
    versions: Mapping[str, str]
    world_size: int | None
    precision: str
    device: str

    @classmethod
    def read(cls, node: Node) -> Run:
        """From the key ``run``."""
        status = node.text("status")
        if status not in STATUSES:
            raise MmclError(f"{node.where}: status is {status!r}; known: {', '.join(STATUSES)}")
        versions = node.node("versions", {})
        return cls(
            name=node.text("name"),
            status=status,
            seed=node.whole("seed"),
            command=node.text("command", ""),
            config_hash=node.text("config_hash", ""),
            created=node.text("created", ""),
            finished=node.maybe_text("finished"),
            versions={name: versions.text(name) for name in versions.data},
            world_size=node.whole("world_size"),
            precision=node.text("precision", ""),
            device=node.text("device", ""),
        )


@dataclass(frozen=True)
class TaskRecord:
    """A task of the stream: the column it trains (or None), its budget, and the samples it saw."""

    name: str
    evaluates: str | None
    budget: str
    steps: int | None
    samples: int | None
    own_samples: int | None

    @classmethod
    def read(cls, node: Node) -> TaskRecord:
        """From an item of ``stream.tasks``."""
        return cls(
            name=node.text("name"),
            evaluates=node.maybe_text("evaluates"),
            budget=node.text("budget", ""),
            steps=node.whole("steps"),
            samples=node.whole("samples"),
            own_samples=node.whole("own_samples"),
        )


@dataclass(frozen=True)
class EvalRecord:
    """An evaluation set: a column of the matrix with its metric, direction, number of samples and protocol."""

    name: str
    group: str
    probe: str
    metric: str
    direction: str
    count: int | None
    protocol: str

    @classmethod
    def read(cls, node: Node) -> EvalRecord:
        """From an item of ``stream.evals``."""
        direction = node.text("direction")
        if direction not in DIRECTIONS:
            raise MmclError(f"{node.where}: direction is {direction!r}; known: {', '.join(DIRECTIONS)}")
        return cls(
            name=node.text("name"),
            group=node.text("group", HELD_OUT),
            probe=node.text("probe", ""),
            metric=node.text("metric", ""),
            direction=direction,
            count=node.whole("count"),
            protocol=node.text("protocol", ""),
        )


@dataclass(frozen=True)
class StrategyRecord:
    """A strategy and the arguments it was made with."""

    name: str
    class_path: str
    arguments: Mapping[str, Any]

    @classmethod
    def read(cls, node: Node) -> StrategyRecord:
        """From an item of ``strategies``."""
        return cls(node.text("name"), node.text("class_path", ""), dict(node.node("arguments", {}).data))


@dataclass(frozen=True)
class Cell:
    """One evaluation: matrix row, evaluation set, all its metrics, and how many samples were right (or None)."""

    row: int
    eval: str
    count: int | None
    correct: int | None
    metrics: Mapping[str, float | None]

    @classmethod
    def read(cls, node: Node) -> Cell:
        """From an item of ``cells``."""
        return cls(
            node.count("row"), node.text("eval"), node.whole("count"), node.whole("correct"), node.numbers("metrics")
        )


@dataclass(frozen=True)
class Segment:
    """Scores at a cut within a task: optimizer steps of the whole stream and of the task."""

    task: str
    step: int
    task_step: int
    scores: Mapping[str, float | None]

    @classmethod
    def read(cls, node: Node) -> Segment:
        """From an item of ``segments``."""
        return cls(node.text("task"), node.count("step"), node.count("task_step"), node.numbers("scores"))


@dataclass(frozen=True)
class Cost:
    """What a task took: seconds, samples per second, bytes; and in which shares, strategy by strategy."""

    name: str
    train_seconds: float | None
    eval_seconds: float | None
    samples_per_second: float | None
    peak_memory_bytes: float | None
    steps: int | None
    final_loss: float | None
    shares: Mapping[str, Mapping[str, float]]

    @classmethod
    def read(cls, node: Node) -> Cost:
        """From an item of ``tasks``."""
        shares = node.node("shares", {})
        parts = {name: shares.numbers(name) for name in shares.data}
        return cls(
            shares={name: {key: part for key, part in own.items() if part is not None} for name, own in parts.items()},
            name=node.text("name"),
            train_seconds=node.number("train_seconds"),
            eval_seconds=node.number("eval_seconds"),
            samples_per_second=node.number("samples_per_second"),
            peak_memory_bytes=node.number("peak_memory_bytes"),
            steps=node.whole("steps"),
            final_loss=node.number("final_loss"),
        )


@dataclass(frozen=True)
class Results:
    """All that a run wrote about itself.

    Attributes:
        fractions: columns shown in percent: higher is better and every measured score lies in [0, 1].
        folder: where it was read from, if anywhere.
    """

    run: Run
    stream: str
    protocol: str
    tasks: tuple[TaskRecord, ...]
    evals: tuple[EvalRecord, ...]
    strategies: tuple[StrategyRecord, ...]
    matrix: ScoreMatrix
    cells: tuple[Cell, ...]
    segments: tuple[Segment, ...]
    costs: tuple[Cost, ...]
    notes: tuple[str, ...]
    fractions: frozenset[str]
    folder: Path | None = None

    @classmethod
    def from_folder(cls, folder: str | Path) -> Results:
        """Read the run folder's `results.json` (or that file itself).

        Raises:
            MmclError: there is no such file, or it does not hold what the format says.
        """
        path = Path(folder)
        path = path if path.name == FILE else path / FILE
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise MmclError(
                f"{path.parent}: no {FILE} there; give the folder of a run that `mmcl fit` started"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise MmclError(f"{path}: cannot be read ({error})") from error
        return cls.from_json(text, where=str(path), folder=path.parent)

    @classmethod
    def from_json(cls, source: str | Mapping[str, Any], where: str = "results", folder: Path | None = None) -> Results:
        """From JSON text or an already parsed object; `where` names the source in errors.

        Raises:
            MmclError: not JSON, another format, a missing key, or parts that contradict each other.
        """
        data: Any = source
        if isinstance(source, str):
            try:
                data = json.loads(source)
            except json.JSONDecodeError as error:
                raise MmclError(f"{where}: not valid JSON (line {error.lineno}: {error.msg})") from error
        root = Node(data, where)
        if root.data.get("format") != FORMAT:
            raise MmclError(f"{where}: format is {root.data.get('format')!r}, this version reads {FORMAT!r}")
        stream = root.node("stream")
        matrix = ScoreMatrix.from_dict(root.node("matrix").data, f"{where}: matrix")
        results = cls(
            run=Run.read(root.node("run")),
            stream=stream.text("name"),
            protocol=stream.text("protocol", ""),
            tasks=stream.items("tasks", TaskRecord.read),
            evals=stream.items("evals", EvalRecord.read),
            strategies=root.items("strategies", StrategyRecord.read),
            matrix=matrix,
            cells=root.items("cells", Cell.read),
            segments=root.items("segments", Segment.read),
            costs=root.items("tasks", Cost.read),
            notes=root.texts("notes"),
            fractions=_fractions(matrix),
            folder=folder,
        )
        results._check(where)
        return results

    def _check(self, where: str) -> None:
        columns = tuple(record.name for record in self.evals)
        if columns != self.matrix.columns:
            raise MmclError(
                f"{where}: the matrix has the columns {', '.join(self.matrix.columns)}, the stream the evaluation sets "
                f"{', '.join(columns)}"
            )
        if len(self.tasks) != len(self.matrix.tasks):
            raise MmclError(f"{where}: the matrix has {len(self.matrix.tasks)} tasks, the stream {len(self.tasks)}")
        unknown = {cell.eval for cell in self.cells} - set(columns)
        if unknown:
            raise MmclError(f"{where}: cells of evaluation sets that the stream lacks: {', '.join(sorted(unknown))}")

    # -- reading -------------------------------------------------------------------------------------------------

    @property
    def done(self) -> int:
        """The last row of the matrix that was measured, in whole or in part; -1 before row 0."""
        measured = [i for i, row in enumerate(self.matrix.values) if any(value is not None for value in row)]
        return max(measured, default=-1)

    @property
    def unfinished(self) -> bool:
        """Whether tasks are still to come."""
        return self.run.status != "finished" or self.done < len(self.tasks)

    @cached_property
    def held_out(self) -> tuple[str, ...]:
        """Columns that retention is measured on: untrained ones of the group ``held_out``, or all where none is."""
        untrained = set(self.matrix.held_out)
        named = tuple(e.name for e in self.evals if e.name in untrained and e.group == HELD_OUT)
        return named or self.matrix.held_out

    @cached_property
    def adapted(self) -> tuple[str, ...]:
        """Columns of what the stream teaches: those that a task evaluates; where none does, all beside retention's."""
        return self.matrix.trained or tuple(name for name in self.matrix.columns if name not in self.held_out)

    def eval(self, name: str) -> EvalRecord:
        """The evaluation set of that name."""
        return self.evals[self.matrix.index(name)]

    def cell(self, row: int, name: str) -> Cell | None:
        """What was recorded beside the matrix for (row, column), if anything."""
        return self._cells.get((row, name))

    @cached_property
    def _cells(self) -> dict[tuple[int, str], Cell]:
        return {(cell.row, cell.eval): cell for cell in self.cells}


def _fractions(matrix: ScoreMatrix) -> frozenset[str]:
    columns = zip(matrix.columns, matrix.directions, strict=True)
    return frozenset(
        name
        for index, (name, direction) in enumerate(columns)
        if direction == "higher" and all(0.0 <= (row[index] or 0.0) <= 1.0 for row in matrix.values)
    )
