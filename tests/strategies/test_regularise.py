"""Penalties by importance: what they measure, against the functions and the arrays, and whom they pull where."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cases
import numpy as np
import pytest
import tiny_classes
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmcl import Strategy, Task
from mmcl.engine import Context
from mmcl.errors import ConfigError, RunError
from mmcl.functional.importance import squared_output_norm
from mmcl.modules.contrastive_losses import ClassTextCrossEntropy
from mmcl.modules.objectives import CrossEntropy
from mmcl.outputs import Outputs
from mmcl.strategies import (
    AGEM,
    EWC,
    L2P,
    MAS,
    CenterLoss,
    CODAPrompt,
    DERPlusPlus,
    GeRe,
    L2Init,
    SynapticIntelligence,
)
from mmcl.strategy import DataPass, StepContext

PARITY = Path(__file__).parents[1] / "parity"
SIZE = 4


class Regression:
    """The softmax regression of the arrays as a module, on the module's contract."""

    provides = frozenset({"logits"})
    pair = None

    def __init__(self, a: dict[str, Tensor]) -> None:
        self.network = nn.Linear(5, 4).double()
        with torch.no_grad():
            self.network.weight.copy_(a["W"])
            self.network.bias.copy_(a["b"])
        self.objective = CrossEntropy()

    def __call__(self, batch: dict[str, Any]) -> Outputs:
        return Outputs(logits=self.network(batch["x"]), targets=batch["y"], valid=batch["valid"])

    def loss(self, outputs: Outputs, batch: dict[str, Any]) -> dict[str, Tensor]:
        """`CrossEntropy` in the arrays' float64, where it has float32."""
        assert outputs.logits is not None
        valid = batch["valid"]
        total = F.cross_entropy(outputs.logits[valid], batch["y"][valid], reduction="sum")
        return {"loss": total / valid.sum().clamp(min=1)}


@pytest.fixture(scope="module")
def arrays() -> dict[str, Tensor]:
    with np.load(PARITY / "ewc" / "ewc_f64.npz") as data:
        return {key: torch.from_numpy(data[key].copy()) for key in data.files}


def attached(strategy: Any, a: dict[str, Tensor]) -> tuple[Any, Any]:
    """A strategy beside the regression, and a pass over its data with a row of padding in the last batch."""
    module = Regression(a)
    reach = SimpleNamespace(module=module, wrapped=module, reduce=lambda tensor: tensor, seed=0)
    strategy.attach_reach(reach)
    strategy.setup(None)

    def data(augment: bool = False, batch_size: int | None = None, limit: int | None = None) -> Any:
        size = batch_size or SIZE
        for i in range(0, min(limit or 12, 12), size):
            valid = torch.ones(size, dtype=torch.bool)
            yield {"x": a["X"][i : i + size], "y": a["Y"][i : i + size], "valid": valid}
        yield {"x": a["X"][:1], "y": a["Y"][:1], "valid": torch.zeros(1, dtype=torch.bool)}

    return reach.module, data


def no_padding(data: Any) -> Any:
    return lambda **more: (batch for batch in data(**more) if batch["valid"].any())


