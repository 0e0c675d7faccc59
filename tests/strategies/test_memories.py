"""Memories of tasks: what is kept, what is drawn, how gradients are projected, and which answers are remembered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cases
import pytest
import tiny
import tiny_classes
import torch

from mmcl import Budget, Source, Strategy, Stream, Task
from mmcl.errors import ConfigError
from mmcl.functional.gradients import flatten
from mmcl.functional.representations import threshold_margin_loss
from mmcl.outputs import Outputs
from mmcl.replay import TaskMemories
from mmcl.strategies import AGEM, GEM, L2P, CenterLoss, DERPlusPlus, GeRe, NearestMean, SPrompts
from mmcl.strategy import StepContext
from mmcl.stream import TaskSamples


class Look(Strategy):
    """Calls a function at a step's losses."""

    def __init__(self, look: Any) -> None:
        super().__init__()
        self.look = look

    def losses(self, context: StepContext) -> dict[str, Any]:
        self.look(context)
        return {}


class Before(Strategy):
    """Keeps the gradient and the weights that a step had before it was projected."""

    gradients = "observe"

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def on_gradients(self, context: StepContext) -> None:
        self.seen.append(flatten(context.grads, sorted(context.grads)))


class After(Before):
    """Checks a step's gradient after the projection, against the memories that it was projected on."""

    gradients = "mask"

    def __init__(self, before: Before, name: str) -> None:
        super().__init__()
        self.before, self.of = (before,), name
        self.changed = self.checked = 0

    def on_gradients(self, context: StepContext) -> None:
        names = sorted(context.grads)
        own = flatten(context.grads, names)
        old = self.before[0].seen[-1]
        for name, batch in context.side.items():
            if not name.startswith(f"{self.of}/"):
                continue
            reference = flatten(context.gradients(batch), names)
            scale = float(reference.norm() * own.norm())
            assert float(reference @ own) >= -1e-4 * scale
            harmed = float(reference @ old) < 0
            self.changed += harmed and not torch.equal(own, old)
            self.checked += 1
            assert harmed or self.of == "gem" or torch.equal(own, old)


def test_each_task_has_a_memory_that_stays() -> None:
    memories = TaskMemories(2, seed=3)
    samples = TaskSamples([0] * 5, list("abcde"), None)
    memories.add("one", samples)
    first = list(memories.of["one"].kept["one"])
    memories.add("two", samples)
    assert memories.of["one"].kept["one"] == first and len(first) == 2
    again = TaskMemories(2, seed=3)
    again.load(memories.state())
    assert again.state() == memories.state() and again.of == memories.of
    with pytest.raises(ConfigError, match="rule herding needs features"):
        TaskMemories(2, "herding")


def test_all_earlier_tasks_are_drawn_from() -> None:
    """Before the fourth task, where the last one is not all of them; samples are chosen by the run's seed."""
    stream = Stream("toy", [Task(name, [Source([f"{name}.tar"])], Budget(steps=1)) for name in "abcd"])
    module = SimpleNamespace(objective=SimpleNamespace(of_one_task=False))
    found: dict[str, list[str]] = {}
    for strategy in (AGEM(8), GEM(8), DERPlusPlus(8)):
        strategy.attach_reach(SimpleNamespace(module=module, stream=stream, seed=3))  # type: ignore[arg-type]
        strategy.setup(stream)
        assert strategy.memories.seed == 3
        for name in "abc":
            strategy.memories.add(name, TaskSamples([0] * 5, list("vwxyz"), None))
        found |= {source.name: [part.task for part in source.all] for source in strategy.sources(stream.tasks[3])}  # type: ignore[attr-defined, misc]
    assert found == {
        "agem/memory": ["a", "b", "c"],
        **{f"gem/{name}": [name] for name in "abc"},
        **{f"der_plus_plus/{name}": ["a", "b", "c"] for name in ("answers", "labels")},
    }


def test_gem_leans_towards_the_memory_by_its_margin() -> None:
    gradient, memory = torch.tensor([-1.0, 1.0]), torch.tensor([[1.0, 0.0]])
    for margin, wanted in ((0.0, [0.0, 1.0]), (2.0, [1.0, 1.0])):
        assert GEM(4, margin=margin).projected(gradient, memory).tolist() == pytest.approx(wanted)


