"""`mmcl.run`: what it takes for the same run."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import SquaredError, ToyData, ToyModule, stream

import mmcl
from mmcl import trainer as lightning
from mmcl.errors import ConfigError
from mmcl.strategies import MER


class Killed(Exception):
    """Stands for the end of the process."""


class Scaled(SquaredError):
    """An objective with a setting."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale


class Toy(ToyModule):
    """A module with an objective, an optimizer and names of its own."""

    def __init__(self, objective: Any, names: Any, build: Any) -> None:
        super().__init__()
        self.optimizer_builder = build

    def after_step(self) -> None:
        if self.dies:
            raise Killed

    dies = False


def toy(**changes: Any) -> Toy:
    """A module whose optimizer is made by a function that has another address each time."""
    names = [f"class {i}" for i in range(30)]
    given = {"objective": Scaled(1.0), "names": names, "build": lambda groups: torch.optim.SGD(groups, lr=0.1)}
    return Toy(**given | changes)


def started(folder: Path) -> Path:
    """The folder of a run that died in its first step."""
    module = toy()
    module.dies = True
    with pytest.raises(Killed):
        run(folder, module)
    return folder


def run(folder: Path, module: Toy | None = None, **options: Any) -> Any:
    quiet = {"enable_progress_bar": False, "accelerator": "cpu"}
    trainer = lightning.make(**quiet, **options.pop("trainer", {}))
    return mmcl.run(ToyData(stream()), module or toy(), (), trainer, run_dir=folder, **options)


def test_the_same_command_continues(tmp_path: Path) -> None:
    assert run(started(tmp_path))["run"]["status"] == "finished"


@pytest.mark.parametrize("again", ["module", "strategy"])
def test_what_took_part_in_a_run_is_refused_by_the_next(tmp_path: Path, again: str) -> None:
    """Its trained weights, grown head or filled memory would be taken for a fresh one's; what was refused is free."""

    def attempt(name: str, module: Toy, strategy: MER, **options: Any) -> Any:
        trainer = lightning.make(enable_progress_bar=False, accelerator="cpu")
        return mmcl.run(ToyData(stream()), module, strategy, trainer, run_dir=tmp_path / name, **options)

    module, strategy = toy(), MER(2)
    with pytest.raises(ConfigError, match="save_every is -1"):
        attempt("refused", module, strategy, save_every=-1)
    attempt("first", module, strategy)
    with pytest.raises(ConfigError, match=f"^{'Toy' if again == 'module' else 'MER'} took part in another run"):
        attempt("second", *((module, MER(2)) if again == "module" else (toy(), strategy)))
    assert not (tmp_path / "second" / "results.json").exists()
    assert attempt("first", module, strategy)["run"]["status"] == "finished"  # nothing is to be done there


OTHERS: dict[str, Any] = {
    "model.arguments.objective.scale": lambda: {"module": toy(objective=Scaled(2.0))},
    "model.arguments.names.29": lambda: {"module": toy(names=[*(f"class {i}" for i in range(29)), "other"])},
    "model.arguments.build": lambda: {"module": toy(build=functools.partial(torch.optim.SGD, lr=0.1))},
    "trainer.precision": lambda: {"trainer": {"precision": "bf16-mixed"}},
    "trainer.accumulate_grad_batches": lambda: {"trainer": {"accumulate_grad_batches": 2}},
    "trainer.gradient_clip_val": lambda: {"trainer": {"gradient_clip_val": 1.0}},
    "carry_optimizer": lambda: {"carry_optimizer": True},
    "init_from": lambda: {"init_from": "elsewhere"},
    "seed": lambda: {"seed": 1},
}


@pytest.mark.parametrize("key", OTHERS)
def test_another_setting_is_another_run(tmp_path: Path, key: str) -> None:
    started(tmp_path)
    with pytest.raises(ConfigError, match=rf"belongs to another configuration; it differs in {key}"):
        run(tmp_path, **OTHERS[key]())
