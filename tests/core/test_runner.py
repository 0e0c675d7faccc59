"""The walk: rows, phases, segments, and a resumed run that equals an uninterrupted one."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.nn.utils import parametrize
from toy import Killed, killed_at, metrics, network, runner, same, stream

from mmcl import Strategy, Task, checkpoint
from mmcl.errors import ConfigError, RunError
from mmcl.interrupt import Interrupted
from mmcl.predict import predict
from mmcl.strategies import Frozen, MomentumInterpolation, WeightConsolidation, WeightEnsemble, WeightInterpolation
from mmcl.strategy import DataPass, StepContext

STRATEGIES: dict[str, Any] = {
    "none": lambda: [],
    "ensemble": lambda: [WeightEnsemble(interval=3), WeightConsolidation(weight=0.1)],
    "momentum": lambda: [MomentumInterpolation(decay=0.9)],
    "wise": lambda: [WeightInterpolation(alpha=0.5)],
}


def test_rows_and_files(tmp_path: Path) -> None:
    results = runner(tmp_path).fit()
    assert results["run"]["status"] == "finished"
    assert len(results["matrix"]["values"]) == 3 and results["matrix"]["directions"] == ["lower", "lower"]
    assert [t["steps"] for t in results["tasks"]] == [10, 7]
    assert results == json.loads((tmp_path / "results.json").read_text())
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {
        "last.ckpt",
        "previous.ckpt",
        "task-1.ckpt",
        "task-2.ckpt",
    }
    assert [r["task"] for r in metrics(tmp_path) if r["kind"] == "row"] == [None, "first", "second"]
    first, last = results["matrix"]["values"][0][0], results["matrix"]["values"][-1][0]
    assert last < first


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("segment", [None, 4])
def test_resume_is_bit_equal(tmp_path: Path, name: str, segment: int | None) -> None:
    whole = runner(tmp_path / "whole", STRATEGIES[name](), stream=stream(segment)).fit()
    for step in (1, 3, 5, 10, 12, 16):
        killed_at(tmp_path / "cut", step, STRATEGIES[name](), stream=stream(segment))
    resumed = runner(tmp_path / "cut", STRATEGIES[name](), stream=stream(segment)).fit()
    assert same(network(tmp_path / "whole"), network(tmp_path / "cut"))
    assert resumed["matrix"] == whole["matrix"] and resumed["segments"] == whole["segments"]
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "cut")


def test_segments_change_nothing_but_the_record(tmp_path: Path) -> None:
    whole = runner(tmp_path / "whole").fit()
    cut = runner(tmp_path / "cut", stream=stream(segment=4)).fit()
    assert same(network(tmp_path / "whole"), network(tmp_path / "cut"))
    assert whole["matrix"] == cut["matrix"]
    assert [(s["task"], s["task_step"]) for s in cut["segments"]] == [("first", 4), ("first", 8)]


def test_accumulation_makes_the_same_number_of_steps(tmp_path: Path) -> None:
    results = runner(tmp_path, trainer={"accumulate_grad_batches": 2}).fit()
    assert [t["steps"] for t in results["tasks"]] == [10, 7]


def test_signal_saves_and_the_same_command_continues(tmp_path: Path) -> None:
    runner(tmp_path / "whole").fit()
    made = runner(tmp_path / "cut")
    inner = made.engine.after_step

    def after_step(engine: Any, batch: Any) -> None:
        inner(engine, batch)
        if engine.step == 5:
            os.kill(os.getpid(), signal.SIGUSR1)

    made.engine.after_step = after_step
    with pytest.raises(Interrupted) as stop:
        made.fit()
    assert stop.value.exit_code == 138
    runner(tmp_path / "cut").fit()
    assert same(network(tmp_path / "whole"), network(tmp_path / "cut"))
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "cut")


def test_killed_in_evaluation(tmp_path: Path) -> None:
    whole = runner(tmp_path / "whole").fit()
    made = runner(tmp_path / "cut")
    calls = 0
    loader = made.data.eval_loader

    def eval_loader(source: Any, limit: int | None = None) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Killed
        return loader(source, limit)

    made.data.eval_loader = eval_loader
    with pytest.raises(Killed):
        made.fit()
    assert runner(tmp_path / "cut").fit()["matrix"] == whole["matrix"]


def test_frozen_is_measured_and_not_trained(tmp_path: Path) -> None:
    results = runner(tmp_path, [Frozen()]).fit()
    rows = results["matrix"]["values"]
    assert rows[0] == rows[1] == rows[2]
    assert any("was not trained" in note for note in results["notes"])


def test_test_reproduces_the_rows(tmp_path: Path) -> None:
    for name, make in STRATEGIES.items():
        rows = runner(tmp_path / name, make()).fit()["matrix"]["values"]
        for name_there, row in (("task-1", rows[1]), ("last", rows[2])):
            cells = runner(tmp_path / name, make()).test(name_there)[""]
            assert [c.result.value for c in cells] == row


def test_variants_sweep_without_training(tmp_path: Path) -> None:
    strategies = [WeightInterpolation(alpha=0.5, alphas=(0.0, 1.0))]
    rows = runner(tmp_path, strategies).fit()["matrix"]["values"]
    cells = runner(tmp_path, [WeightInterpolation(alpha=0.5, alphas=(0.0, 1.0))]).test("last")
    assert [c.result.value for c in cells["alpha=0"]] == rows[0]
    assert len(cells) == 3


def test_init_from_a_run(tmp_path: Path) -> None:
    first = runner(tmp_path / "first").fit()
    second = runner(tmp_path / "second", init_from=str(tmp_path / "first")).fit()
    assert second["matrix"]["values"][0] == first["matrix"]["values"][-1]


def test_carried_optimizer_differs_from_a_fresh_one(tmp_path: Path) -> None:
    runner(tmp_path / "fresh").fit()
    runner(tmp_path / "carried", carry_optimizer=True).fit()
    assert same(network(tmp_path / "fresh", "task-1"), network(tmp_path / "carried", "task-1"))
    assert not same(network(tmp_path / "fresh"), network(tmp_path / "carried"))


def test_a_finished_run_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    results = runner(tmp_path).fit()
    with caplog.at_level("WARNING", logger="mmcl"):
        assert runner(tmp_path).fit() == results
    assert "is finished" in caplog.text


def test_another_configuration_is_refused(tmp_path: Path) -> None:
    runner(tmp_path).fit()
    with pytest.raises(ConfigError, match=r"differs in lr \(0.01 there, 0.02 here\)"):
        runner(tmp_path, lr=2e-2).fit()


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    with runner(tmp_path).folder.locked(), pytest.raises(ConfigError, match="is in use by process"):
        runner(tmp_path).fit()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(ConfigError, match=r"cannot be locked: Is a directory; choose another --run_dir"):
        runner(tmp_path).fit()


def test_a_cadence_below_zero_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="save_every is -1; give 1 or more, or 0 to save between tasks alone"):
        runner(tmp_path / "run", save_every=-1).fit()
    assert not (tmp_path / "run").exists()


def test_nan_stops_with_task_step_and_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"loss is (nan|inf) in task 'first' at step \d+ of 10 .*last good checkpoint"):
        runner(tmp_path, lr=1e30).fit()
    assert all(torch.isfinite(v).all() for v in network(tmp_path).values())


def test_a_broken_checkpoint_is_reported_and_the_one_before_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runner(tmp_path / "whole").fit()
    killed_at(tmp_path / "cut", 8, [])
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    with caplog.at_level("WARNING", logger="mmcl"):
        runner(tmp_path / "cut").fit()
    assert "damaged" in caplog.text
    assert same(network(tmp_path / "whole"), network(tmp_path / "cut"))


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saves = 0
    save = torch.save

    def full(content: Any, path: Any) -> None:
        nonlocal saves
        saves += 1
        if saves == 4:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(content, path)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RunError, match=r"No space left on device.*last good checkpoint"):
        runner(tmp_path).fit()
    monkeypatch.undo()
    assert not list((tmp_path / "checkpoints").glob("*.part"))
    assert runner(tmp_path).fit()["run"]["status"] == "finished"


def test_two_claims_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="MomentumInterpolation and WeightEnsemble both claim 'eval_weights'"):
        runner(tmp_path / "run", [MomentumInterpolation(), WeightEnsemble()]).fit()
    assert not (tmp_path / "run").exists()


def test_another_configuration_that_came_first_is_refused(tmp_path: Path) -> None:
    """Between the look at the folder and its lock another run may have begun there, and ended."""
    made = runner(tmp_path, lr=2e-2)
    locked = made.folder.locked

    def late() -> Any:
        runner(tmp_path).fit()
        return locked()

    made.folder.locked = late  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match=r"differs in lr \(0.01 there, 0.02 here\)"):
        made.fit()


class Remembers(Strategy):
    """Keeps a number of NumPy's, which `weights_only` does not read again."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("seen", {"count": [0]})

    def on_task_end(self, task: Task, data: DataPass) -> None:
        self.seen = {"count": [np.float64(1)]}