@pytest.mark.parametrize("make", [AGEM, GEM])
def test_steps_do_not_point_against_the_memory(make: Any, tmp_path: Path) -> None:
    strategy, before = make(8, batch_size=8), Before()
    after = After(before, strategy.name)
    cases.run("causal_lm", tmp_path / "shards", tmp_path / "run", [strategy, before, after])
    assert after.checked == 6 and after.changed > 0
    figures = [record for record in tiny.metrics(tmp_path / "run") if f"{strategy.name}/violations" in record]
    assert {record["task"] for record in figures} == {"numbers"}


def test_memories_are_side_batches_of_earlier_tasks(tmp_path: Path) -> None:
    rows: list[tuple[str, str, int]] = []

    def look(context: StepContext) -> None:
        assert context.task is not None
        for name, batch in context.side.items():
            rows.extend((context.task.name, name, domain) for domain in batch["domain"].tolist())

    der, gem = DERPlusPlus(8, batch_size=4), GEM(8, batch_size=2)
    cases.run("classes", tmp_path / "shards", tmp_path / "run", [der, gem, AGEM(4, batch_size=2), Look(look)])
    assert Counter(rows) == {
        ("task-1", "der_plus_plus/answers", 0): 4 * 6,
        ("task-1", "der_plus_plus/labels", 0): 4 * 6,
        ("task-1", "gem/task-0", 0): 2 * 6,
        ("task-1", "agem/memory", 0): 2 * 6,
    }
    assert [len(memory.kept[name]) for name, memory in der.memories.of.items()] == [4, 4]
    assert [len(rows) for rows in der.remembered.values()] == [4, 4]


BESIDE: dict[str, Callable[[], list[Strategy]]] = {
    "alone": list,
    "prompts": lambda: [L2P(6, 2, 2)],
    "prompts-and-heads": lambda: [SPrompts(3, 2)],
    "means": lambda: [NearestMean(trains="all")],
}
KINDS = ["classes-growing", "clip", "causal_lm", "asr-whisper", "asr-wav2vec2"]
TOGETHER = [*((case, "alone") for case in KINDS), *((KINDS[0], name) for name in BESIDE if name != "alone")]


@pytest.mark.parametrize(("case", "beside"), TOGETHER)
def test_answers_are_those_of_the_time(case: str, beside: str, tmp_path: Path) -> None:
    """At the first step after a task the unaugmented samples of the memory are answered in training as they were."""
    der = DERPlusPlus(6, alpha=1.0, beta=0.0, batch_size=4)
    found: list[float] = []

    def look(context: StepContext) -> None:
        if context.task_step == 0 and context.side:
            (batch,) = context.side.values()
            der.module.eval()
            (source,) = der.side("again", der.earlier())
            for clean in der.reach.samples(source):
                prepared = der.module.objective.prepare(clean)
                with torch.no_grad():
                    found.append(float(der._of_answers(context.forward(prepared), prepared)))
            der.module.train()
            assert "der_plus_plus/answers" in context.side and len(batch["__key__"]) == 4

    cases.run(case, tmp_path / "shards", tmp_path / "run", [*BESIDE[beside](), der, Look(look)])
    assert found and max(found) < 1e-8
    kept = [row for rows in der.remembered.values() for row in rows]
    assert all(torch.isfinite(value).all() for row in kept for value in row.values())


def test_answers_and_labels_have_their_weights() -> None:
    strategy = DERPlusPlus(4, alpha=2.0, beta=3.0)
    stream = Stream("toy", [Task("one", [Source(["one.tar"])], Budget(steps=1))])
    module = SimpleNamespace(objective=SimpleNamespace(prepare=lambda batch: batch))
    strategy.attach_reach(SimpleNamespace(module=module, stream=stream))  # type: ignore[arg-type]
    strategy.memories.add("one", TaskSamples([0, 0], ["a", "b"], None))
    strategy.remembered = {"one": [{"logits": torch.zeros(2)}, {"logits": torch.ones(2)}]}
    outputs = Outputs(logits=torch.tensor([[1.0, 1.0], [2.0, 0.0]]))  # as remembered, and away from it
    batch = {"__index__": torch.tensor([1, 0]), "valid": torch.ones(2, dtype=torch.bool)}
    context: Any = SimpleNamespace(
        side={f"der_plus_plus/{name}": batch for name in ("answers", "labels")},
        forward=lambda batch: outputs,
        module_loss=lambda outputs, batch: torch.tensor(5.0),
    )
    assert {name: float(term) for name, term in strategy.losses(context).items()} == {
        "answers": 2.0 * (0 + (2**2 + 0) / 2) / 2,
        "labels": 3.0 * 5.0,
    }


