"""Merges in whole runs: where tasks start, and what is evaluated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cases
import pytest
import tiny_classes
import torch
from torch import Tensor, nn

from mmcl import Budget, Source, Strategy, Stream, Task, seeds
from mmcl import trainer as lightning
from mmcl.datamodules import StreamDataModule
from mmcl.errors import ConfigError
from mmcl.functional import breadcrumbs, magmax, model_stock, slerp, task_arithmetic, task_vector, ties, unrolled
from mmcl.outputs import Batch, Forward, Outputs
from mmcl.runner import Runner, RunOptions
from mmcl.strategies import SLERP, TIES, EMAMerge, MagMax, ModelStock, TaskArithmetic, WeightInterpolation
from mmcl.strategy import DataPass, StepContext

Weights = dict[str, Tensor]


class Watch(Strategy):
    """Notes the weights that each task starts with and ends with, and those that each row is measured with."""

    def __init__(self) -> None:
        super().__init__()
        self.starts: list[Weights] = []
        self.ends: list[Weights] = []
        self.measured: dict[int, Weights] = {}

    def on_task_start(self, task: Task, data: DataPass) -> None:
        self.starts.append(self.weights(copy=True))

    def on_task_end(self, task: Task, data: DataPass) -> None:
        self.ends.append(self.weights(copy=True))

    def wrap_forward(self, next: Forward, batch: Batch, context: StepContext) -> Outputs:
        if context.stage == "test":
            row = 0 if self.task is None else self.stream.position(self.task) + 1
            if row not in self.measured:
                self.measured[row] = self.weights(copy=True)
        return next(batch)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cases")


def pair(merge: Any) -> Callable[[Weights, Sequence[Weights]], Weights]:
    """The merge of all models by merging pair after pair."""
    return lambda base, models: unrolled(base, models, merge)


def whole(merge: Any) -> Callable[[Weights, Sequence[Weights]], Weights]:
    """The merge of all models at once."""
    return lambda base, models: merge(base, [task_vector(model, base) for model in models])


def mean(base: Weights, vectors: Sequence[Weights]) -> Weights:
    return task_arithmetic(base, vectors, [0.6, 0.4])


def average(base: Weights, models: Sequence[Weights]) -> Weights:
    return {name: torch.stack([model[name] for model in models]).mean(0) for name in base}


def sphere(base: Weights, models: Sequence[Weights]) -> Weights:
    merged = base
    for model in models:
        merged = slerp(merged, model, 0.6)
    return merged


def stock(base: Weights, models: Sequence[Weights]) -> Weights:
    return models[0] if len(models) == 1 else whole(partial(model_stock, acute=True))(base, models)


def stock_over_time(base: Weights, models: Sequence[Weights]) -> Weights:
    vectors = [task_vector(model, base) for model in reversed(models)]
    return models[0] if len(models) == 1 else model_stock(base, vectors, acute=True)


CASES: dict[str, tuple[Callable[[], Strategy], str, Any]] = {
    "ema": (lambda: EMAMerge(0.6), "merged", pair(mean)),
    "zero_shot": (lambda: EMAMerge(0.6, "zero_shot"), "initial", pair(mean)),
    "sequential": (lambda: EMAMerge(0.6, "sequential"), "last", pair(mean)),
    "fine_tuned": (lambda: EMAMerge(0.6, "fine_tuned"), "merged", lambda b, m: pair(mean)(b, m[-1:])),
    "slerp": (lambda: SLERP(0.6), "merged", sphere),
    "magmax": (lambda: MagMax(), "last", whole(lambda b, v: magmax(b, v, 0.5))),
    "magmax-ema": (lambda: MagMax(0.7, "ema"), "merged", pair(lambda b, v: magmax(b, v[::-1], 0.7))),
    "average": (lambda: TaskArithmetic(), "initial", average),
    "sum": (lambda: TaskArithmetic(1.0), "initial", whole(lambda b, v: task_arithmetic(b, v, 1.0))),
    "sum-ema": (lambda: TaskArithmetic(0.8, "ema"), "merged", pair(lambda b, v: task_arithmetic(b, v, 0.8))),
    "ties": (lambda: TIES(0.3), "initial", whole(lambda b, v: ties(b, v, 0.3, 1.0))),
    "ties-unrolled": (
        lambda: TIES(0.3, 0.9, unrolled=True, aggregation="sum"),
        "initial",
        pair(lambda b, v: ties(b, v, 0.3, 0.9, aggregation="sum")),
    ),
    "ties-ema": (lambda: TIES(0.3, rule="ema"), "merged", pair(lambda b, v: ties(b, v, 0.3, 1.0))),
    "stock": (lambda: ModelStock(), "initial", stock),
    "stock-ema": (lambda: ModelStock("ema"), "merged", stock_over_time),
}


def same(found: Weights, wanted: Weights) -> None:
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("name", CASES)
def test_the_rules(name: str, shards: Path, tmp_path: Path) -> None:
    build, start, merge = CASES[name]
    watch = Watch()
    cases.run("clip", shards / "clip", tmp_path / "run", [build(), watch])
    initial = watch.measured[0]
    same(watch.starts[0], initial)
    for row in (1, 2):
        same(watch.measured[row], merge(initial, watch.ends[:row]))
    assert any(not torch.equal(watch.measured[2][n], watch.ends[1][n]) for n in initial)
    same(watch.starts[1], {"merged": watch.measured[1], "initial": initial, "last": watch.ends[0]}[start])


def test_a_task_from_the_pretrained_weights_has_their_statistics_too(shards: Path, tmp_path: Path) -> None:
    watch = Watch()
    cases.run("classes", shards / "classes", tmp_path / "run", [MagMax(rule="zero_shot"), watch])
    start, initial = watch.starts[1], watch.measured[0]
    assert any(name.endswith("running_var") for name in initial)
    for name, value in initial.items():
        assert name.startswith("head.") or torch.equal(start[name], value), name
    for name in (name for name in initial if "running" in name):
        assert torch.equal(watch.measured[2][name], watch.ends[1][name]), name


@pytest.mark.parametrize("build", [lambda: EMAMerge(0.6), lambda: TIES(0.3)])
def test_what_grew_is_the_live_models(build: Callable[[], Strategy], shards: Path, tmp_path: Path) -> None:
    watch = Watch()
    results = cases.run("classes-growing", shards / "growing", tmp_path / "run", [build(), watch])
    assert results["run"]["status"] == "finished"
    rows = {len(w["head.weight"]) for w in watch.measured.values() if "head.weight" in w}
    for row in (1, 2):
        live, seen, initial = watch.ends[row - 1], watch.measured[row], watch.measured[0]
        assert {n: v.shape for n, v in live.items()} == {n: v.shape for n, v in seen.items()}
        for name, value in live.items():
            new = initial[name].shape[0] if name in initial and value.ndim else 0
            if value.ndim and new < len(value):
                assert torch.equal(seen[name][new:], value[new:]), name
                rows.add(-1)
    assert -1 in rows, "nothing grew"


MERGES = (EMAMerge(0.6), EMAMerge(0.6, "fine_tuned"), TaskArithmetic(), MagMax(), TIES(0.3), ModelStock())


@pytest.mark.parametrize("merge", MERGES, ids=lambda merge: f"{type(merge).__name__}-{merge.rule}")
def test_rows_of_classes_that_no_two_tasks_share_are_not_merged(merge: Any, shards: Path, tmp_path: Path) -> None:
    watch = Watch()
    cases.run("classes", shards / "classes", tmp_path / "run", [merge, watch])
    measured, (first, last) = watch.measured[2], watch.ends
    for name in ("head.weight", "head.bias"):
        assert torch.equal(last[name][:2], first[name][:2]), "the second task begins with what the first made of them"
        assert torch.equal(measured[name], last[name])
    assert any(not torch.equal(measured[name], value) for name, value in last.items()), "nothing was merged"


@pytest.mark.parametrize("merge", [False, True])
def test_an_interpolation_with_pretrained_weights_leaves_a_new_head_alone(
    merge: bool, shards: Path, tmp_path: Path
) -> None:
    watch = Watch()
    cases.run("classes", shards / "classes", tmp_path / "run", [WeightInterpolation(0.5, merge=merge), watch])
    measured, (first, last) = watch.measured[2], watch.ends
    assert torch.equal(measured["head.weight"][:2], first["head.weight"][:2])
    assert torch.equal(measured["head.weight"], last["head.weight"])
    assert any(not torch.equal(watch.measured[1][name], value) for name, value in first.items()) or merge


def test_rows_that_other_tasks_train_too_are_no_tasks_own(shards: Path) -> None:
    module = tiny_classes.module("masked", "test_resnet", train_classes="seen")
    (shards / "seen").mkdir()
    stream = tiny_classes.stream(shards / "seen")
    module.check(stream)
    assert [list(module.columns(task)) for task in stream.tasks] == [[], []]
    module = tiny_classes.module("masked", "test_resnet")
    module.check(stream)
    assert [list(module.columns(task)) for task in stream.tasks] == [[0, 1], [2, 3]]


def test_rows_of_classes_that_come_again_are_merged(shards: Path, tmp_path: Path) -> None:
    watch = Watch()
    (shards / "domains").mkdir()
    stream = tiny_classes.domains(shards / "domains")
    cases.runner("classes", stream, tmp_path / "run", [TaskArithmetic(0.5, "ema"), watch]).fit()
    assert not torch.equal(watch.measured[2]["head.weight"], watch.ends[1]["head.weight"])


def test_tasks_stay_on_the_disk_where_all_are_needed(shards: Path, tmp_path: Path) -> None:
    results = cases.run("clip", shards / "clip", tmp_path / "all", [TIES(0.3)])
    names = {p.stem for p in (tmp_path / "all" / "snapshots").iterdir()}
    assert names == {"initial", "task-1", "task-2"}
    for row in (1, 2):  # and an earlier row is made again out of its checkpoint
        assert (
            measured_again("clip", shards / "clip", tmp_path / "all", [TIES(0.3)], row)
            == results["matrix"]["values"][row]
        )
    cases.run("clip", shards / "clip", tmp_path / "two", [TIES(0.3, unrolled=True)])
    assert {p.stem for p in (tmp_path / "two" / "snapshots").iterdir()} == {"initial"}
    saved = torch.load(tmp_path / "two" / "checkpoints" / "last.ckpt", weights_only=True)
    assert set(saved["strategies"]["ties"]["state"]) == {"kept"}


class Reads(dict[str, Tensor]):
    """A task vector that notes what is read of it."""

    def __init__(self, vector: Mapping[str, Tensor], log: list[tuple[str, int]], number: int) -> None:
        super().__init__(vector)
        self.log, self.number = log, number

    def __getitem__(self, name: str) -> Tensor:
        self.log.append((name, self.number))
        return super().__getitem__(name)


@pytest.mark.parametrize("prune", ["random", "breadcrumbs"])
def test_vectors_are_pruned_when_they_are_merged(prune: Any) -> None:
    """Tensor after tensor of all tasks; what is drawn is the same in whatever order, and at the next merge."""
    torch.manual_seed(0)
    reach: Any = SimpleNamespace(generator=lambda task, name: seeds.generator(task, name))
    merge, log = TIES(0.5, 0.8, prune=prune), list[tuple[str, int]]()
    merge.attach_reach(reach)
    names = ["a", "b", "c"]
    base = {name: torch.zeros(200) for name in names}
    plain = [{name: torch.randn(200) for name in names} for _ in range(2)]
    tasks: Any = ["one", "two"]
    found = merge._merged(base, [Reads(vector, log, i) for i, vector in enumerate(plain)], tasks)
    assert log[6:] == [(name, i) for name in names for i in (0, 1)]
    back = {name: base[name] for name in reversed(names)}
    same(merge._merged(back, [{n: vector[n] for n in back} for vector in plain], tasks), found)
    alone = merge._merged(base, plain[:1], tasks[:1])
    again = merge._merged(base, [plain[0], {name: torch.zeros(200) for name in names}], tasks)
    same(again, alone)
    if prune == "random":  # the new task's vector and the merge so far do not lose the same entries
        kept = [merge._pruned(tasks[0], number, "a", plain[0]["a"]) != 0 for number in (0, 1)]
        assert 60 < int(kept[0].sum()) < 140 and not torch.equal(*kept)
    else:
        expected = ties(base, [breadcrumbs(vector, 0.5, outliers=0.01) for vector in plain], 1.0, 0.8)
        same(found, expected)


def test_all_earlier_tasks_are_merged() -> None:
    """After the third one, where the last of them is not all."""
    torch.manual_seed(0)
    base, models = {"w": torch.randn(50)}, [{"w": torch.randn(50)} for _ in range(3)]
    stream = Stream("toy", [Task(name, [Source([f"{name}.tar"])], Budget(steps=1)) for name in "abc"])
    reach: Any = SimpleNamespace(
        stream=stream,
        module=SimpleNamespace(network=nn.Module()),
        snapshot=lambda name: base,
        stored=lambda name: models[int(name.removeprefix("task-")) - 1],
        weights=lambda copy, dtype: models[2],
    )
    vectors = [task_vector(model, base) for model in models]
    for merge, wanted in (
        (TIES(0.3), ties(base, vectors, 0.3, 1.0)),
        (ModelStock(), model_stock(base, vectors, acute=True)),
    ):
        merge.attach_reach(reach)
        same(merge.result(base, {}, stream.tasks[2]), wanted)


def test_early_blocks_stay_closer_where_that_is_asked_for() -> None:
    base = {f"blocks.{i}.w": torch.ones(1) for i in (0, 1)}
    merged = TaskArithmetic(2.0, by_layer=True).result(base, {n: torch.ones(1) for n in base}, None)  # type: ignore[arg-type]
    assert [float(value) for value in merged.values()] == [1 + 2 * 0.5, 1 + 2 * 1.0]


def measured_again(case: str, shards: Path, folder: Path, strategies: Sequence[Strategy], row: int) -> list[float]:
    """A row of a finished run, from its checkpoint."""
    module, stream = cases.found()[case]
    data = StreamDataModule(stream(shards), batch_size=cases.BATCH, eval_batch_size=5)
    trainer = lightning.make(accelerator="cpu", enable_progress_bar=False, log_every_n_steps=2)
    runner = Runner(data, module(), strategies, trainer, RunOptions(run_dir=folder, identity={"case": case}))
    return [cell.result.value for cell in runner.test(f"task-{row}")[""]]


BAD: list[tuple[Callable[[], Any], str]] = [
    (lambda: EMAMerge(1.5), "weight is 1.5"),
    (lambda: EMAMerge(rule="em"), "rule 'em' is unknown; did you mean ema"),  # type: ignore[arg-type]
    (lambda: SLERP(-0.1), "weight is -0.1"),
    (lambda: MagMax(float("nan")), "scale is nan"),
    (lambda: TaskArithmetic(rule="ema"), "give a `scale`"),
    (lambda: TaskArithmetic(float("inf")), "scale is inf"),
    (lambda: TIES(0.0), "density 0.0"),
    (lambda: TIES(aggregation="man"), "aggregation 'man' is unknown; did you mean"),  # type: ignore[arg-type]
    (lambda: TIES(prune="rand"), "prune 'rand' is unknown; did you mean random"),  # type: ignore[arg-type]
    (lambda: ModelStock("fine_tuned"), "no angle"),
]


@pytest.mark.parametrize(("build", "message"), BAD)
def test_bad_arguments_are_refused(build: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        build()
    assert message in str(error.value) and "\n" not in str(error.value)
