"""Memories of tasks: what is kept, what is drawn, how gradients are projected, and which answers are remembered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cases
import pytest
import tiny
import tiny_classes
import torch

from mmcl import Strategy
from mmcl.errors import ConfigError
from mmcl.functional.gradients import flatten
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
        (lambda: AGEM(0), "a buffer of 0 samples"),
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