@pytest.mark.parametrize("bad", [4, 29])
def test_a_picture_that_cannot_be_decoded_leaves_the_memory(bad: int, tmp_path: Path) -> None:
    """Sample 29 is the last one of the first task; 6 is one of the second."""
    stream = tiny_classes.stream(tmp_path / "shards", broken=[bad, 6])
    der = DERPlusPlus(32, alpha=1.0, beta=0.0, batch_size=4)
    drawn: set[str] = set()
    errors: list[float] = []

    def look(context: StepContext) -> None:
        for batch in context.side.values():
            drawn.update(batch["__key__"])
        if context.task_step == 0 and context.side:
            der.module.eval()
            for clean in der.reach.samples(*der.side("again", der.earlier())):
                prepared = der.module.objective.prepare(clean)
                with torch.no_grad():
                    errors.append(float(der._of_answers(context.forward(prepared), prepared)))
            der.module.train()

    runner = cases.runner("classes-growing", stream, tmp_path / "run", [der, Look(look)])
    runner.data.bad.max_bad = 0.3
    runner.fit()
    left = [f"dots-{i:03d}" for i in range(32) if i % 4 < 2 and i != bad]
    assert sorted(sample.key for sample in der.memories.of["task-0"].kept["task-0"]) == left and drawn <= set(left)
    assert [len(rows) for rows in der.remembered.values()] == [15, 15]
    assert errors and max(errors) < 1e-8


def test_what_a_memory_refuses(tmp_path: Path) -> None:
    for build, message in (
        (lambda: DERPlusPlus(8, alpha=-1.0), "alpha is -1.0"),
        (lambda: DERPlusPlus(8, on="logit"), "on 'logit' is unknown; did you mean logits"),  # type: ignore[arg-type]
        (lambda: AGEM(0), "AGEM: size is 0; it must be 1 or more"),
        (lambda: AGEM(8, batch_size=0), "AGEM: batch_size is 0"),
        (lambda: GEM(8, margin=-0.5), "margin is -0.5"),
        (lambda: GEM(8, rule="k_means"), "rule k_means needs features"),
        (lambda: GeRe(tau=-1.0), "tau is -1.0"),
        (lambda: GeRe(teacher="last"), "teacher 'last' is unknown"),  # type: ignore[arg-type]
        (lambda: GeRe(on="state"), "on 'state' is unknown"),  # type: ignore[arg-type]
        (lambda: GeRe(batch_size=0), "GeRe: batch_size is 0"),
    ):
        with pytest.raises(ConfigError) as error:
            build()
        assert message in str(error.value)
    with pytest.raises(ConfigError, match="size is 1, less than a sample for each of 2 tasks"):
        cases.run("classes", tmp_path / "shards", tmp_path / "run", [GEM(1)])
    with pytest.raises(ConfigError, match="no source 'general'"):
        cases.run("causal_lm", tmp_path / "text", tmp_path / "run", [GeRe()])


def test_general_samples_keep_their_states(tmp_path: Path) -> None:
    """The margin of the pretrained model is 0; a strong pull leaves less of it than none at all."""

    def trained(weight: float) -> tuple[list[float], float]:
        stream = cases.found()["causal_lm"][1](tmp_path / "shards")
        general = GeRe(stream.evals[-1].source, weight=weight, label_weight=0.0, batch_size=8)
        watch = GeRe(stream.evals[-1].source, weight=1e-9, label_weight=0.0, batch_size=8)
        margins: list[float] = []

        def look(context: StepContext) -> None:
            batch = context.side[watch._source.name]  # type: ignore[union-attr]
            student, teacher = context.forward(batch), context.teacher("initial", batch)
            assert student.tokens is not None and teacher.tokens is not None and student.valid is not None
            margins.append(float(watch._margin(context, student, batch)))

        watch.name = "watch"
        cases.run("causal_lm", tmp_path / "shards", tmp_path / str(weight), [general, watch, Look(look)])
        return margins, margins[-1]

    held, last = trained(100.0)
    assert held[0] == 0.0 and max(held) > 0
    assert last < trained(1e-9)[1] / 2