def test_ewc_measures_the_fisher_information_of_the_arrays(
    arrays: dict[str, Tensor], toolbox: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mmcl")
    single = EWC(estimator="per_sample")
    _, data = attached(single, arrays)
    single.on_task_end(toolbox.task("one"), data)
    for name, value in single.importance.items():
        torch.testing.assert_close(value, arrays[f"fisher_empirical_per_sample.{name}"], rtol=1e-9, atol=1e-12)
    whole = EWC()
    _, data = attached(whole, arrays)
    whole.on_task_end(toolbox.task("one"), no_padding(data))
    for name, value in whole.importance.items():
        torch.testing.assert_close(value, arrays[f"fisher_batch_mean_grad.{name}"], rtol=1e-9, atol=1e-12)
    assert "mean over 12 gradients, each of a sample" in caplog.text
    assert "mean over 3 gradients, each of a batch" in caplog.text
    assert whole.anchor["weight"].equal(arrays["W"])


def test_ewc_pulls_with_the_gradient_of_the_arrays(arrays: dict[str, Tensor], toolbox: SimpleNamespace) -> None:
    strategy = EWC(2.0, estimator="per_sample")
    module, data = attached(strategy, arrays)
    strategy.on_task_end(toolbox.task("one"), data)
    logged: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, param in module.network.named_parameters():
            param.copy_(arrays[f"theta.{name}"])
        strategy.on_gradients(SimpleNamespace(log=logged.__setitem__))
    for name, param in module.network.named_parameters():
        torch.testing.assert_close(param.grad, 2 * arrays[f"penalty_grad.{name}"], rtol=1e-9, atol=1e-12)
    assert float(logged["ewc/penalty"]) == pytest.approx(2 * float(arrays["penalty_half_sum"]), rel=1e-6)


def test_tasks_are_joined_by_the_rule(arrays: dict[str, Tensor], toolbox: SimpleNamespace) -> None:
    found = {}
    for rule, gamma in (("online", 1.0), ("online", 0.5), ("mean", 1.0), ("halves", 1.0)):
        strategy = EWC(rule=rule, gamma=gamma)  # type: ignore[arg-type]
        _, data = attached(strategy, arrays)
        for task in ("one", "two"):
            strategy.on_task_end(toolbox.task(task), no_padding(data))
        found[rule, gamma] = strategy.importance["weight"] / arrays["fisher_batch_mean_grad.weight"]
    for key, factor in zip(found, (2.0, 1.5, 1.0, 0.75), strict=True):
        torch.testing.assert_close(found[key], torch.full((4, 5), factor, dtype=torch.float64))


def test_the_anchor_is_where_the_last_task_ended(arrays: dict[str, Tensor], toolbox: SimpleNamespace) -> None:
    strategy = EWC()
    module, data = attached(strategy, arrays)
    for task in ("one", "two"):
        with torch.no_grad():
            module.network.weight.add_(1.0)
        strategy.on_task_end(toolbox.task(task), no_padding(data))
    assert strategy.anchor["weight"].equal(module.network.weight)


@pytest.mark.parametrize(("estimator", "gradients"), [("batch", 2), ("per_sample", 8)])
def test_a_limit_counts_samples(
    estimator: Any, gradients: int, arrays: dict[str, Tensor], toolbox: SimpleNamespace, caplog: Any
) -> None:
    caplog.set_level(logging.INFO, "mmcl")
    strategy = EWC(estimator=estimator, limit=8)
    _, data = attached(strategy, arrays)
    strategy.on_task_end(toolbox.task("one"), no_padding(data))
    assert f"mean over {gradients} gradients" in caplog.text


def test_mas_is_the_mean_absolute_gradient_of_the_squared_norm(
    arrays: dict[str, Tensor], toolbox: SimpleNamespace
) -> None:
    """d |W x + b|^2 / d W = 2 (W x + b) x^T."""
    answers = arrays["X"] @ arrays["W"].T + arrays["b"]
    each = 2 * answers[:, :, None] * arrays["X"][:, None, :]
    for estimator, wanted in (
        ("per_sample", each.abs().mean(0)),
        ("batch", each.reshape(3, SIZE, 4, 5).mean(1).abs().mean(0)),
    ):
        strategy = MAS(estimator=estimator)  # type: ignore[arg-type]
        _, data = attached(strategy, arrays)
        strategy.on_task_end(toolbox.task("one"), data if estimator == "per_sample" else no_padding(data))
        torch.testing.assert_close(strategy.importance["weight"], wanted, rtol=1e-9, atol=1e-12)


def test_mas_leaves_out_columns_that_a_row_does_not_choose_among(
    arrays: dict[str, Tensor], toolbox: SimpleNamespace
) -> None:
    columns, found = torch.tensor([True, False, True, False]), []
    for extra in ({}, {"candidates": columns.expand(SIZE, -1)}):
        strategy = MAS()
        module, data = attached(strategy, arrays)
        strategy.reach.wrapped = lambda batch, m=module, e=extra: replace(m(batch), extra=e)  # type: ignore[method-assign]
        strategy.on_task_end(toolbox.task("one"), no_padding(data))
        found.append(strategy.importance["weight"])
    torch.testing.assert_close(found[1], found[0] * columns[:, None])


def test_synaptic_intelligence_follows_the_data_alone(toolbox: SimpleNamespace, data: Any) -> None:
    """A penalty beside it pulls hard; its path is still that of the loss: the sum over steps of -g times the step."""
    seen: list[dict[str, Tensor]] = []

    class Watch(Strategy):
        gradients = "observe"

        def on_gradients(self, context: StepContext) -> None:
            seen.append({n: g.clone() for n, g in context.grads.items()})

    run = data.run(L2Init(5.0), SynapticIntelligence(0.25, damping=0.5), Watch())
    run.begin()
    path: dict[str, Tensor] = {}
    start = run.weights(copy=True)
    for i in range(4):
        before = run.weights(copy=True)
        data_gradient = torch.autograd.grad(_loss(run, data.batch(i)), run.module.network.visual.weight)[0]
        run.train_step(data.batch(i), data.side(i), data.lr(i))
        torch.testing.assert_close(seen[-1]["visual.weight"], data_gradient)
        change = run.weights()["visual.weight"] - before["visual.weight"]
        path["w"] = path.get("w", 0.0) - data_gradient * change
    name = "visual.weight"
    follower, pull = run.strategies[1:3]
    torch.testing.assert_close(follower.path[name], path["w"])
    run.end()
    end = run.weights(copy=True)
    torch.testing.assert_close(pull.importance[name], path["w"].clamp(min=0) / ((end[name] - start[name]) ** 2 + 0.5))
    assert follower.path == {} and pull.anchor[name].equal(end[name])
    run.begin("two")
    run.train_step(data.batch(0), data.side(0))
    assert run.logged["synaptic_intelligence/penalty"] == 0.0
    run.train_step(data.batch(1), data.side(1))
    away = run.weights()[name] - end[name]
    assert away.abs().sum() > 0 and run.logged["synaptic_intelligence/penalty"] > 0


def _loss(run: Any, batch: dict[str, Any]) -> Tensor:
    outputs = run.module(batch)
    logits = (
        outputs.logit_scale * F.normalize(outputs.features["image"]) @ F.normalize(outputs.features["class_text"]).T
    )
    return F.cross_entropy(logits, batch["labels"], label_smoothing=0.2)


def test_the_shortcut_is_the_path_of_plain_sgd(data: Any) -> None:
    paths = []
    for approximate in (False, True):
        run = data.run(SynapticIntelligence(0.0001, approximate=approximate))
        run.begin()
        run.optimizer = torch.optim.SGD(run.optimizer.param_groups[0]["params"], lr=0.03)
        for i in range(4):
            run.train_step(data.batch(i), data.side(i))
        paths.append(run.strategies[0].path)
    for name, value in paths[0].items():
        torch.testing.assert_close(paths[1][name], value)


def test_a_pull_leaves_rows_alone_that_came_later() -> None:
    """L2Init and penalties by importance, on a head that grew from two rows to three and on a new tensor."""
    network = nn.Linear(2, 3, bias=False)
    with torch.no_grad():
        network.weight.fill_(3.0)
    network.register_parameter("fresh", nn.Parameter(torch.ones(2)))
    live = {name: p.detach() for name, p in network.named_parameters()}
    reach: Any = SimpleNamespace(
        module=SimpleNamespace(network=network, objective=CrossEntropy(), fresh_head=False),
        snapshot=lambda name: {"weight": torch.ones(2, 2)},
        weights=lambda copy, dtype: live,
    )
    logged: dict[str, Any] = {}
    context: Any = SimpleNamespace(log=logged.__setitem__)
    _, path = SynapticIntelligence(2.0).parts()
    pulls: list[tuple[Any, list[float]]] = [
        (L2Init(0.5), [2, 2]),
        (EWC(2.0), [4, 8]),
        (MAS(2.0), [8, 16]),
        (path, [8, 16]),
    ]
    for strategy, rows in pulls:
        strategy.attach_reach(reach)
        network.zero_grad()
        if not isinstance(strategy, L2Init):
            strategy.anchor = {"weight": torch.ones(2, 2)}
            strategy.importance = {"weight": torch.tensor([[1.0, 1.0], [2.0, 2.0]])}
        with torch.no_grad():
            strategy.on_gradients(context)
        assert network.weight.grad is not None
        assert network.weight.grad.tolist() == [[rows[0]] * 2, [rows[1]] * 2, [0.0, 0.0]]
        assert network.fresh.grad is None
    assert float(logged["l2_init/penalty"]) == 0.5 * 4 * 4
    assert float(logged["ewc/penalty"]) == 2 / 2 * (2 * 4 + 2 * 2 * 4)
    for name in ("mas", "synaptic_intelligence"):  # without 1/2
        assert float(logged[f"{name}/penalty"]) == 2 * float(logged["ewc/penalty"])


def test_l2_init_pulls_to_the_pretrained_weights_in_every_task(data: Any, toolbox: SimpleNamespace) -> None:
    plain, held = data.run(), data.run(L2Init(30.0))
    initial = held._snapshots["initial"]
    for run in (plain, held):
        for name in ("one", "two"):
            run.begin(name)
            data.train(run)
    away = [
        sum(float((run.weights()[n] - initial[n]).double().square().sum()) for n in ("visual.weight", "tok.weight"))
        for run in (plain, held)
    ]
    assert away[1] < away[0] / 2


class Heads(Strategy):
    """Notes the head at the end of each task."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[Tensor] = []

    def on_task_end(self, task: Task, data: DataPass) -> None:
        self.ends.append(self.weights(copy=True)["head.weight"])


def test_l2_init_leaves_a_head_alone_that_the_stream_brings(tmp_path: Path) -> None:
    heads = Heads()
    cases.run("classes", tmp_path / "shards", tmp_path / "run", [L2Init(30.0), heads])
    first, last = heads.ends
    assert torch.equal(first[:2], last[:2]) and not torch.equal(first[2:], last[2:])


class Beside(Strategy):
    """Importance of the head in the forward of a training step, batch by batch: by EWC's measure and by MAS's."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[dict[str, Tensor]] = []
        self.engine: list[Any] = []  # in a list, so that it is no child of this one

    def on_task_end(self, task: Task, data: DataPass) -> None:
        fisher, omega = [], []
        for batch in data(batch_size=8):
            fisher.append(Context(self.engine[0], "fit", batch).gradients(batch)["head.weight"].square())
            prepared = self.module.objective.prepare(batch)
            outputs = Context(self.engine[0], "fit", prepared).forward(prepared)
            assert outputs.logits is not None
            norms = squared_output_norm(outputs.logits, candidates=outputs.extra.get("candidates"))
            omega.append(torch.autograd.grad(norms.mean(), self.module.network.head.weight)[0].abs())
        self.found.append({"ewc": torch.stack(fisher).mean(0), "mas": torch.stack(omega).mean(0)})


@pytest.mark.parametrize("prompts", [lambda: L2P(6, 2, 2), lambda: CODAPrompt(6, 4, (0, 2))])
def test_importance_beside_prompts_is_that_of_the_prompted_features(prompts: Any, tmp_path: Path) -> None:
    ewc, mas, beside = EWC(batch_size=8), MAS(batch_size=8), Beside()
    stream = tiny_classes.stream(tmp_path / "shards")
    runner = cases.runner("classes-growing", stream, tmp_path / "run", [prompts(), ewc, mas, beside])
    beside.engine.append(runner.engine)
    runner.fit()
    first, second = beside.found
    for strategy in (ewc, mas):
        wanted = second[strategy.name].clone()
        wanted[:2] += first[strategy.name]
        torch.testing.assert_close(strategy.importance["head.weight"], wanted, rtol=1e-4, atol=1e-7)


def test_single_samples_of_a_contrastive_loss_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"with Contrastive no sample has a loss of its own.*estimator 'batch'"):
        cases.run("clip", tmp_path / "shards", tmp_path / "run", [EWC(estimator="per_sample")])
    assert not (tmp_path / "run" / "results.json").exists()


