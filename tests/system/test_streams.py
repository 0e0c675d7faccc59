"""A run on streams, and one whose shares follow a schedule: killed and resumed, they end with the same weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_clip
import torch
from moments import cut_after

from mmcl import Budget, EvalSet, Source, Strategy, Stream, Task
from mmcl import trainer as lightning
from mmcl.datamodules import StreamDataModule
from mmcl.errors import ConfigError, RunError
from mmcl.runner import Runner, RunOptions
from mmcl.schedule import Linear, Piecewise
from mmcl.strategies import ExperienceReplay

BATCH = 8


def runner(
    folder: Path, stream: Stream, strategies: Sequence[Strategy] = (), workers: int = 0, **trainer: Any
) -> Runner:
    torch.manual_seed(0)
    data = StreamDataModule(stream, batch_size=BATCH, workers=workers, allow_pipe=True, stream_buffer=5)
    made = lightning.make(accelerator="cpu", enable_progress_bar=False, log_every_n_steps=1, **trainer)
    return Runner(data, tiny_clip.module(), strategies, made, RunOptions(run_dir=folder, save_every=2, identity={}))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["network"]
    return found


def seen(made: Runner) -> list[list[str]]:
    """Keys of each batch that the runner trains on, collected while it does."""
    keys: list[list[str]] = []
    inner = made.data.train_loader

    class Noted:
        def __init__(self, loader: Any) -> None:
            self.loader = loader

        def __len__(self) -> int:
            return len(self.loader)

        def __iter__(self) -> Any:
            for batch in self.loader:
                keys.append(list(batch["__key__"]))
                yield batch

    made.data.train_loader = lambda *a, **k: Noted(inner(*a, **k))
    return keys


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    tiny.build(tmp_path / "shards")
    return tmp_path / "shards"


def streams(shards: Path) -> Stream:
    """Two tasks out of a file and out of a command; the second one also has a mixed stream and segments."""
    dots, stripes, held = (str(shards / f"{name}.tar") for name in ("dots", "stripes", "held"))
    tasks = [
        Task("file", [Source([dots], stream=True)], Budget(steps=5)),
        Task(
            "command",
            [Source([f"pipe:cat {stripes}"])],
            Budget(steps=7),
            mix=[Source([f"pipe:cat {dots}"], name="before", share=0.25)],
            segment=3,
        ),
    ]
    return Stream("streams", tasks, [EvalSet("held", Source([held]), "retrieval")])


@pytest.mark.parametrize("workers", [0, 2])
def test_streams_resume_bit_for_bit(tmp_path: Path, shards: Path, workers: int) -> None:
    whole = runner(tmp_path / "whole", streams(shards), workers=workers).fit()
    for step in (3, 9) if workers else (3, 6, 9):
        cut_after(runner(tmp_path / "cut", streams(shards), workers=workers), step)
    cut = runner(tmp_path / "cut", streams(shards), workers=workers).fit()
    assert cut["matrix"] == whole["matrix"] and cut["segments"] == whole["segments"]
    assert all(
        torch.equal(a, b)
        for a, b in zip(weights(tmp_path / "whole").values(), weights(tmp_path / "cut").values(), strict=True)
    )
    assert [t["own_samples"] for t in whole["stream"]["tasks"]] == [None, None]


def test_another_number_of_workers_is_refused(tmp_path: Path, shards: Path) -> None:
    """Zero and one are the same reader; two are not; between tasks any number will do."""
    cut_after(runner(tmp_path / "run", streams(shards), workers=1), 3)
    both = "read by 1 processes with 1 workers each, and now by 1 with 2"
    with pytest.raises(ConfigError, match=both):
        runner(tmp_path / "run", streams(shards), workers=2).fit()
    cut_after(runner(tmp_path / "run", streams(shards), workers=0), 8)
    with pytest.raises(ConfigError, match=both):
        runner(tmp_path / "run", streams(shards), workers=2).fit()
    other = tmp_path / "other"
    made = runner(other, streams(shards), workers=2)
    cut_after(made, 4)
    with pytest.raises(ConfigError, match="1 processes with 2 workers each, and now by 1 with 1"):
        runner(other, streams(shards)).fit()


def scheduled(shards: Path, **changes: Any) -> Stream:
    dots, stripes, held = (str(shards / f"{name}.tar") for name in ("dots", "stripes", "held"))
    before = Source([dots], name="before", share=0.5, share_schedule=Piecewise([0, 3, 0.75], [1.0, 0.5, 0.0]))
    task = Task("t", [Source([stripes])], Budget(steps=12), mix=[before], segment=3)
    return Stream("scheduled", [replace(task, **changes)], [EvalSet("held", Source([held]), "retrieval")])


def test_shares_follow_their_schedule_also_after_a_kill(tmp_path: Path, shards: Path) -> None:
    made = runner(tmp_path / "whole", scheduled(shards))
    keys = seen(made)
    made.fit()
    counts = [sum(key.startswith("dots") for key in batch) for batch in keys]
    assert counts == [4] * 3 + [2] * 6 + [0] * 3
    for step in (2, 5, 7, 11):
        cut_after(runner(tmp_path / "cut", scheduled(shards)), step)
    runner(tmp_path / "cut", scheduled(shards)).fit()
    assert all(
        torch.equal(a, b)
        for a, b in zip(weights(tmp_path / "whole").values(), weights(tmp_path / "cut").values(), strict=True)
    )


def test_lines_and_pieces() -> None:
    assert [Linear(1.0, 0.5)(step, 6) for step in (0, 5, 9)] == [1.0, 0.5, 0.5] and Linear(2.0, 0.0)(0, 1) == 2.0
    pieces = Piecewise([0, 3, 0.75], [1.0, 0.5, 0.25])
    assert [pieces(step, 12) for step in (0, 2, 3, 8, 9, 11)] == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]


class Growing(ExperienceReplay):
    """A strategy whose memory takes more and more of a task's batches."""

    def sources(self, task: Task) -> list[Source]:
        return [replace(s, share_schedule=Linear(0.5, 1.0)) for s in super().sources(task)]


