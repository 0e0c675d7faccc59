"""Classifiers on frozen and slowly trained features: what they keep, what they answer, what trains beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cases
import pytest
import tiny
import torch
from torch import Tensor, nn

from mmcl import EvalSet, Strategy, Stream, Task, presets
from mmcl import trainer as lightning
from mmcl.datamodules import StreamDataModule
from mmcl.errors import ConfigError, RunError
from mmcl.functional import nearest_mean_logits, random_projection_ridge
from mmcl.functional.alignment import align_classifier
from mmcl.functional.ridge import cross_validated_ridge, random_expansion, ridge_logits
from mmcl.outputs import Batch, Forward, Outputs
from mmcl.runner import Runner, RunOptions
from mmcl.strategies import APER, SLCA, DPeCLIP, FlyCL, MomentumInterpolation, NearestMean, RanPAC, SimpleCIL
from mmcl.strategy import DataPass, StepContext

LOWEST = torch.finfo(torch.float32).min


class Looks(Strategy):
    """Keeps the features and columns of every task's samples, and the outputs of the last evaluation; outermost."""

    def __init__(self) -> None:
        super().__init__()
        self.features: list[Tensor] = []
        self.columns: list[Tensor] = []
        self.outputs: list[Outputs] = []

    def on_task_end(self, task: Task, data: DataPass) -> None:
        with torch.no_grad():
            found = [(self.module(batch).features["image"], batch["targets"]) for batch in data()]
        self.features.append(torch.cat([f for f, _ in found]))
        self.columns.append(torch.cat([t for _, t in found]))
        self.outputs.clear()

    def wrap_forward(self, next: Forward, batch: Batch, context: StepContext) -> Outputs:
        outputs = next(batch)
        if context.stage == "test":
            self.outputs.append(outputs)
        return outputs


class Adapter(Strategy):
    """Adds a trained change to one linear weight, as low-rank methods do, and asks to train in every task."""

    def __init__(self) -> None:
        super().__init__()
        self.change = nn.Module()
        self.seen: list[Tensor] = []

    def setup(self, stream: Stream) -> None:
        site = self.module.sites("linear")[0]
        self.delta = nn.Parameter(torch.zeros(site.shape))
        site.attach(lambda: self.delta)

    def grow(self, task: Task) -> None:
        self.module.network.requires_grad_(False)
        self.delta.requires_grad_(True)

    def on_task_end(self, task: Task, data: DataPass) -> None:
        self.seen.append(self.delta.detach().clone())


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prototypes")


@pytest.fixture
def walk(shards: Path, tmp_path: Path) -> Callable[..., Runner]:
    """A finished run of a case; its parts can be looked at."""

    def run(case: str, strategies: Sequence[Strategy], change: Callable[[Stream], Stream] = lambda s: s) -> Runner:
        (shards / case).mkdir(exist_ok=True)
        module, stream = cases.found()[case]
        torch.manual_seed(0)
        data = StreamDataModule(change(stream(shards / case)), batch_size=8, eval_batch_size=5)
        trainer = lightning.make(accelerator="cpu", enable_progress_bar=False, log_every_n_steps=2)
        folder = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        runner = Runner(data, module(), strategies, trainer, RunOptions(run_dir=folder, identity={"case": case}))
        runner.fit()
        return runner

    return run


def matrix(runner: Runner) -> Tensor:
    return torch.tensor(runner.record.data["matrix"]["values"], dtype=torch.float64)


def state(runner: Runner, name: str, checkpoint: str = "last") -> dict[str, Any]:
    path = runner.folder.checkpoints / f"{checkpoint}.ckpt"
    content: dict[str, Any] = torch.load(path, weights_only=True)["strategies"][name]
    return content["state"]


# -- nearest means --------------------------------------------------------------------------------------------------


