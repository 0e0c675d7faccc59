"""Streams: what is refused, and what budgets come to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mmcl import Budget, EvalSet, Source, Stream, Task
from mmcl.errors import ConfigError

SOURCE = Source(["a.tar"])


def task(name: str = "a", **changes: Any) -> Task:
    return Task(name, changes.pop("train", [SOURCE]), changes.pop("budget", Budget(steps=1)), **changes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Stream("s", []), "stream 's' has no tasks"),
        (lambda: Stream("s", [task(), task()]), "two tasks named 'a'"),
        (lambda: Stream("s", [task()], [EvalSet("e", SOURCE)] * 2), "two evaluation sets named 'e'"),
        (lambda: Stream("s", [task(evaluates="bird")], [EvalSet("birds", SOURCE)]), "did you mean birds?"),
        (lambda: Stream("s", [task()]).source("ref"), "no source 'ref'; none is known"),
        (lambda: Budget(), "exactly one of steps, samples, epochs, tokens"),
        (lambda: Budget(steps=1, epochs=1), "given: steps, epochs"),
        (lambda: Budget(steps=-1), "steps is -1"),
        (lambda: task(train=[]), "`train` names no source"),
        (lambda: task(train=[Source(["a.tar"], share=0.5)]), "own data are mixed sources without a share"),
        (lambda: task(segment=0), "segment 0"),
        (lambda: task(class_names=["cat", " "]), "class name 1 is empty"),
        (lambda: task(class_names="missing.txt"), "cannot be read from 'missing.txt'"),
        (lambda: task(templates=["a photo"]), "must contain {} exactly once"),
        (lambda: Source([]), "at least one tar file"),
        (lambda: Source(["a.tar"], share=1.5), r"outside \(0, 1\]"),
        (lambda: Source(["a.tar"], role="side", share=0.5), "give `batch_size`"),
        (lambda: EvalSet("e", SOURCE, subset=0), "subset 0"),
    ],
)
def test_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("{}", r"\{\}").replace("?", r"\?")):
        make()


@given(st.integers(1, 10**6), st.integers(1, 512), st.integers(1, 10**5))
def test_budgets_round_up_to_whole_batches(samples: int, batch: int, own: int) -> None:
    steps = Budget(samples=samples).resolve(batch, own, batch)
    assert (steps - 1) * batch < samples <= steps * batch
    assert Budget(epochs=2).resolve(batch, own, batch) == -(-2 * own // batch)
    assert Budget(tokens=samples).resolve(batch, own, batch, sample_tokens=1) == steps


@given(st.integers(1, 200), st.integers(1, 10**5), st.integers(1, 512))
@example(11, 100, 10)
def test_parts_of_an_epoch_have_no_step_by_rounding(tenths: int, own: int, batch: int) -> None:
    assert Budget(epochs=tenths / 10).resolve(batch, own, batch) == -(-tenths * own // (10 * batch))


def test_budgets_are_said_in_full() -> None:
    assert str(Budget(samples=14_540_803)) == "14540803 samples" and str(Budget(steps=1_234_567)) == "1234567 steps"
    assert str(Budget(epochs=2)) == str(Budget(epochs=2.0)) == "2 epochs"


def test_tokens_need_a_fixed_length() -> None:
    with pytest.raises(ConfigError, match="fixed sequence length"):
        Budget(tokens=5).resolve(8, 8, 8)


def test_class_names_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    assert task(class_names=str(tmp_path / "names.txt")).class_names == ("cat", "dog")
    (tmp_path / "names.txt").write_text("cat\ndog\n", encoding="utf-8-sig")  # as some editors save UTF-8
    assert task(class_names=str(tmp_path / "names.txt")).class_names == ("cat", "dog")


def test_joint_is_one_task_with_all_data_and_the_whole_budget() -> None:
    stream = Stream("s", [task("a", budget=Budget(steps=3)), task("b", budget=Budget(steps=4))]).joint()
    (joint,) = stream.tasks
    assert joint.budget.steps == 7 and [s.name for s in joint.train] == ["a/train", "b/train"]
    with pytest.raises(ConfigError, match="different class names"):
        Stream("s", [task("a", class_names=["x"]), task("b", class_names=["y"])]).joint()
