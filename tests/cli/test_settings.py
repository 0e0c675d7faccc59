"""How settings come together: files, presets, short names, flags; and what is printed without a run."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml

import mmcl as package

Mmcl = Callable[..., Any]


def printed(mmcl: Mmcl, *arguments: str | Path) -> dict[str, Any]:
    answer = mmcl("fit", *arguments, "--print_config")
    assert answer.code == 0, answer.err
    content: dict[str, Any] = yaml.safe_load(answer.out)
    return content


def test_print_config_shows_all_and_comes_back(mmcl: Mmcl, home: Path, tmp_path: Path) -> None:
    first = mmcl("fit", "--config", home / "tiny.yaml", "--print_config")
    assert first.code == 0
    (tmp_path / "printed.yaml").write_text(first.out)
    assert mmcl("fit", "--config", tmp_path / "printed.yaml", "--print_config").out == first.out
    content = yaml.safe_load(first.out)
    assert content["model"]["init_args"]["weight_decay"] == 0.0 and content["data"]["workers"] == 0
    assert content["run_dir"] == "runs/tiny" and content["strategies"] == []
    assert content["trainer"]["gradient_clip_val"] is None


def test_short_names_in_yaml_and_on_the_command_line(mmcl: Mmcl, home: Path, changed: Callable[..., Path]) -> None:
    content = printed(mmcl, "--config", changed(strategies=["ZSCL"]))
    assert content["strategies"][0]["class_path"] == "mmcl.strategies.zscl.ZSCL"
    flags = ["--strategies+=WeightEnsemble", "--strategies.interval", "7", "--strategies+=WeightConsolidation"]
    content = printed(mmcl, "--config", home / "tiny.yaml", *flags)
    names = [s["class_path"].rpartition(".")[2] for s in content["strategies"]]
    assert names == ["WeightEnsemble", "WeightConsolidation"]
    assert content["strategies"][0]["init_args"]["interval"] == 7
    content = printed(mmcl, "--config", changed(strategies=["ZSCL"]), "--strategies", "Frozen")
    assert [s["class_path"].rpartition(".")[2] for s in content["strategies"]] == ["Frozen"]


def test_flags_come_before_yaml_and_a_second_file_before_the_first(mmcl: Mmcl, home: Path, tmp_path: Path) -> None:
    flags = ["--model.lr", "0.5", "--data.batch_size=4", "--trainer.devices", "2", "--seed_everything", "3"]
    content = printed(mmcl, "--config", home / "tiny.yaml", *flags)
    assert content["model"]["init_args"]["lr"] == 0.5 and content["data"]["batch_size"] == 4
    assert content["trainer"]["devices"] == "2" and content["seed_everything"] == 3
    (tmp_path / "more.yaml").write_text("model: {init_args: {lr: 0.25}}\nsave_every: 9\n")
    with_strategy = tiny.write_config(tmp_path, tiny.config(home) | {"strategies": ["LwF"]}, name="lwf")
    content = printed(mmcl, "--config", with_strategy, "--config", tmp_path / "more.yaml")
    assert content["model"]["init_args"]["lr"] == 0.25 and content["save_every"] == 9
    assert content["model"]["init_args"]["random_init"] is True and len(content["strategies"]) == 1


def test_a_model_by_its_short_name(mmcl: Mmcl, home: Path, tmp_path: Path) -> None:
    settings = tiny.config(home)
    del settings["model"]
    file = tiny.write_config(tmp_path, settings, name="modelless")
    flags = ["--model", "CLIPModule", "--model.model", f"local-dir:{home / 'model'}", "--model.random_init", "true"]
    answer = mmcl("fit", "--config", file, *flags, "--run_dir", tmp_path / "run", "--strategies+=Frozen")
    assert answer.code == 0, answer.err
    assert tiny.results(tmp_path / "run")["strategies"][0]["name"] == "Frozen"


def test_where_a_run_goes(mmcl: Mmcl, home: Path, copy: Path, changed: Callable[..., Path], tmp_path: Path) -> None:
    assert printed(mmcl, "--config", home / "tiny.yaml")["run_dir"] == "runs/tiny"
    assert printed(mmcl, "--config", changed(run_dir="elsewhere/run"))["run_dir"] == "elsewhere/run"
    assert printed(mmcl, "--config", changed(run_dir="elsewhere/run"), "--run_dir", "here")["run_dir"] == "here"
    assert printed(mmcl, "--config", copy / "config.yaml")["run_dir"] == str(copy)


def test_what_does_not_change_the_result_is_not_identity(home: Path, finished: Path) -> None:
    identity = json.loads((finished / "identity.json").read_text())
    assert not {"run_dir", "save_every", "config"} & identity.keys()
    assert not {"workers", "pin_memory", "eval_batch_size"} & identity["data"].keys()
    assert not {"devices", "accelerator", "logger", "enable_progress_bar"} & identity["trainer"].keys()
    assert {"precision", "accumulate_grad_batches", "gradient_clip_val"} <= identity["trainer"].keys()


@pytest.mark.parametrize("kind", ["strategies", "modules", "benchmarks", "configs"])
def test_list(mmcl: Mmcl, kind: str) -> None:
    answer = mmcl("list", kind)
    assert answer.code == 0
    if kind == "strategies":
        assert {"ZSCL", "Frozen", "WeightEnsemble"} <= {line.split()[0] for line in answer.out.splitlines()}
    if kind == "modules":
        names = {line.split()[0] for line in answer.out.splitlines()}
        assert {"CLIPModule", "CausalLMModule", "ASRModule", "MLLMModule"} <= names


def test_version_and_help(mmcl: Mmcl) -> None:
    assert mmcl("--version").out == f"mmcl {package.__version__}\n"
    for arguments in (["--help"], [], ["-h"]):
        answer = mmcl(*arguments)
        assert answer.code == 0 and "mmcl <command> [options]" in answer.out
    answer = mmcl("fit", "--help")
    assert answer.code == 0 and answer.out.startswith("usage: mmcl") and "--run_dir" in answer.out
    assert "the same command continues" in answer.out and "--seeds 0,1,2" in answer.out
    answer = mmcl("test", "--help")
    assert answer.code == 0 and "Score a checkpoint" in answer.out and "last, task-K or a path" in answer.out
    assert mmcl("report", "--help").code == mmcl("list", "--help").code == 0


HEAVY = ("torch", "lightning", "jsonargparse", "open_clip", "numpy", "transformers")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["list", "strategies"], ["list", "configs"]])
def test_the_front_imports_nothing_heavy(arguments: list[str]) -> None:
    code = f"import sys; from mmcl.cli import main; main({arguments}); print([m for m in {HEAVY} if m in sys.modules])"
    began = time.perf_counter()
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"
    assert time.perf_counter() - began < 10  # 1.5 s on a quiet machine, which this one may not be


@pytest.mark.slow
def test_three_seeds_in_one_command(home: Path, tmp_path: Path) -> None:
    answer = tiny.mmcl("fit", "--config", home / "tiny.yaml", "--seeds", "0,1", "--run_dir", tmp_path / "runs")
    assert answer.returncode == 0, answer.stderr
    runs = [tiny.results(tmp_path / "runs" / f"seed-{seed}") for seed in (0, 1)]
    assert [r["run"]["seed"] for r in runs] == [0, 1]
    assert runs[0]["run"]["config_hash"] == runs[1]["run"]["config_hash"]
    assert runs[0]["matrix"]["values"] != runs[1]["matrix"]["values"]
    assert tiny.mmcl("report", tmp_path / "runs", "--out", tmp_path / "out").returncode == 0
    again = tiny.mmcl("fit", "--config", home / "tiny.yaml", "--seeds=0,1", "--run_dir", tmp_path / "runs")
    assert again.returncode == 0 and again.stderr.count("is finished") == 2
