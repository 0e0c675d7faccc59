"""The pieces under the runner: effective weights, checkpoints, composition, plug-ins, seeds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from toy import ToyModule, runner

from mmcl import Source, Strategy, checkpoint, plugins, presets, seeds, weights
from mmcl.compose import Composition, check, expand
from mmcl.errors import ConfigError, RunError, near
from mmcl.outputs import Outputs, by_row
from mmcl.reach import RunReach
from mmcl.run_folder import MetricsLog, RunFolder, flatten, write_text
from mmcl.strategies import LwF, WeightEnsemble


class Plus(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.delta = nn.Parameter(torch.full((2, 3), 0.25))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.delta


def test_effective_weights_of_a_parametrized_layer() -> None:
    layer = nn.Linear(3, 2)
    before = layer.weight.detach().clone()
    parametrize.register_parametrization(layer, "weight", Plus())
    read = weights.read(layer)
    assert set(read) == {"weight", "bias"}
    assert torch.equal(read["weight"], before + 0.25)
    raw = layer.parametrizations.weight.original.detach().clone()
    with weights.swapped(layer, {"weight": torch.ones(2, 3)}):
        torch.testing.assert_close(layer.weight, torch.ones(2, 3))
    assert torch.equal(layer.parametrizations.weight.original, raw)


def test_outputs_are_put_together_by_row() -> None:
    def answer(value: float) -> Outputs:
        features = {"image": torch.full((3, 2), value), "text": torch.zeros(5, 2)}
        texts = [f"{value} {i}" for i in range(3)]
        return Outputs(features, logits=torch.full((3, 4), value), texts=texts, logit_scale=torch.tensor(7.0))

    found = by_row({0: answer(0.0), 2: answer(2.0)}, torch.tensor([2, 0, 2]))
    assert found.logits is not None and found.logits[:, 0].tolist() == [2, 0, 2]
    assert found.features["image"][:, 1].tolist() == [2, 0, 2] and found.features["text"].shape == (5, 2)
    assert found.texts == ["2.0 0", "0.0 1", "2.0 2"]
    assert found.logit_scale == 7 and found.tokens is None


def test_each_row_is_rescored_by_its_own_answer() -> None:
    def answer(value: float | None) -> Outputs:
        rescore = None if value is None else lambda logits, names: logits + value * len(names)
        return Outputs(rescore=rescore)

    chosen, logits = torch.tensor([2, 0, 1, 2]), torch.zeros(4, 3)
    found = by_row({0: answer(0.5), 1: answer(None), 2: answer(2.0)}, chosen).rescore
    assert found is not None and found(logits, ["a", "b", "c"])[:, 0].tolist() == [6.0, 1.5, 0.0, 6.0]
    assert by_row({0: answer(None), 2: answer(None)}, chosen).rescore is None


def test_a_teacher_s_table_has_its_rows_by_number_without_those_that_cannot_be_decoded() -> None:
    """Sample 1 cannot, so that 2 is there twice, and the table ends with the last one that can."""
    index, valid = torch.tensor([0, 2, 2, 3]), torch.tensor([True, False, True, True])
    batch = {"x": index.float()[:, None] * 10, "__index__": index, "valid": valid}
    module = SimpleNamespace(compute=lambda network, batch: Outputs({"image": batch["x"]}))
    reach: Any = SimpleNamespace(samples=lambda source: [batch], module=module)
    table = RunReach._table(reach, nn.Identity(), Source(["a.tar"]), "image")[:, 0]
    assert table[[0, 2, 3]].tolist() == [0, 20, 30] and bool(table[1].isnan())


def test_swap_restores_after_an_error() -> None:
    layer = nn.BatchNorm1d(3)
    kept = {k: v.clone() for k, v in layer.state_dict().items()}
    with pytest.raises(ZeroDivisionError), weights.swapped(layer, {"running_mean": torch.ones(3)}):
        raise ZeroDivisionError
    assert all(torch.equal(layer.state_dict()[k], v) for k, v in kept.items())


def test_weights_of_another_architecture_are_named() -> None:
    with pytest.raises(RunError, match=r"'weight' is \(5,\)"):
        weights.write(nn.Linear(3, 2), {"weight": torch.ones(5)})
    with pytest.raises(RunError, match="no 'gain'"):
        weights.write(nn.Linear(3, 2), {"gain": torch.ones(5)})
    with pytest.raises(ConfigError, match=r"of another architecture: weight 'weight' is \(4, 3\) in it, \(2, 3\) here"):
        checkpoint.load_state(nn.Linear(3, 2), nn.Linear(3, 4).state_dict(), "weight", "x.ckpt")


def test_optimizer_moments_go_by_name_and_shape() -> None:
    old, new = nn.Linear(3, 2), nn.Linear(3, 2)
    one = torch.optim.AdamW(old.parameters())
    old(torch.ones(1, 3)).sum().backward()
    one.step()
    saved = checkpoint.optimizer_state(one, {id(p): n for n, p in old.named_parameters()})
    two = torch.optim.AdamW([new.bias, new.weight])
    checkpoint.restore_optimizer(two, saved, {id(p): n for n, p in new.named_parameters()}, exact=False)
    assert torch.equal(two.state[new.weight]["exp_avg"], one.state[old.weight]["exp_avg"])
    grown = nn.Linear(3, 4)
    three = torch.optim.AdamW(grown.parameters())
    checkpoint.restore_optimizer(three, saved, {id(p): n for n, p in grown.named_parameters()}, exact=False)
    assert not three.state


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    torch.save({"format": checkpoint.FORMAT, "x": Path("here")}, tmp_path / "a.ckpt")
    with pytest.raises(RunError, match="damaged or no checkpoint"):
        checkpoint.load(tmp_path / "a.ckpt")


class Wrap(Strategy):
    def __init__(self, log: list[str], label: str) -> None:
        super().__init__()
        self.log, self.label = log, label

    def wrap_forward(self, next: Any, batch: Any, context: Any) -> Any:
        self.log.append(self.label)
        return next(batch)


class Asks(Strategy):
    needs = frozenset({"tokens"})
    unsupported = frozenset({"accumulation"})

    def on_gradients(self, context: Any) -> None: ...


def test_composition() -> None:
    log: list[str] = []
    composition = Composition([Wrap(log, "outer"), Wrap(log, "inner")])
    composition.forward(lambda batch: batch, {}, None)  # type: ignore[arg-type, return-value]
    assert log == ["outer", "inner"]
    assert [s.name for s in expand([LwF(), LwF(), WeightEnsemble()])] == [
        "distillation",
        "distillation_2",
        "weight_ensemble",
    ]
    module: Any = ToyModule()
    with pytest.raises(ConfigError, match="Asks needs 'tokens', which ToyModule does not provide"):
        check([Asks()], module)
    module.provides = frozenset({"tokens"})
    with pytest.raises(ConfigError, match="does not support accumulation"):
        check([Asks()], module, frozenset({"accumulation"}))
    with pytest.raises(ConfigError, match="must say its phase"):
        check([Asks()], module)


class Offers(Strategy):
    offers = frozenset({"tokens"})


def test_what_strategies_offer_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that cannot be imported, or registers what is no strategy, does not hide who offers a need."""
    module: Any = ToyModule()
    monkeypatch.setattr(Asks, "gradients", "observe")
    check([Asks(), Offers()], module)
    found = {"Broken": ("nowhere.Broken", ""), "Made": ("toy.runner", ""), "Theirs": (f"{__name__}.Offers", "")}
    monkeypatch.setattr(plugins, "_foreign", lambda kind: found)
    with pytest.raises(ConfigError, match=r"does not provide; put Theirs into the list of strategies$"):
        check([Asks()], module)