def test_labels_of_other_tasks_are_refused_where_they_cannot_be_read() -> None:
    module = SimpleNamespace(objective=ClassTextCrossEntropy(), provides=frozenset({"features"}))
    stream: Any = SimpleNamespace(tasks=[1, 2], source=lambda name: None)
    for strategy in (AGEM(4), DERPlusPlus(4), GeRe()):
        strategy.attach_reach(SimpleNamespace(module=module, seed=0))  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="ClassTextCrossEntropy reads labels as those of the task at hand"):
            strategy.setup(stream)


def test_without_a_weight_of_the_network_there_is_nothing_to_hold(arrays: dict[str, Tensor]) -> None:
    strategy = EWC()
    module, _ = attached(strategy, arrays)
    module.network.requires_grad_(False)
    with pytest.raises(RunError, match="no weight of the network trains"):
        strategy.on_gradients(SimpleNamespace())  # type: ignore[arg-type]


BAD: list[tuple[Any, str]] = [
    (lambda: EWC(-1.0), "EWC: weight is -1.0"),
    (lambda: EWC(estimator="sample"), "estimator 'sample' is unknown"),  # type: ignore[arg-type]
    (lambda: EWC(limit=0), "limit is 0"),
    (lambda: EWC(estimator="per_sample", batch_size=4), "batch_size belongs to the estimator 'batch'"),
    (lambda: EWC(rule="men"), "rule 'men' is unknown; did you mean mean"),  # type: ignore[arg-type]
    (lambda: EWC(gamma=1.5), "gamma is 1.5"),
    (lambda: EWC(gamma=0.5, rule="mean"), "gamma belongs to rule 'online'"),
    (lambda: L2Init(-1.0), "L2Init: weight is -1.0"),
    (lambda: MAS(on="token"), "on 'token' is unknown; did you mean tokens"),  # type: ignore[arg-type]
    (lambda: SynapticIntelligence(damping=0.0), "damping is 0.0"),
    (lambda: SynapticIntelligence(-1.0), "SynapticIntelligence: weight is -1.0"),
    (lambda: CenterLoss(-1.0), "weight is -1.0"),
    (lambda: CenterLoss(rate=2.0), "rate is 2.0"),
]


@pytest.mark.parametrize(("build", "message"), BAD)
def test_bad_arguments_are_refused(build: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        build()
    assert message in str(error.value) and "\n" not in str(error.value)