def test_state_that_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"state 'seen' of strategy 'remembers' holds a float64.*last good checkpoint"):
        runner(tmp_path, [Remembers()]).fit()
    assert checkpoint.load(tmp_path / "checkpoints" / "last.ckpt")["progress"]["phase"] == "trained"


def test_time_of_training_has_none_of_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = runner(tmp_path, stream=stream(segment=5))
    measure, clock = made._measure, [0.0]

    def slow(stage: Any, variant: str = "") -> Any:
        clock[0] += 100.0
        return measure(stage, variant)

    monkeypatch.setattr(made, "_measure", slow)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    assert [t["train_seconds"] for t in made.fit()["tasks"]] == [0.0, 0.0]


class Gradients(Strategy):
    """Notes the gradients of each step as strategies see them."""

    gradients = "observe"

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[dict[str, torch.Tensor]] = []

    def on_gradients(self, context: StepContext) -> None:
        self.seen.append({name: gradient.clone() for name, gradient in context.grads.items()})


def test_gradients_are_not_scaled_where_strategies_see_them(tmp_path: Path) -> None:
    """Half precision with a fused optimizer, which would unscale within its step."""
    seen = {}
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=1024.0)):
        watch = Gradients()
        plugin = MixedPrecision("16-mixed", "cpu", scaler) if scaler else MixedPrecision("bf16-mixed", "cpu")
        made = runner(tmp_path / str(scaler is None), [watch], trainer={"plugins": [plugin], "gradient_clip_val": 1e9})
        made.module.optimizer_builder = lambda groups: torch.optim.AdamW(groups, lr=1e-3, fused=True)
        made.fit()
        seen[scaler is None] = watch.seen[0]
    for name, gradient in seen[True].items():
        torch.testing.assert_close(seen[False][name], gradient, rtol=0.1, atol=0.05)