def test_means_are_those_of_the_training_samples_and_answer_by_cosine(walk: Any) -> None:
    looks, means = Looks(), NearestMean()
    runner = walk("classes", [looks, means])
    x, y = torch.cat(looks.features), torch.cat(looks.columns)
    expected = torch.stack([x[y == c].double().mean(0) for c in range(4)])
    torch.testing.assert_close(means.sums / means.counts[:, None], expected)
    assert means.counts.tolist() == [8, 8, 8, 8] and state(runner, "nearest_mean")["sums"].dtype == torch.float64
    outputs = looks.outputs[0]
    assert outputs.logits is not None
    torch.testing.assert_close(outputs.logits, nearest_mean_logits(outputs.features["image"], expected.float()))
    assert all(not p.requires_grad for p in runner.module.network.parameters())
    assert [task["steps"] for task in runner.record.data["tasks"]] == [0, 0]
    assert any("nothing has requires_grad" in note for note in runner.record.data["notes"])
    start, end = tiny.network(runner.folder.path, "task-1"), runner.module.network.state_dict()
    assert all(torch.equal(start[k], end[k]) for k in start)
    again = walk("classes", [SimpleCIL()])
    assert torch.equal(matrix(again), matrix(runner))


def test_classes_without_samples_have_the_lowest_score(walk: Any) -> None:
    looks, means = Looks(), NearestMean()
    walk("classes", [looks, means], lambda s: s.with_tasks(s.tasks))
    means.counts[2:] = 0
    outputs = Outputs(features={"image": looks.features[0]}, logits=torch.zeros(len(looks.features[0]), 4))
    means.answer(outputs)
    assert outputs.logits is not None and bool((outputs.logits[:, 2:] == LOWEST).all())
    assert outputs.logits.softmax(1).isfinite().all()
    narrow = Outputs(features=outputs.features, logits=torch.zeros(len(looks.features[0]), 2))
    means.answer(narrow)  # a head that has not grown further
    assert narrow.logits is not None and torch.equal(narrow.logits, outputs.logits[:, :2])


def test_means_add_up_when_classes_come_again(walk: Any) -> None:
    looks, means = Looks(), NearestMean()
    walk("domains", [looks, means])
    x, y = torch.cat(looks.features), torch.cat(looks.columns)
    assert means.counts.tolist() == [12, 12, 12, 12]
    expected = torch.stack([x[y == c].double().mean(0) for c in range(4)])
    torch.testing.assert_close(means.sums / means.counts[:, None], expected)


def test_statistics_are_those_of_the_evaluation_weights(walk: Any) -> None:
    """With slow weights in evaluation the means are those of the slow network, not of the one in training."""
    means = NearestMean(trains="all")
    live, slow = Looks(), MomentumInterpolation(0.99)
    walk("classes-growing", [live, slow, means])
    x, y = live.features[-1], live.columns[-1]
    found = (means.sums / means.counts[:, None])[2:].float()
    trained = torch.stack([x[y == c].mean(0) for c in (2, 3)])
    assert float((found - trained).abs().max()) > 1e-3


def test_a_contrastive_module_answers_by_means_where_it_has_them(walk: Any) -> None:
    def with_others(stream: Stream) -> Stream:
        names = ["one", "two", "three", "four"]
        other = EvalSet("other", stream.evals[2].source, "zero_shot", names, stream.evals[2].templates)
        return Stream(stream.name, stream.tasks, [*stream.evals, other])

    means = NearestMean()
    runner = walk("clip-classes", [means], with_others)
    values = matrix(runner)
    assert torch.equal(values[1, [1, 3]], values[0, [1, 3]])  # no class of theirs has a mean yet: the texts answer
    assert torch.equal(values[2, [3]], values[0, [3]])
    assert bool((values[2, :3] > 0.6).all()) and values[1, 0] > 0.6
    assert values[1, 2] <= 0.5  # of four candidates two have means, and only these are answered
    outputs = Outputs(features={"image": means.sums.float()})
    means.answer(outputs)
    assert outputs.logits is None and outputs.rescore is not None
    found = outputs.rescore(torch.zeros(4, 2), ["grey", "none"])
    assert found[:, 1].tolist() == [LOWEST] * 4 and found[3, 0] == pytest.approx(1)


# -- ridge ----------------------------------------------------------------------------------------------------------


