"""What can never work is refused at start-up, before row 0, however late in the stream it would show."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cases
import pytest
import tiny_clip_classes
from toy import runner as toy_runner

from mmcl import Budget, Source, Strategy, Stream, Task
from mmcl.dry_run import dry_run
from mmcl.errors import ConfigError
from mmcl.modules.contrastive_losses import ClassTextCrossEntropy
from mmcl.replay import unfilled
from mmcl.schedule import Linear
from mmcl.strategies import (
    AGEM,
    CTP,
    EWC,
    GEM,
    MAS,
    SLCA,
    DERPlusPlus,
    Distillation,
    ExperienceReplay,
    GeRe,
    LoRA,
    RanPAC,
    SPrompts,
    Velocitune,
)
from mmcl.strategy import Batches

Change = Callable[[Stream], Stream]


def refused(case: str, folder: Path, strategy: Strategy, change: Change = lambda stream: stream, **options: Any) -> str:
    """The words of a start-up that writes nothing."""
    (folder / "shards").mkdir(parents=True, exist_ok=True)
    stream = change(cases.found()[case][1](folder / "shards"))
    with pytest.raises(ConfigError) as error:
        cases.runner(case, stream, folder / "run", [strategy], **options).fit()
    assert not (folder / "run").exists()
    return str(error.value)


def started(
    case: str, folder: Path, strategy: Strategy, change: Change = lambda stream: stream, **options: Any
) -> None:
    """The start-up alone, which refuses nothing."""
    (folder / "shards").mkdir(parents=True, exist_ok=True)
    made = cases.runner(case, change(cases.found()[case][1](folder / "shards")), folder / "run", [strategy], **options)
    made.check()
    made.build()
    made.foresee()


def with_train(changed: Callable[[Source], Source], only: int | None = None) -> Change:
    """A stream whose tasks' own sources are changed."""

    def change(stream: Stream) -> Stream:
        tasks = [
            replace(task, train=[changed(source) for source in task.train]) if only in (None, i) else task
            for i, task in enumerate(stream.tasks)
        ]
        return stream.with_tasks(tasks)

    return change


def with_mix(share: float, segment: int | None = None, **more: Any) -> Change:
    """A stream whose second task has another source in its batches."""

    def change(stream: Stream) -> Stream:
        first, second = stream.tasks
        mixed = replace(first.train[0], name="old", share=share, task=first.name, **more)
        return stream.with_tasks([first, replace(second, mix=[mixed], segment=segment)])

    return change


@pytest.mark.parametrize("strategy", [AGEM(8, batch_size=3), GEM(8, batch_size=3), DERPlusPlus(8, batch_size=3)])
def test_a_memory_whose_batch_does_not_divide(strategy: Strategy, tmp_path: Path) -> None:
    words = refused("classes", tmp_path, strategy, accumulate_grad_batches=2)
    assert f"task 'task-1': the batch of side source '{strategy.name}/" in words and "(3) does not divide by 1" in words


@pytest.mark.parametrize("kind", [EWC, MAS])
def test_a_pass_whose_batch_does_not_divide(kind: type[EWC] | type[MAS]) -> None:
    task = Task("one", [Source(["a.tar"])], Budget(steps=1))
    title = kind.__name__
    with pytest.raises(
        ConfigError, match=f"{title}: batch_size is 10, which does not divide by 4 processes; take a mul"
    ):
        kind(batch_size=10).foresee(task, Batches(8, 8, 4))
    for strategy in (kind(batch_size=12), kind(), kind(0.0, batch_size=10)):
        assert not strategy.foresee(task, Batches(8, 8, 4))