def test_gradients_have_canonical_names(tmp_path: Path) -> None:
    """Those under which `weights` and snapshots have them, also where something is attached to a weight that trains."""
    watch = Gradients()
    made = runner(tmp_path, [watch])
    parametrize.register_parametrization(made.module.network[0], "weight", nn.Identity())
    made.fit()
    assert watch.seen[0].keys() == dict(toy.ToyModule().network.named_parameters()).keys()
    assert watch.seen[0].keys() <= watch.weights().keys()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"limit_train_batches": 2}, "a task would see a few batches over and over"),
        ({"limit_train_batches": 0.5}, "a task would see a few batches over and over"),
        ({"overfit_batches": 1}, "a task would see a few batches over and over"),
        ({"min_steps": 9}, "a run would not heed signals"),
        ({"min_epochs": 1}, "a run would not heed signals"),
        ({"max_steps": 9}, "belong to the tasks' budgets"),
        ({"strategy": ModelParallelStrategy(), "devices": 2}, "ModelParallelStrategy cannot run a stream.*use ddp"),
    ],
)
def test_limits_of_the_trainer_are_refused(tmp_path: Path, setting: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        runner(tmp_path / "run", trainer=setting).fit()
    assert not (tmp_path / "run").exists()


def test_gradients_are_gone_after_training(tmp_path: Path) -> None:
    made = runner(tmp_path)
    made.fit()
    assert all(p.grad is None for p in made.engine.parameters())


def test_predictions_are_made_in_the_precision_of_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half = {"precision": "bf16-mixed"}
    runner(tmp_path, trainer=half).fit()

    def predict_rows(probe: Any, batch: dict[str, Any], outputs: Any) -> list[dict[str, Any]]:
        return [{"dtype": str(outputs.logits.dtype)} for _ in batch["valid"]]

    monkeypatch.setattr(toy.ErrorProbe, "predict", predict_rows, raising=False)
    monkeypatch.setattr(toy.ToyData, "_batch", keyed(toy.ToyData._batch))
    written = predict(runner(tmp_path, trainer=half), "last")
    rows = [json.loads(line) for file in written for line in file.read_text().splitlines()]
    assert {row["dtype"] for row in rows} == {"torch.bfloat16"}


def keyed(batch: Any) -> Any:
    """Batches with sample keys."""

    def made(*args: Any, **kwargs: Any) -> dict[str, Any]:
        found: dict[str, Any] = batch(*args, **kwargs)
        return {**found, "__key__": [str(i) for i in range(len(found["valid"]))]}

    return made