def test_the_ridge_classifier_is_that_of_all_samples_at_once(walk: Any) -> None:
    looks, ridge = Looks(), RanPAC(24, ridge=0.5)
    runner = walk("classes", [looks, ridge])
    x, y = torch.cat(looks.features), torch.cat(looks.columns)
    whole = random_projection_ridge(x, y, ridge.projection, ridge=0.5)
    torch.testing.assert_close(ridge.gram, whole.gram)
    torch.testing.assert_close(ridge.weight, whole.weight.float(), rtol=1e-4, atol=1e-6)
    kept = state(runner, "ran_pac")
    assert kept["gram"].dtype == torch.float64 and kept["gram"].shape == (24, 24)
    assert kept["projection"].std() == pytest.approx(1, abs=0.1)
    logits = looks.outputs[0].logits
    assert logits is not None
    features = looks.outputs[0].features["image"]
    torch.testing.assert_close(logits, (features @ ridge.projection).relu() @ ridge.weight.T)


def test_the_ridge_is_chosen_and_the_projection_drawn_once(walk: Any) -> None:
    chosen, other = RanPAC(24), FlyCL(24, keep=0.25, connections=0.5)
    runner = walk("classes", [chosen])
    assert chosen.ridge in {10.0**p for p in range(-8, 9)}
    assert torch.equal(state(runner, "ran_pac", "task-1")["projection"], chosen.projection)
    walk("classes", [other])
    features = other.projection.shape[0]
    assert ((other.projection != 0).sum(0) == round(0.5 * features)).all() and other.keep == 6


def learner(strategy: Any) -> Any:
    """A ridge classifier beside five classes, that can learn without a run."""
    strategy.attach_reach(SimpleNamespace(generator=lambda task, name: torch.Generator().manual_seed(0)))
    strategy.labels = SimpleNamespace(names=list("abcde"))
    return strategy


def test_winners_alone_are_summed_up_and_all_samples_choose_the_ridge() -> None:
    torch.manual_seed(0)
    strategy, y = learner(FlyCL(24, keep=0.25)), torch.arange(40) % 5
    x = torch.eye(5).repeat(1, 2)[y] + 0.2 * torch.randn(40, 10)
    for rows in (slice(0, 30), slice(30, 40)):
        strategy.learn(None, x[rows], y[rows])
        strategy.counts = torch.bincount(y[: rows.stop], minlength=5)
    hidden = random_expansion(x, strategy.projection, keep=6).double()
    torch.testing.assert_close(strategy.gram, hidden.T @ hidden)
    assert strategy.ridge == cross_validated_ridge(strategy.gram, strategy.cross, 40)[0]


def test_what_is_held_out_is_of_all_classes() -> None:
    """Also where the samples come class after class: for one that no fit has seen, the largest ridge is best."""
    torch.manual_seed(0)
    strategy, y = learner(RanPAC(24)), torch.arange(5).repeat_interleave(8)
    strategy.learn(None, torch.eye(5)[y] + 0.01 * torch.randn(40, 5), y)
    assert strategy.ridge < 10
    with pytest.raises(RunError, match="task 'lone' has one sample, and none can be held out"):
        strategy.learn(SimpleNamespace(name="lone"), torch.ones(1, 5), y[:1])


def test_directions_are_compared_where_that_is_asked_for() -> None:
    strategy, x = RanPAC(24, cosine=True), torch.randn(5, 8)
    strategy.projection, strategy.weight = torch.randn(8, 24), torch.randn(4, 24)
    wanted = ridge_logits(x, strategy.weight, strategy.projection, cosine=True)
    torch.testing.assert_close(strategy.scores(x), wanted)


# -- APER -----------------------------------------------------------------------------------------------------------


def test_aper_adapts_in_the_first_task_alone(walk: Any) -> None:
    adapter, looks = Adapter(), Looks()
    runner = walk("classes-growing", [looks, APER(adapter)])
    assert [task["steps"] > 0 for task in runner.record.data["tasks"]] == [True, False]
    assert bool(adapter.seen[0].any()) and torch.equal(adapter.seen[0], adapter.seen[1])
    (means,) = (s for s in runner.composition.strategies if isinstance(s, NearestMean))
    x, y = torch.cat(looks.features), torch.cat(looks.columns)
    assert means.sums.shape == (4, 2 * x.shape[1])
    live = torch.stack([x[y == c].double().mean(0) for c in range(4)])
    found = means.sums / means.counts[:, None]
    torch.testing.assert_close(found[:, x.shape[1] :], live)  # the second half is the adapted network's
    adapter.delta.data.zero_()
    with torch.no_grad(), runner.engine.evaluation_mode():
        pretrained = [runner.module(batch).features["image"] for t in runner.stream.tasks for batch in data(runner, t)]
    plain = torch.cat(pretrained)
    first = torch.stack([plain[y == c].double().mean(0) for c in range(4)])
    torch.testing.assert_close(found[:, : x.shape[1]], first, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[:, : x.shape[1]], live, rtol=1e-3)