def test_a_strategy_may_have_a_schedule(tmp_path: Path, shards: Path) -> None:
    names = ("dots", "stripes")
    tasks = [Task(n, [Source([str(shards / f"{n}.tar")])], Budget(steps=9), segment=4) for n in names]
    made = runner(tmp_path / "run", Stream("s", tasks, []), [Growing(6, share=0.5)])
    keys = seen(made)
    made.fit()
    counts = [sum(key.startswith("dots") for key in batch) for batch in keys[9:]]
    assert counts == [2] * 4 + [3] * 4 + [4]
    picked = json.loads(json.dumps(sorted({key for batch in keys[9:] for key in batch if key.startswith("dots")})))
    assert len(picked) == 6


def test_schedules_that_cannot_be(tmp_path: Path, shards: Path) -> None:
    with pytest.raises(ConfigError, match="change at segments; give it `segment`"):
        scheduled(shards, segment=None)
    with pytest.raises(ConfigError, match="a budget in epochs says nothing"):
        runner(tmp_path / "a", scheduled(shards, budget=Budget(epochs=1))).check()
    mix = scheduled(shards).tasks[0].mix[0]
    for schedule, says in (
        (Linear(1.0, 3.0), r"makes the share 1\.\d+ at step 6"),
        (Linear(1.0, -1.0), r"makes the share -0\.\d+ at step 6"),
        (Linear(1.0, 0.0), r"of batch size 8 is no sample"),
    ):
        with pytest.raises(ConfigError, match=says):
            runner(tmp_path / "a", scheduled(shards, mix=[replace(mix, share_schedule=schedule)])).check()
    tasks = [Task(n, [Source([str(shards / f"{n}.tar")])], Budget(steps=2)) for n in ("dots", "stripes")]
    with pytest.raises(RunError, match="task 'stripes': shares that follow a schedule change at segments"):
        runner(tmp_path / "b", Stream("s", tasks, []), [Growing(6)]).fit()
    with pytest.raises(ConfigError, match="give a share too"):
        Source(["a.tar"], share_schedule=Linear())
    with pytest.raises(ConfigError, match="must be as many, and the first step 0"):
        Piecewise([5], [1.0])
