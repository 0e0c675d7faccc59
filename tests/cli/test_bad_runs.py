"""Run folders and runs in which something is wrong: one clear line, and nothing that is in the next start's way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

from mmcl.errors import RunError, out_of_memory
from mmcl.runner import Runner

Mmcl = Callable[..., Any]


def refused(answer: Any, words: str) -> None:
    """Exit code 2, one line."""
    assert answer.code == 2 and answer.err.count("\n") == 1 and not answer.out, answer
    assert words in answer.err


def test_a_run_that_was_stopped_before_its_first_row_is_in_nobodys_way(
    mmcl: Mmcl, home: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["fit", "--config", home / "tiny.yaml", "--run_dir", "run"]

    def stopped(*_: Any) -> None:
        raise RunError("the first evaluation was stopped")

    with monkeypatch.context() as patch:
        patch.setattr(Runner, "_row", stopped)
        assert mmcl(*command, "--model.lr=0.5").code == 1
    assert (workplace / "run" / "identity.json").exists()
    answer = mmcl(*command)
    assert answer.code == 0, answer.err
    assert "lr: 0.01" in (workplace / "run" / "config.yaml").read_text()


def test_a_stream_without_evaluation_sets_is_trained(mmcl: Mmcl, home: Path, workplace: Path) -> None:
    settings = tiny.config(home, (2, 2))
    settings["data"]["stream"]["evals"] = []
    for task in settings["data"]["stream"]["tasks"]:
        del task["evaluates"]
    answer = mmcl("fit", "--config", tiny.write_config(workplace, settings), "--run_dir", "run")
    assert answer.code == 0, answer.err
    assert "run: trained; the stream has no evaluation sets" in answer.out
    assert mmcl("fit", "--config", workplace / "tiny.yaml", "--run_dir", "run").code == 0
    assert tiny.results(workplace / "run")["run"]["status"] == "finished"


def test_memory_that_runs_out(mmcl: Mmcl, home: Path, workplace: Path) -> None:
    answer = mmcl("fit", "--config", home / "tiny.yaml", "--strategies+=LoRA", "--strategies.rank=100000000000")
    assert answer.code == 1 and answer.err.count("\n") == 1, answer
    assert "out of memory: 5.96e+03 GiB were asked for; make data.batch_size" in answer.err
    assert not list(workplace.iterdir())


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity", ": 2.5 GiB were asked for;"),
        ("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough memory: you tried to allocate 1073741824 "
         "bytes.", ": 1 GiB were asked for;"),
        ("CUDA error: out of memory", "out of memory; make"),
        ("shape '[2]' is invalid", ""),
    ],
)  # fmt: skip
def test_words_of_memory_that_ran_out(words: str, asked: str) -> None:
    said = out_of_memory(RuntimeError(words))
    assert asked in said and bool(said) == bool(asked)


DAMAGED: dict[str, tuple[list[str], list[str], str]] = {
    "checkpoint of a test": (
        ["checkpoints/last.ckpt"],
        ["test", "--config", "RUN/config.yaml"],
        "; choose another --ckpt_path: previous, task-1, task-2",
    ),
    "checkpoint of predictions": (
        ["checkpoints/task-1.ckpt"],
        ["predict", "--config", "RUN/config.yaml", "--ckpt_path", "task-1"],
        "choose another --ckpt_path: last, previous, task-2",
    ),
    "checkpoint of an export": (
        ["checkpoints/last.ckpt"],
        ["export", "RUN", "--to", "out"],
        "choose another --ckpt_path: previous, task-1, task-2",
    ),
    "all checkpoints of a run": (
        ["results.json", "checkpoints/last.ckpt", "checkpoints/previous.ckpt"],
        ["fit", "--config", "RUN/config.yaml"],
        "copy one of task-1.ckpt, task-2.ckpt to last.ckpt there and remove previous.ckpt, or choose another --run_dir",
    ),
    "results": (["results.json"], ["fit", "--config", "RUN/config.yaml"], "results.json is damaged ("),
    "identity": (["identity.json"], ["fit", "--config", "RUN/config.yaml"], "identity.json is damaged ("),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_run_folder(mmcl: Mmcl, copy: Path, workplace: Path, name: str) -> None:
    files, command, words = DAMAGED[name]
    for file in files:
        content = (copy / file).read_bytes()
        (copy / file).write_bytes(content[: len(content) // 3])
    if len(files) > 1:  # a run that was interrupted
        (copy / "results.json").unlink()
    answer = mmcl(*(part.replace("RUN", str(copy)) for part in command))
    refused(answer, words)
    assert f"{Path(files[-1]).name} is damaged" in answer.err
    assert not list(workplace.iterdir())


def test_a_strategy_that_a_checkpoint_lacks(mmcl: Mmcl, finished: Path, workplace: Path) -> None:
    answer = mmcl("test", "--config", finished / "config.yaml", "--strategies+=LoRA")
    refused(answer, "last.ckpt has no state of strategy 'lora' (it has: none)")


def test_a_strategy_listed_twice(mmcl: Mmcl, home: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", logger="mmcl"):
        assert mmcl("fit", "--config", home / "tiny.yaml", "--dry_run", *["--strategies+=LwF"] * 2).code == 0
    assert "LwF stands 2 times in the list of strategies, and each takes part" in caplog.text