@pytest.mark.parametrize("more", ["replay", "mix"])
def test_labels_of_another_task(more: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def module() -> Any:
        made = tiny_clip_classes.module()
        made.objective = ClassTextCrossEntropy()
        return made

    monkeypatch.setattr(cases, "found", lambda: {"texts": (module, tiny_clip_classes.stream)})
    given = (ExperienceReplay(4), lambda stream: stream) if more == "replay" else (EWC(), with_mix(0.5))
    words = refused("texts", tmp_path, *given)
    assert "has labels of task 'task-0', and ClassTextCrossEntropy reads labels as those of the task at hand" in words
    bare = with_train(lambda source: source, only=1)
    started("texts", tmp_path, ExperienceReplay(4), lambda stream: bare(stream).with_tasks(stream.tasks[:1]))
    started("texts", tmp_path, EWC(), with_mix(0.5, labels=None, fields={"image": ["png"], "text": ["txt"]}))


@pytest.mark.parametrize(
    ("share", "change", "words"),
    [
        (0.01, lambda stream: stream, "'experience_replay': share 0.01 of batch size 8 is no sample"),
        (0.6, with_mix(0.5), "above 1: old 0.5 + experience_replay 0.6"),
        (0.6, with_mix(0.3, 2, share_schedule=Linear(0.5, 2.0)), "above 1: old 0.51 + experience_replay 0.6"),
    ],
)
def test_shares_of_a_memory(share: float, change: Change, words: str, tmp_path: Path) -> None:
    found = refused("classes", tmp_path, ExperienceReplay(4, share=share), change)
    assert found.startswith("task 'task-1': ") and words in found


@pytest.mark.parametrize("strategy", [ExperienceReplay(4), AGEM(8), DERPlusPlus(8)])
def test_a_memory_of_samples_with_one_key(strategy: Strategy, tmp_path: Path) -> None:
    """They could not be told apart when the next task draws them; the last task's are not drawn."""

    def two_shards(source: Source) -> Source:
        (shard,) = source.shards
        again = Path(shard).with_name(f"again-{Path(shard).name}")
        with tarfile.open(shard) as old, tarfile.open(again, "w") as new:
            for member in old:
                content = old.extractfile(member)
                assert content is not None
                data = content.read()
                if member.name.endswith(".cls"):
                    data = str(int(data) ^ 1).encode()
                member.size = len(data)
                new.addfile(member, io.BytesIO(data))
        return replace(source, shards=[shard, str(again)])

    words = refused("classes", tmp_path, strategy, with_train(two_shards, only=0))
    assert words.startswith("task 'task-0': two samples of source ") and strategy.title in words
    assert "give the samples of all shards of a source different keys" in words
    started("classes", tmp_path / "last", strategy, with_train(two_shards, only=1))


@pytest.mark.parametrize("case", ["clip", "causal_lm"])
def test_classes_that_are_not_there(case: str, tmp_path: Path) -> None:
    """Of documents that are packed, too."""
    fields = {"text": ["txt"], **({"image": ["png"]} if case == "clip" else {})}
    change = with_train(lambda source: replace(source, fields=fields))
    for strategy in (ExperienceReplay(4, rule="class_balanced"), AGEM(4, rule="class_balanced")):
        words = refused(case, tmp_path, strategy, change)
        assert f"have no labels, which {type(strategy).__name__} as it is set needs" in words
    started(case, tmp_path, ExperienceReplay(4), change)


PASSES: list[tuple[Strategy, bool]] = [
    (EWC(), True),
    (MAS(), True),
    (MAS(0.0), False),
    (ExperienceReplay(4), True),
    (AGEM(4), True),
    (GEM(4), True),
    (DERPlusPlus(4), True),
    (DERPlusPlus(4, alpha=0.0, beta=0.0), False),
    (RanPAC(8), True),
    (SLCA(), True),
    (SLCA(epochs=0), False),
    (LoRA(2, tasks="separate"), True),
    (LoRA(2), False),
    (SPrompts(), True),
]


@pytest.mark.parametrize(("strategy", "passes"), PASSES)
def test_what_goes_through_a_task_again_takes_an_index(strategy: Strategy, passes: bool, tmp_path: Path) -> None:
    change = with_train(lambda source: replace(source, stream=True), only=1)
    case = "classes-growing"
    if not passes:
        started(case, tmp_path, strategy, change)
        return
    words = refused(case, tmp_path, strategy, change)
    assert words.startswith("task 'task-1': source 'train' is a stream, and ") and type(strategy).__name__ in words


def test_a_reference_that_is_gone_through_takes_an_index(tmp_path: Path) -> None:
    def streamed(stream: Stream) -> Stream:
        sources = {name: replace(source, stream=True) for name, source in stream.sources.items()}
        return Stream(stream.name, stream.tasks, stream.evals, sources)

    for strategy in (Distillation(texts="all"), GeRe("reference", on="features")):
        words = refused("clip", tmp_path, strategy, streamed)
        assert f"is a stream, and {type(strategy).__name__} as it is set goes through it" in words
    started("clip", tmp_path, Distillation(), streamed)


def test_a_batch_above_a_queue(tmp_path: Path) -> None:
    words = refused("clip", tmp_path, CTP(queue_size=7))
    assert words.startswith("MomentumContrast of CTP: a batch of 8 pairs does not fit into queues of 7")


def test_a_share_of_a_strategy_that_changes_where_nothing_is_cut(tmp_path: Path) -> None:
    class Rises(Strategy):
        def sources(self, task: Task) -> list[Source]:
            return [replace(task.train[0], name="more", share=0.5, share_schedule=Linear(1.0, 4.0))]

    assert "give it `segment`" in refused("classes", tmp_path, Rises())
    cut = refused("classes", tmp_path, Rises(), lambda s: s.with_tasks([replace(t, segment=2) for t in s.tasks]))
    assert "source 'more': its schedule makes the share 1.1 at step 2" in cut


def test_what_a_strategy_reads_is_a_known_word(tmp_path: Path) -> None:
    class Wrong(Strategy):
        reads = frozenset({"sample"})

    with pytest.raises(ConfigError, match="'sample', which says nothing; known: keys, labels, samples, sources"):
        toy_runner(tmp_path, [Wrong()]).fit()


def test_an_unfilled_memory_is_drawn_from_all() -> None:
    tasks = [Task(name, [Source([f"{name}{i}.tar"]) for i in (0, 1)], Budget(steps=1)) for name in "ab"]
    (source,) = unfilled(tasks, "memory", share=0.5)
    assert [(part.task, list(part.shards)) for part in source.all] == [
        (task.name, list(own.shards)) for task in tasks for own in task.train
    ]
    assert (source.name, source.share, source.role) == ("memory", 0.5, "mixed") and not unfilled([], "memory")


def test_a_dry_run_starts_up_as_the_run_would(tmp_path: Path) -> None:
    def dry(strategy: Strategy, **options: Any) -> str:
        stream = cases.found()["causal_lm"][1](tmp_path / "shards")
        stream = stream.with_tasks([replace(task, segment=2) for task in stream.tasks])
        return dry_run(cases.runner("causal_lm", stream, tmp_path / "run", [strategy], **options))

    speeds = Velocitune({"weather": 1.0, "plain": 2.0}, {"weather": "weather", "plain": "numbers"})
    assert "s a step here" in dry(speeds)
    with pytest.raises(ConfigError, match="size is 1, less than a sample for each of 2 tasks"):
        dry(GEM(1))
    with pytest.raises(ConfigError, match=r"task 'numbers': the batch of side source 'agem/memory' \(3\)"):
        dry(AGEM(8, batch_size=3), accumulate_grad_batches=2)
    assert not (tmp_path / "run").exists()