def test_presets_hand_the_feature_on() -> None:
    for preset in (APER(feature="audio"), SimpleCIL("audio")):
        assert [part.needs for part in preset.parts()] == [{"features.audio"}]


def data(runner: Runner, task: Task) -> Any:
    return runner.data.pass_loader(task)


def test_aper_without_an_adapter_tunes_the_network_once(walk: Any) -> None:
    runner = walk("classes-growing", [APER()])
    one, two = tiny.network(runner.folder.path, "task-1"), tiny.network(runner.folder.path, "task-2")
    shared = [k for k in one if one[k].shape == two[k].shape]
    assert all(torch.equal(one[k], two[k]) for k in shared)
    assert [task["steps"] for task in runner.record.data["tasks"]] == [6, 0]
    assert matrix(runner)[2, :2].mean() > 0.8


def test_names_inside_a_strategy_s_arguments_are_short_too() -> None:
    content: dict[str, Any] = {
        "strategies": [{"class_path": "APER", "init_args": {"adapter": {"class_path": "WeightEnsemble"}}}]
    }
    presets.expand(content)
    (aper,) = content["strategies"]
    assert aper["class_path"] == "mmcl.strategies.aper.APER"
    assert aper["init_args"]["adapter"]["class_path"] == "mmcl.strategies.weight_ensemble.WeightEnsemble"


# -- SLCA -----------------------------------------------------------------------------------------------------------


def test_the_aligned_head_answers_and_never_trains_on(walk: Any) -> None:
    aligned = SLCA(backbone_scale=0.1, epochs=2, samples=8)
    runner = walk("classes-growing", [aligned])
    plain = walk("classes-growing", [SLCA(backbone_scale=0.1, epochs=0)])
    one, other = (tiny.network(r.folder.path, "last") for r in (runner, plain))
    assert all(torch.equal(one[k], other[k]) for k in one)
    assert not state(runner, "slca", "task-1")["aligned"]  # the first task aligns nothing
    live = {k: v.clone() for k, v in runner.module.network.state_dict().items()}
    with runner.composition.eval_weights():
        inside = {k: v.clone() for k, v in runner.module.network.state_dict().items()}
    assert sorted(k for k in live if not torch.equal(live[k], inside[k])) == ["head.bias", "head.weight"]
    assert torch.equal(inside["head.weight"], aligned.aligned["head.weight"])
    assert all(torch.equal(live[k], v) for k, v in runner.module.network.state_dict().items())
    assert [tuple(c.shape) for c in aligned.covariances] == [(2, 64, 64)] * 2


def test_the_alignment_goes_by_the_arguments() -> None:
    given: dict[str, Any] = {"epochs": 2, "samples": 4, "temperature": 0.5, "lr": 0.1, "momentum": 0.1}
    given["weight_decay"] = 0.2
    strategy, network = SLCA(**given), nn.Sequential(nn.Linear(3, 4))
    reach: Any = SimpleNamespace(module=SimpleNamespace(network=network, classifier=network[0]))
    reach.generator, reach.reduce = lambda task, name: torch.Generator().manual_seed(1), lambda value: value
    strategy.attach_reach(reach)
    strategy.means, strategy.owners = [torch.randn(2, 3), torch.randn(2, 3)], [[0, 1], [2, 3]]
    strategy.covariances = [torch.eye(3).repeat(2, 1, 1)] * 2
    gaussians = torch.cat(strategy.means), torch.cat(strategy.covariances), torch.tensor([0, 0, 1, 1])
    weight, bias, _ = align_classifier(
        network[0].weight, network[0].bias, *gaussians, generator=reach.generator(None, ""), **given
    )
    torch.testing.assert_close(strategy._align(None), {"0.weight": weight, "0.bias": bias})  # type: ignore[arg-type]


