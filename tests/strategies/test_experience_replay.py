"""A memory of earlier tasks in training."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cases
import pytest
import tiny_classes
import torch

from mmcl import EvalSet, Source, Strategy, Stream, Task
from mmcl.errors import ConfigError
from mmcl.modules.contrastive_losses import ClassTextCrossEntropy
from mmcl.strategies import ExperienceReplay
from mmcl.strategy import StepContext
from mmcl.stream import TaskSamples


class Watch(Strategy):
    """Notes what the batches of each task hold."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[str, int, int, str]] = []

    def losses(self, context: StepContext) -> dict[str, Any]:
        batch, task = context.batch, context.task
        assert task is not None
        columns = zip(batch["domain"].tolist(), batch["targets"].tolist(), batch["__key__"], strict=True)
        self.rows += [(task.name, *row) for row in columns]
        return {}


@pytest.mark.parametrize("rule", ["reservoir", "class_balanced", "herding", "k_means"])
def test_replayed_rows_keep_their_task_and_their_classes(rule: Any, tmp_path: Path) -> None:
    watch, replay = Watch(), ExperienceReplay(6, share=0.25, rule=rule, feature="image")
    cases.run("classes", tmp_path / "shards", tmp_path / "run", [replay, watch])
    first, second = ([row[1:] for row in watch.rows if row[0] == name] for name in ("task-0", "task-1"))
    assert {domain for domain, _, _ in first} == {0}
    assert Counter(domain for domain, _, _ in second) == {0: 6 * 2, 1: 6 * 6}  # 8 rows a step, a quarter replayed
    column_of = {key: column for _, column, key in first}
    replayed = {key: column for domain, column, key in second if domain == 0}
    assert replayed.items() <= column_of.items()
    assert len(replayed) <= 6
    assert sum(len(kept) for kept in replay.buffer.kept.values()) == 6


@pytest.mark.parametrize("rule", ["herding", "k_means"])
@pytest.mark.parametrize("bad", [4, 29])
def test_a_picture_that_cannot_be_decoded_is_no_exemplar(rule: Any, bad: int, tmp_path: Path) -> None:
    """Even where all others are; 29 is the last sample of its task."""
    stream = tiny_classes.stream(tmp_path / "shards", broken=[bad])
    replay = ExperienceReplay(32, rule=rule)
    runner = cases.runner("classes", stream, tmp_path / "run", [replay])
    runner.data.bad.max_bad = 0.3
    runner.fit()
    kept = sorted(sample.key for sample in replay.buffer.kept["task-0"])
    assert kept == [f"dots-{i:03d}" for i in range(32) if i % 4 < 2 and i != bad]
    assert replay.buffer.seen == {"task-0": 15, "task-1": 16}


def test_a_replayed_picture_is_augmented_anew(tmp_path: Path) -> None:
    seen: dict[str, list[torch.Tensor]] = {}

    class Pictures(Strategy):
        def losses(self, context: StepContext) -> dict[str, Any]:
            for key, domain, image in zip(
                context.batch["__key__"], context.batch["domain"], context.batch["image"], strict=True
            ):
                if context.task is not None and context.task.name == "task-1" and domain == 0:
                    seen.setdefault(key, []).append(image.clone())
            return {}

    cases.run("classes", tmp_path / "shards", tmp_path / "run", [ExperienceReplay(2), Pictures()])
    assert len(seen) <= 2
    assert any(not torch.equal(images[0], image) for images in seen.values() for image in images[1:])


def test_the_seed_of_the_run_chooses_the_samples() -> None:
    task: Any = SimpleNamespace(name="one")
    kept = []
    for seed in (0, 1):
        replay = ExperienceReplay(8)
        samples = TaskSamples([0] * 40, [f"{i}" for i in range(40)], None)
        replay.attach_reach(SimpleNamespace(seed=seed, task_samples=lambda task, s=samples: s))  # type: ignore[arg-type]
        replay.setup(None)  # type: ignore[arg-type]
        replay.on_task_end(task, None)  # type: ignore[arg-type]
        kept.append([sample.key for sample in replay.buffer.kept["one"]])
    assert kept[0] != kept[1]


def test_texts_of_one_task_refuse_labels_of_another(tmp_path: Path) -> None:
    """The classes of a task are the texts of `ClassTextCrossEntropy`."""
    objective = ClassTextCrossEntropy()
    objective._tokens = torch.zeros(2, 4, dtype=torch.long)
    image, labels = torch.zeros(4, 3, 8, 8), torch.tensor([0, 1, 0, 1])
    objective.prepare({"image": image, "labels": labels, "domain": torch.tensor([1, 1, 1, 1])})
    with pytest.raises(ConfigError, match="labels of tasks 0, 1"):
        objective.prepare({"image": image, "labels": labels, "domain": torch.tensor([0, 1, 1, 1])})
    unlabelled = torch.tensor([-100, 1, 0, 1])
    objective.prepare({"image": image, "labels": unlabelled, "domain": torch.tensor([0, 1, 1, 1])})


def test_a_classifier_wants_to_know_whose_labels_a_mixed_source_has(tmp_path: Path) -> None:
    stream = tiny_classes.stream(tmp_path)
    first, second = stream.tasks

    def mixed(**more: Any) -> Stream:
        extra = Source([str(tmp_path / "train.tar")], name="old", share=0.5, **more)
        task = Task(second.name, second.train, second.budget, second.evaluates, second.class_names, mix=[extra])
        return Stream("mixed", [first, task], [e for e in stream.evals if isinstance(e, EvalSet)])

    module = tiny_classes.module("masked", "test_vit")
    with pytest.raises(ConfigError, match="say whose they are with its `task`"):
        module.check(mixed())
    module.check(mixed(task="task-0", labels={0: 0, 1: 1}))
