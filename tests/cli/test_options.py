"""Options of strategies, modules and streams on the command line: what they belong to, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Mmcl = Callable[..., Any]

REFUSED: dict[str, tuple[list[str], str]] = {
    "misspelt": (
        ["--strategies+=LwF", "--strategies+=LoRA", "--strategies.rnk=3"],
        "unknown option --strategies.rnk of LoRA; did you mean rank",
    ),
    "nothing near": (
        ["--strategies+=WeightConsolidation", "--strategies.xyz", "3"],
        "unknown option --strategies.xyz of WeightConsolidation; known: weight",
    ),
    "of a list": (
        ["--strategies=[LwF, EWC]", "--strategies.lmit=3"],
        "unknown option --strategies.lmit of EWC; did you mean limit",
    ),
    "of the model": (["--model.lrr=3"], "unknown option --model.lrr of CLIPModule; did you mean lr"),
    "of a stream": (
        ["--data.stream=pocket_kinds", "--data.stream.stepz=3"],
        "unknown option --data.stream.stepz of pocket_kinds; did you mean steps",
    ),
    "lacking": (["--strategies+=AGEM", "--strategies+=LwF"], "AGEM lacks 'size'; give --strategies.size"),
    "lacking in a mapping": (['--strategies+={"class_path": "GEM", "init_args": {"margin": 1}}'], "GEM lacks 'size'"),
    "before its strategy": (
        ["--strategies.rank=3", "--strategies+=LoRA"],
        "--strategies.rank stands before any strategy; put --strategies+=NAME in front of it",
    ),
    "without a value": (
        ["--strategies+=LoRA", "--strategies.rank", "--dry_run"],
        "--strategies.rank has no value; give it one, as in --strategies.rank=VALUE",
    ),
    "no number": (
        ["--strategies+=LoRA", "--strategies.rank=three"],
        "--strategies.rank is 'three'; it must be a whole",
    ),
    "no strategy of a strategy": (
        ["--strategies+=APER", "--strategies.adapter=LoRAA"],
        "unknown strategy 'LoRAA'; did you mean LoRA",
    ),
    "not a number": (
        ["--strategies+=LwF", "--strategies+=LwF", "--strategies.weight=.nan"],
        "strategies.1.weight is nan; it must be a finite number",
    ),
    "no limit": (["--model.lr=.inf"], "model.lr is inf; it must be a finite number"),
    "below 0": (["--model.weight_decay=-1"], "CLIPModule: weight_decay is -1.0; it must be 0 or more"),
    "decay of moments": (["--model.betas=[1.5,0.9]"], "CLIPModule: betas are [1.5, 0.9]; each must be 0 or more and"),
    "a preset without --config": (["pocket/finetune"], "unexpected argument 'pocket/finetune'"),
    "help of nothing": (["--strategies.help"], "--strategies.help: say of which; `mmcl list strategies` shows them"),
    "help of something unknown": (["--strategies.help", "LoRa"], "unknown strategy 'LoRa'; did you mean LoRA"),
    "a source that nobody has": (
        ["--strategies+=GeRe"],
        "GeRe: stream 'tiny' has no source 'general'; known: reference",
    ),
    "no memory": (["--strategies+=ExperienceReplay", "--strategies.size=0"], "ExperienceReplay: size is 0; it must be"),
    "no memories": (["--strategies+=DERPlusPlus", "--strategies.size=-1"], "DERPlusPlus: size is -1; it must be"),
    "a feature of a rule": (
        [f"--strategies{x}" for x in ("+=ExperienceReplay", ".size=4", ".rule=herding", ".feature=imge")],
        "ExperienceReplay needs 'features.imge', which CLIPModule does not provide",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(mmcl: Mmcl, home: Path, workplace: Path, name: str) -> None:
    flags, words = REFUSED[name]
    answer = mmcl("fit", "--config", home / "tiny.yaml", *flags)
    assert answer.code == 2 and words in answer.err, answer
    assert answer.err.count("\n") == 1 and not answer.out
    assert not list(workplace.iterdir())


@pytest.mark.parametrize(
    "flags",
    [
        ["--strategies.help", "LoRA"],
        ["--strategies.help=LoRA", "--run_dir", "x"],
        ["--model.help=CLIPModule"],
        ["--data.stream.help", "pocket_text"],
    ],
)
def test_help_of_a_plug_in(mmcl: Mmcl, flags: list[str]) -> None:
    answer = mmcl("fit", *flags)
    assert answer.code == 0, answer.err
    what = {"s": "--strategies.rank", "m": "--model.layer_decay", "d": "--data.stream.replay"}[flags[0][2]]
    assert what in answer.out and "default" in answer.out


@pytest.mark.parametrize("value", ["VeRA", '{"class_path": "VeRA"}'])
def test_a_strategy_of_a_strategy_by_its_short_name(mmcl: Mmcl, home: Path, value: str) -> None:
    flags = ["--strategies+=APER", "--strategies.adapter", value, "--strategies.adapter.rank=2"]
    answer = mmcl("fit", "--config", home / "tiny.yaml", *flags, "--print_config")
    assert answer.code == 0, answer.err
    assert "class_path: mmcl.strategies.vera.VeRA" in answer.out and "rank: 2" in answer.out


def test_a_strategy_of_a_strategy_by_its_short_name_in_a_file(mmcl: Mmcl, changed: Callable[..., Path]) -> None:
    for adapter in ("VeRA", {"class_path": "VeRA"}):
        config = changed(strategies=[{"class_path": "APER", "init_args": {"adapter": adapter}}])
        answer = mmcl("fit", "--config", config, "--print_config")
        assert answer.code == 0 and "class_path: mmcl.strategies.vera.VeRA" in answer.out, answer.err


def test_a_model_named_again_keeps_what_the_file_gives(mmcl: Mmcl, home: Path) -> None:
    answer = mmcl("fit", "--config", home / "tiny.yaml", "--model", "CLIPModule", "--print_config")
    assert answer.code == 0 and "local-dir:" in answer.out, answer.err


def test_a_fault_of_a_dry_run_names_no_folder_that_is_gone(mmcl: Mmcl, home: Path, workplace: Path) -> None:
    answer = mmcl("fit", "--config", home / "tiny.yaml", "--dry_run", "--model.lr=1e30")
    assert answer.code == 2 and "the loss is nan" in answer.err and "checkpoint" not in answer.err
    assert answer.err.endswith("dry run: nothing was written\n") and not list(workplace.iterdir())


def test_a_run_folder_is_no_config(mmcl: Mmcl, finished: Path) -> None:
    answer = mmcl("test", "--config", finished)
    assert answer.code == 2 and answer.err.endswith(f"is a run folder; give --config {finished}/config.yaml\n")
