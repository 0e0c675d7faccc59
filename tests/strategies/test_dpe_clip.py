"""DPeCLIP: prototypes find the task, and the texts choose in it."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import torch
from torch import Tensor

from mmcl.outputs import Outputs
from mmcl.strategies import DPeCLIP

LOWEST = torch.finfo(torch.float32).min


def two_tasks(weight: float) -> DPeCLIP:
    """Two tasks of two classes, whose pictures lie at 0, 20, 90 and 110 degrees."""
    strategy = DPeCLIP(weight)
    tasks = [SimpleNamespace(name=f"t{i}", class_names=names) for i, names in enumerate((("a", "b"), ("c", "d")))]
    strategy.setup(SimpleNamespace(tasks=tasks))  # type: ignore[arg-type]
    for i, task in enumerate(tasks):
        strategy.learn(task, at(90 * i, 90 * i + 20), torch.tensor([2 * i, 2 * i + 1]))  # type: ignore[arg-type]
    strategy.counts = torch.ones(4, dtype=torch.int64)
    return strategy


def at(*degrees: float) -> Tensor:
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def answers(strategy: DPeCLIP, features: Tensor, logits: Tensor, names: Sequence[str]) -> Tensor:
    outputs = Outputs(features={"image": features})
    strategy.answer(outputs)
    assert outputs.rescore is not None
    return outputs.rescore(logits, names)


def test_prototypes_find_the_task_and_the_texts_choose_in_it() -> None:
    texts = torch.tensor([[1.0, 0.5, 9.0, 0.0]]).repeat(3, 1)
    names = ["a", "b", "c", "d"]
    found = answers(two_tasks(0.0), at(1, 19, 100), texts, names)
    assert found.argmax(1).tolist() == [0, 0, 2]  # by texts alone all were "c"
    found = answers(two_tasks(1.0), at(1, 19, 108), texts, names)
    assert found.argmax(1).tolist() == [0, 1, 3]  # prototypes alone
    assert found[0, 2:].tolist() == [LOWEST] * 2
    torch.testing.assert_close(found.exp().sum(1), torch.ones(3))


def test_new_classes_keep_what_the_texts_give_them() -> None:
    strategy, texts = two_tasks(0.5), torch.randn(2, 3)
    assert answers(strategy, at(0, 100), texts, ["x", "y", "z"]) is texts
    mixed = answers(strategy, at(0, 100), texts, ["a", "new", "c"])
    torch.testing.assert_close(mixed[:, 1], texts.log_softmax(1)[:, 1])
    torch.testing.assert_close(mixed.exp().sum(1), torch.ones(2))
    single = answers(two_tasks(0.0), at(0, 100), texts[:, :2], ["a", "b"])
    torch.testing.assert_close(single, texts[:, :2].log_softmax(1))  # one task's set: nothing to find


def test_prototypes_answer_by_the_cosine_at_clip_s_scale() -> None:
    found = answers(two_tasks(1.0), at(5), torch.zeros(1, 4), ["a", "b", "c", "d"])
    cosines = torch.tensor([5.0, 15.0]).deg2rad().cos()
    torch.testing.assert_close(found[0, :2].exp(), (100 * cosines).softmax(0), rtol=1e-4, atol=1e-6)