def test_near_names_differ_in_case() -> None:
    assert near("LR", ["lr", "steps"]) == "did you mean lr?"
    assert near("xyz", ["B", "b"]) == "known: B, b" and near("xyz", ["B"], "mmcl list") == "`mmcl list` shows them all"


def test_state_is_declared_once_and_restored() -> None:
    strategy = Strategy()
    strategy.add_state("average", {"w": torch.ones(2, dtype=torch.float64)})
    assert strategy.average["w"].dtype == torch.float32  # type: ignore[index, union-attr]
    with pytest.raises(ConfigError, match="declares state 'average' twice"):
        strategy.add_state("average", 0)
    with pytest.raises(ConfigError, match=r"state \['other'\]"):
        strategy.import_state({"other": 1})
    with pytest.raises(ConfigError, match="not part of a run"):
        strategy.weights()


def test_plugins_are_found_without_importing() -> None:
    assert {"ZSCL", "Frozen", "LwF"} <= set(plugins.listing("strategies"))
    assert plugins.class_path("strategies", "ZSCL") == "mmcl.strategies.zscl.ZSCL"
    with pytest.raises(ConfigError, match=r"unknown strategy 'ZSLC'; did you mean ZSCL"):
        plugins.class_path("strategies", "ZSLC")
    with pytest.raises(ConfigError, match="no such file or preset"):
        presets.find("nowhere")