def test_margins_of_valid_tokens_and_labels_have_their_weights() -> None:
    torch.manual_seed(0)
    own, theirs = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    mean, std = torch.randn(4), torch.rand(4)
    valid = torch.tensor([[True, True, False], [True, False, False]])
    strategy = GeRe(weight=2.0, label_weight=3.0, tau=0.5, on="tokens")
    strategy.mean, strategy.std, strategy._source = {"tokens": mean}, {"tokens": std}, Source(["a.tar"], name="general")
    module = SimpleNamespace(objective=SimpleNamespace(prepare=lambda batch: batch))
    strategy.attach_reach(SimpleNamespace(module=module))  # type: ignore[arg-type]
    context: Any = SimpleNamespace(
        side={"general": {}},
        forward=lambda batch: Outputs(tokens=own, valid=valid),
        teacher=lambda name, batch: Outputs(tokens=theirs),
        module_loss=lambda outputs, batch: torch.tensor(5.0),
        reduce=lambda tensor: tensor,
    )
    terms = strategy.losses(context)
    wanted = threshold_margin_loss(own, theirs, mean, std, tau=0.5, valid=valid)
    torch.testing.assert_close(terms, {"labels": torch.tensor(15.0), "margin": 2 * wanted})


@pytest.mark.parametrize(("teacher", "measured"), [("initial", ["pretrained"]), ("previous", ["live", "live"])])
def test_states_are_measured_anew_where_the_teacher_is(teacher: Any, measured: list[str]) -> None:
    strategy, seen = GeRe(teacher=teacher), list[str]()

    def statistics(network: str, source: Source) -> Any:
        seen.append(network)
        return {"tokens": torch.zeros(1)}, {"tokens": torch.ones(1)}

    strategy._statistics, strategy._source = statistics, Source(["a.tar"])  # type: ignore[assignment, method-assign]
    reach: Any = SimpleNamespace(module=SimpleNamespace(network="live"), teacher=lambda name: "pretrained")
    strategy.attach_reach(reach)
    for _ in range(2):
        strategy.on_task_start(None, None)  # type: ignore[arg-type]
    assert seen == measured


def center_step(strategy: CenterLoss, features: torch.Tensor, labels: list[int], domains: list[int]) -> float:
    """The loss of a step on rows of a feature, whose classes are labels of tasks; then the centres move."""
    batch = {"labels": torch.tensor(labels), "domain": torch.tensor(domains)}
    batch["valid"] = torch.ones(len(labels), dtype=torch.bool)
    context: Any = SimpleNamespace(batch=batch, outputs=Outputs({"image": features}))
    context.reduce = context.gather = lambda tensor: tensor
    (loss,) = strategy.losses(context).values()
    strategy.on_gradients(context)
    strategy.on_step_end(context)
    return float(loss)


def test_a_label_is_a_class_of_its_task() -> None:
    """One label in two tasks has two centres; a row whose class has none yet counts as 0 in the mean."""
    strategy, rows = CenterLoss(3.0, feature="image"), torch.eye(2)
    assert center_step(strategy, rows, [0, 0], [0, 1]) == 0
    assert {name: found.tolist() for name, found in strategy.centers.items()} == {"0": [[1, 0]], "1": [[0, 1]]}
    assert center_step(strategy, torch.tensor([[3.0, 2.0], [5.0, 5.0]]), [0, 5], [1, 1]) == 3 * (3**2 + 1) / 2 / 2
    directions = CenterLoss(3.0, feature="image", normalize=True)
    center_step(directions, torch.tensor([[3.0, 4.0]]), [0], [0])
    torch.testing.assert_close(directions.centers["0"], torch.tensor([[0.6, 0.8]]))


def test_centers_are_the_classes_of_the_stream(tmp_path: Path) -> None:
    """A head's columns are classes of their own; features come nearer to their centres than without the loss."""
    spreads = []
    for weight in (1e-9, 10.0):
        strategy = CenterLoss(weight)
        distances: list[float] = []

        def look(context: StepContext, strategy: CenterLoss = strategy, distances: list[float] = distances) -> None:
            features, columns = context.outputs.features["image"].detach(), context.batch["targets"]
            centers = strategy.centers.get("columns")
            if centers is not None and int(columns.max()) < len(centers):
                distances.append(float((features - centers[columns]).square().sum(1).mean()))

        cases.run("domains", tmp_path / "shards", tmp_path / str(weight), [strategy, Look(look)])
        assert strategy.centers.keys() == {"columns"} and len(strategy.centers["columns"]) == 4
        assert strategy.seen["columns"].all()
        spreads.append(sum(distances[-3:]))
    assert spreads[1] < spreads[0]