def test_the_aligned_rows_are_the_leading_ones_of_a_masked_head(walk: Any) -> None:
    aligned = SLCA(backbone_scale=0.1, epochs=1, samples=8)
    runner = walk("classes", [aligned])
    aligned.aligned = {k: v[:2] + 1 for k, v in aligned.aligned.items()}
    live = runner.module.network.state_dict()["head.weight"].clone()
    with runner.composition.eval_weights():
        inside = runner.module.network.state_dict()["head.weight"].clone()
    assert torch.equal(inside[2:], live[2:]) and torch.equal(inside[:2], aligned.aligned["head.weight"])


def test_the_backbone_is_slow_and_the_head_is_not(walk: Any) -> None:
    strategy = SLCA(backbone_scale=0.01, epochs=0)
    runner = walk("classes", [strategy])
    module, found = runner.module, []
    groups = module.parameter_groups()
    own = nn.Parameter(torch.zeros(1))
    groups.append({"params": [own], "name": "adapter", "lr_scale": 1.0, "weight_decay": 0.0})
    strategy.wrap_optimizer(lambda parts: found.extend(parts), groups)  # type: ignore[arg-type, return-value]
    names = {id(p): n for n, p in module.network.named_parameters()} | {id(own): "adapter"}
    scales = {names[id(p)]: group["lr_scale"] for group in found for p in group["params"]}
    assert scales.keys() == set(names.values())
    fast = {"head.weight", "head.bias", "adapter"}
    assert all(scale == (1.0 if name in fast else 0.01) for name, scale in scales.items())
    for group in found:
        assert len(group.get("param_names", group["params"])) == len(group["params"])
    assert len({group["name"] for group in found}) == len(found)


# -- what is refused ------------------------------------------------------------------------------------------------

BAD: list[tuple[Callable[[], Any], str]] = [
    (lambda: NearestMean(trains="frist"), "trains 'frist' is unknown; did you mean first"),  # type: ignore[arg-type]
    (lambda: RanPAC(0), "RanPAC: width is 0"),
    (lambda: RanPAC(ridge=0.0), "ridge is 0.0"),
    (lambda: FlyCL(keep=0.0), "keep is 0.0"),
    (lambda: FlyCL(connections=1.5), "connections is 1.5"),
    (lambda: SLCA(backbone_scale=0), "backbone_scale is 0"),
    (lambda: SLCA(temperature=0.0), "temperature is 0.0"),
    (lambda: SLCA(epochs=-1), "epochs is -1"),
    (lambda: DPeCLIP(1.5), "weight is 1.5"),
]


@pytest.mark.parametrize(("build", "message"), BAD)
def test_bad_arguments_are_refused(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        build()
    assert message in str(error.value) and "\n" not in str(error.value)


def test_samples_without_labels_are_named() -> None:
    """Shards without labels are refused at start-up; a module's transform may still drop them."""
    strategy = NearestMean()
    strategy.attach_reach(SimpleNamespace(evaluating=lambda: nullcontext(lambda batch: Outputs())))  # type: ignore[arg-type]
    task: Any = SimpleNamespace(name="t0", class_names=("a", "b"))
    strategy.setup(SimpleNamespace(tasks=[task]))  # type: ignore[arg-type]
    with pytest.raises(RunError, match="nearest_mean: the samples of task 't0' have no labels"):
        strategy.collect(task, lambda: iter([{"image": torch.zeros(1)}]))  # type: ignore[arg-type]
    features = torch.ones(2, 3)
    strategy.attach_reach(SimpleNamespace(evaluating=lambda: nullcontext(lambda batch: Outputs({"image": features}))))  # type: ignore[arg-type]
    batch = {"labels": torch.tensor([-100, 0]), "domain": torch.zeros(2, dtype=torch.int64), "__key__": ["k", "l"]}
    batch |= {"__index__": torch.arange(2), "valid": torch.tensor([True, False])}
    with pytest.raises(RunError, match="task 't0' has no sample with a label"):
        strategy.collect(task, lambda: iter([batch]))  # type: ignore[arg-type]