def test_seeds_are_functions_of_the_place() -> None:
    seeds.reseed(1, "batch", 2)
    first = torch.rand(3)
    seeds.reseed(1, "batch", 2)
    assert torch.equal(first, torch.rand(3))
    assert seeds.mix(1, "a") != seeds.mix(1, "b")
    assert flatten({"a": {"b": [1, {}]}}) == {"a.b.0": 1, "a.b.1": "{}"}


class Reads(Strategy):
    snapshots = frozenset({"initial", "start", "task-1"})

    def on_task_start(self, task: Any, data: Any) -> None:
        self.seen = sum(len(b["labels"]) for b in data())
        self.first = {k: v.clone() for k, v in self.snapshot("initial").items()}

    def on_task_end(self, task: Any, data: Any) -> None:
        self.start = self.snapshot("start")
        teacher = self.reach.teacher("start")
        assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
        assert teacher is self.reach.teacher("start")
        torch.testing.assert_close(weights.read(teacher), dict(self.start))


def test_snapshots_and_teachers(tmp_path: Path) -> None:
    reads = Reads()
    runner(tmp_path, [reads]).fit()
    assert reads.seen == 32
    assert {p.name for p in (tmp_path / "snapshots").iterdir()} == {
        "initial.safetensors",
        "start.safetensors",
        "task-1.safetensors",
    }
    done = torch.load(tmp_path / "checkpoints" / "task-1.ckpt", weights_only=True)["network"]
    torch.testing.assert_close(dict(reads.start), dict(done))


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_bf16_stays_finite_and_resumes(tmp_path: Path, precision: str) -> None:
    results = runner(tmp_path, [WeightEnsemble(interval=2)], trainer={"precision": precision}).fit()
    assert results["run"]["precision"] == precision
    assert all(v == v for row in results["matrix"]["values"] for v in row)


def test_records_say_when_they_cannot_be_written(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", 0)
    log.write("step", loss=1.0)
    assert log.offset() == (tmp_path / "metrics.jsonl").stat().st_size
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(RunError, match=r"metrics\.jsonl cannot be written: "):
        log.write("step")
    with pytest.raises(RunError, match=r"results\.json cannot be written: "):
        write_text(tmp_path / "gone" / "results.json", "{}")


HOLDER = """
import multiprocessing, os, sys, time
from mmcl.run_folder import RunFolder

def work():
    print(os.getpid(), flush=True)
    time.sleep(60)

with RunFolder(sys.argv[1]).locked():
    multiprocessing.get_context("fork").Process(target=work).start()
    time.sleep(60)
"""


def test_a_worker_that_outlives_a_killed_run_does_not_hold_its_folder(tmp_path: Path) -> None:
    """Workers are forked, and look for their parent every few seconds only."""
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    worker = int(holder.stdout.readline())
    with pytest.raises(ConfigError, match=f"in use by process {holder.pid}"), RunFolder(tmp_path).locked():
        pass
    holder.kill()
    holder.wait()
    try:
        with RunFolder(tmp_path).locked():
            pass
    finally:
        os.kill(worker, signal.SIGKILL)
        holder.stdout.close()
