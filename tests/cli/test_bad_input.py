"""What cannot work is refused in one clear line, with exit code 2, before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from tiny import COLOURS

from mmcl.datamodules.write import write_shard
from mmcl.wording import check_keys

Mmcl = Callable[..., Any]
TASK, EVAL = "data__stream__tasks__0", "data__stream__evals__2"

SETTINGS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "unknown strategy": ({"strategies": ["ZSLC"]}, ["unknown strategy 'ZSLC'; did you mean ZSCL"]),
    "unknown model": ({"model__class_path": "CLIPModul"}, ["unknown module 'CLIPModul'", "CLIPModule"]),
    "class that cannot be imported": ({"model__class_path": "nowhere.Model"}, ["model: 'nowhere.Model'", "No module"]),
    "not a strategy": ({"strategies": ["mmcl.stream.Task"]}, ["strategies.0: 'mmcl.stream.Task' is no Strategy"]),
    "two claims": (
        {"strategies": ["ZSCL", "MomentumInterpolation"]},
        ["WeightEnsemble of ZSCL and MomentumInterpolation both claim 'eval_weights'"],
    ),
    "no tasks": ({"data__stream__tasks": []}, ["stream 'tiny' has no tasks"]),
    "tasks left out": ({"data__stream__tasks": None}, ["data.stream lacks 'tasks'"]),
    "two evaluation sets of one name": (
        {"data__stream__evals__1__name": "dots"},
        ["stream 'tiny' has two evaluation sets named 'dots'"],
    ),
    "two tasks of one name": ({"data__stream__tasks__1__name": "dots"}, ["two tasks named 'dots'"]),
    "class names of a task": (
        {f"{TASK}__class_names": ["red", "green", "blue"]},
        ["task 'dots'", "sample 'dots-003'", "label 3", "3 class names"],
    ),
    "class names of an evaluation set": (
        {f"{EVAL}__class_names": ["red", "green", "blue"]},
        ["evaluation set 'held'", "label 3", "3 class names"],
    ),
    "missing shard": ({f"{TASK}__train__0__shards": ["nowhere.tar"]}, ["nowhere.tar does not exist"]),
    "batch larger than a task": ({"data__batch_size": 32}, ["task 'dots'", "32", "24", "`batch_size`"]),
    "batch that does not divide": (
        {"trainer__accumulate_grad_batches": 3},
        ["`batch_size` (8) does not divide by 1 processes x 3"],
    ),
    "evaluates nothing": ({f"{TASK}__evaluates": "dits"}, ["task 'dots' evaluates 'dits'", "did you mean dots"]),
    "unknown probe": ({f"{EVAL}__probe": "zeroshot"}, ["evaluation set 'held'", "zero_shot"]),
    "option of a probe": ({f"{EVAL}__options": {"k": 1}}, ["evaluation set 'held'", "option k is 1"]),
    "no source for a strategy": (
        {"data__stream__sources": {}, "strategies": ["ZSCL"]},
        ["no source 'reference'"],
    ),
    "two budgets": ({f"{TASK}__budget": {"steps": 3, "epochs": 1}}, ["exactly one of steps, samples, epochs, tokens"]),
    "limits of the trainer": ({"trainer__max_steps": 3}, ["max_epochs and max_steps belong to the tasks' budgets"]),
    "no device": ({"trainer__devices": 0}, ["devices"]),
    "unknown model name": ({"model__init_args__model": "ViT-B-33"}, ["model 'ViT-B-33'", "did you mean ViT-B-"]),
    "no model folder": ({"model__init_args__model": "local-dir:nowhere"}, ["there is no folder", "nowhere"]),
    "unknown key": ({"strategie": []}, ["unknown key 'strategie'; did you mean strategies"]),
    "unknown key of the model": ({"model__init_args__lrr": 1}, ["unknown key 'lrr' in model; did you mean lr"]),
    "unknown key of the data": ({"data__batchsize": 1}, ["unknown key 'batchsize' in data; did you mean batch_size"]),
    "unknown key of the trainer": ({"trainer__device": 1}, ["unknown key 'device' in trainer; did you mean devices"]),
    "unknown key of a task": ({f"{TASK}__budgett": {}}, ["'budgett' in data.stream.tasks.0; did you mean budget"]),
    "unknown key of a source": (
        {f"{EVAL}__source__shard": []},
        ["'shard' in data.stream.evals.2.source; did you mean shards"],
    ),
    "unknown key of a strategy": (
        {"strategies": [{"class_path": "ZSCL", "init_args": {"intervall": 1}}]},
        ["'intervall' in strategies.0; did you mean interval"],
    ),
    "missing key of a task": ({f"{TASK}__budget": None}, ["data.stream.tasks.0 lacks 'budget'"]),
    "missing key of the model": ({"model__init_args": {}}, ["model lacks 'model'"]),
    "no number": ({"data__batch_size": "many"}, ["data.batch_size is 'many'; it must be a whole number"]),
    "no number of steps": (
        {f"{TASK}__budget": {"steps": "many"}},
        ["tasks.0.budget.steps is 'many'; it must be a whole number"],
    ),
    "no list": ({"data__stream__tasks": "dots"}, ["tasks is 'dots'; it must be a list"]),
    "model without class_path": ({"model": {"CLIPModule": {}}}, ["unknown key 'CLIPModule' in model", "class_path"]),
    "strategy without class_path": (
        {"strategies": [{"ZSCL": {"interval": 2}}]},
        ["unknown key 'ZSCL' in strategies.0", "class_path"],
    ),
    "a name for a source": ({f"{TASK}__mix": ["old"]}, ["tasks.0.mix.0 is 'old'; it must be a mapping", "shards"]),
    "a shard for a source": ({f"{TASK}__train": ["a.tar"]}, ["tasks.0.train.0 is 'a.tar'; it must be a mapping"]),
    "no accelerator": ({"trainer__accelerator": "gpuu"}, ["trainer: ", "gpuu", "cpu"]),
    "no strategy of Lightning": ({"trainer__strategy": "dpp"}, ["trainer: ", "dpp", "ddp"]),
    "lower case": ({"strategies": ["zscl"]}, ["unknown strategy 'zscl'; did you mean ZSCL"]),
    "part of a name": ({"model__class_path": "clip"}, ["unknown module 'clip'; did you mean CLIPModule"]),
    "nothing near": ({"strategies": ["Xyzzyx"]}, ["unknown strategy 'Xyzzyx'; `mmcl list strategies` shows them all"]),
    "no batch to a step": ({"trainer__accumulate_grad_batches": 0}, ["accumulate_grad_batches is 0; give 1 or more"]),
    "what a callback refuses": (
        {"trainer__callbacks": [{"class_path": "ModelCheckpoint", "init_args": {"save_top_k": -7}}]},
        ["Invalid value for save_top_k=-7"],
    ),
    "no precision": ({"trainer__precision": "17"}, ["trainer.precision is '17'", "bf16"]),
}


def refused(answer: Any, *parts: str) -> None:
    """Exit code 2, one line."""
    assert answer.code == 2, answer
    assert answer.err.startswith("mmcl: error: ") and answer.err.count("\n") == 1, answer.err
    assert answer.err.endswith("\n") and not answer.out
    for part in parts:
        assert part in answer.err


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(mmcl: Mmcl, changed: Callable[..., Path], workplace: Path, name: str) -> None:
    changes, parts = SETTINGS[name]
    refused(mmcl("fit", "--config", changed(**changes)), *parts)
    assert not list(workplace.iterdir())


COMMANDS: dict[str, tuple[list[str], list[str]]] = {
    "unknown command": (["fitt"], ["unknown command 'fitt'; did you mean fit"]),
    "no settings": (["fit"], ["no data.stream and no model given", "--config"]),
    "unknown preset": (
        ["fit", "--config", "quickstart/nothing"],
        ["--config quickstart/nothing: no such file or preset"],
    ),
    "unknown option": (
        ["fit", "--config", "CONFIG", "--rundir", "x"],
        ["unknown option --rundir; did you mean --run_dir"],
    ),
    "unknown option of the model": (["fit", "--config", "CONFIG", "--model.lrr=3"], ["unknown option --model.lrr"]),
    "unknown strategy": (
        ["fit", "--config", "CONFIG", "--strategies+=ZSC"],
        ["unknown strategy 'ZSC'; did you mean ZSCL"],
    ),
    "unknown benchmark": (["fit", "--config", "CONFIG", "--data.stream", "pockt"], ["unknown benchmark 'pockt'"]),
    "no checkpoint": (["test", "--config", "CONFIG"], ["no checkpoint", "last.ckpt", "none"]),
    "no run to start from": (["fit", "--config", "CONFIG", "--init_from", "nowhere"], ["--init_from nowhere"]),
    "run folder is a file": (
        ["fit", "--config", "CONFIG", "--run_dir", "CONFIG"],
        ["tiny.yaml cannot be made: File exists; choose another --run_dir"],
    ),
    "seeds": (["fit", "--config", "CONFIG", "--seeds", "a,b"], ["--seeds 'a,b'", "0,1,2"]),
    "seed below 0": (["fit", "--config", "CONFIG", "--seed_everything", "-1"], ["seed_everything is -1", "from 0"]),
    "run folder without a name": (["fit", "--config", "CONFIG", "--run_dir"], ["--run_dir has no value"]),
    "option for a run folder": (["fit", "--config", "CONFIG", "--run_dir", "--dry_run"], ["--run_dir has no value"]),
    "number for a pair": (["fit", "--config", "CONFIG", "--model.betas", "0.9"], ["model.betas", "must be a list"]),
    "seeds of a test": (["test", "--config", "CONFIG", "--seeds", "1"], ["--seeds belongs to `mmcl fit`"]),
    "no kind": (["list"], ["kind"]),
    "unknown kind": (["list", "strategy"], ["mmcl list strategy", "did you mean strategies"]),
    "no runs": (["report"], ["runs"]),
    "no results": (["report", "nowhere"], ["nowhere: no results.json there"]),
    "number": (
        ["fit", "--config", "CONFIG", "--data.workers", "two"],
        ["data.workers is 'two'; it must be a whole number"],
    ),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands(mmcl: Mmcl, home: Path, workplace: Path, name: str) -> None:
    arguments, parts = COMMANDS[name]
    refused(mmcl(*(str(home / "tiny.yaml") if a == "CONFIG" else a for a in arguments)), *parts)
    assert not list(workplace.iterdir())


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("model: [\n  a: b: c\n", "is not valid YAML at line 2"),
        ("model: {\n", "is not valid YAML"),
        ("- a\n- b\n", "holds no settings"),
        ("", "holds no settings"),
    ],
)
def test_yaml(mmcl: Mmcl, workplace: Path, tmp_path: Path, text: str, part: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    refused(mmcl("fit", "--config", tmp_path / "bad.yaml"), "bad.yaml", part)
    assert not list(workplace.iterdir())


def test_empty_caption(mmcl: Mmcl, changed: Callable[..., Path], workplace: Path, tmp_path: Path) -> None:
    samples = list(tiny.pictures("dots", 24))
    samples[5]["txt"] = " "
    write_shard(tmp_path / "gap.tar", samples)
    config = changed(**{f"{TASK}__train__0__shards": [str(tmp_path / "gap.tar")]})
    refused(mmcl("fit", "--config", config), "sample 'dots-005'", "gap.tar", "empty caption")
    assert not list(workplace.iterdir())


def test_damaged_shard(mmcl: Mmcl, changed: Callable[..., Path], home: Path, workplace: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.tar").write_bytes((home / "dots.tar").read_bytes()[:20000])
    config = changed(**{f"{TASK}__train__0__shards": [str(tmp_path / "cut.tar")]})
    refused(mmcl("fit", "--config", config), "cut.tar")
    assert not list(workplace.iterdir())


def test_no_labels_for_class_names(mmcl: Mmcl, changed: Callable[..., Path], workplace: Path, tmp_path: Path) -> None:
    samples = [{k: v for k, v in s.items() if k != "cls"} for s in tiny.pictures("dots", 24)]
    write_shard(tmp_path / "bare.tar", samples)
    config = changed(**{f"{EVAL}__source__shards": [str(tmp_path / "bare.tar")]})
    refused(mmcl("fit", "--config", config), "evaluation set 'held'", "no labels")


LACKING: dict[str, tuple[str, str, list[str]]] = {
    "captions of a task": (
        "txt",
        f"{TASK}__train__0",
        ["task 'dots'", "have no text, which CLIPModule with Contrastive needs"],
    ),
    "pictures of a task": ("png", f"{TASK}__train__0", ["task 'dots'", "have no image", "KEY.jpg"]),
    "pictures of a set": (
        "png",
        f"{EVAL}__source",
        ["evaluation set 'held'", "have no image, which probe 'zero_shot'"],
    ),
    "captions of a set": (
        "txt",
        "data__stream__evals__3__source",
        ["'pairs'", "no text, which probe 'retrieval' needs"],
    ),
}


@pytest.mark.parametrize("name", LACKING)
def test_samples_without_what_they_are_read_for(
    mmcl: Mmcl, changed: Callable[..., Path], workplace: Path, tmp_path: Path, name: str
) -> None:
    member, place, parts = LACKING[name]
    write_shard(tmp_path / "bare.tar", [{k: v for k, v in s.items() if k != member} for s in tiny.pictures("dots", 24)])
    config = changed(**{f"{place}__shards": [str(tmp_path / "bare.tar")]})
    refused(mmcl("fit", "--config", config), "bare.tar", "they have", *parts)
    assert not list(workplace.iterdir())


def test_pictures_of_classes(mmcl: Mmcl, changed: Callable[..., Path], workplace: Path, tmp_path: Path) -> None:
    """The objective over class texts reads pictures too, of a task's own samples and of those mixed in."""
    write_shard(tmp_path / "bare.tar", [{k: v for k, v in s.items() if k != "png"} for s in tiny.pictures("dots", 24)])
    classes = {"model__init_args__objective": {"class_path": "ClassTextCrossEntropy"}}
    source = {"shards": [str(tmp_path / "bare.tar")]}
    for place, value in (("train", [source]), ("mix", [{**source, "name": "old", "share": 0.5}])):
        answer = mmcl("fit", "--config", changed(**{f"{TASK}__{place}": value}, **classes))
        refused(answer, "task 'dots'", "no image, which CLIPModule with ClassTextCrossEntropy needs")
    assert not list(workplace.iterdir())


@pytest.mark.parametrize("name", ["Frozen", "NearestMean"])
def test_what_does_not_train_needs_no_captions(
    mmcl: Mmcl, changed: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    write_shard(tmp_path / "bare.tar", [{k: v for k, v in s.items() if k != "txt"} for s in tiny.pictures("dots", 24)])
    train = {f"data__stream__tasks__{i}__train": [{"shards": [str(tmp_path / "bare.tar")]}] for i in (0, 1)}
    config = changed(**train, strategies=[name])
    answer = mmcl("fit", "--config", config, "--run_dir", tmp_path / "run")
    assert answer.code == 0, answer.err


def test_names_where_a_stream_would_have_tasks_and_sources() -> None:
    """Arguments of benchmarks and strategies may be called as a stream's are and hold something else."""
    questions = {"class_path": "mmcl.benchmarks.pocket_questions.pocket_questions", "init_args": {"tasks": ["a"]}}
    speeds = {"targets": {"a": 1.0}, "sources": {"a": "b"}}
    strategy = {"class_path": "mmcl.strategies.velocitune.Velocitune", "init_args": speeds}
    check_keys({"data": {"stream": questions}, "strategies": [strategy]}, ["data", "strategies"], [])


def test_folders_for_shards(mmcl: Mmcl, changed: Callable[..., Path], home: Path, workplace: Path) -> None:
    for folder, hint in ((home, f"name the shards in it, as in {home}/*.tar"), (home / "model", "mmcl shards write")):
        refused(mmcl("fit", "--config", changed(**{f"{TASK}__train__0__shards": [str(folder)]})), "is a folder", hint)
    refused(mmcl("shards", "lint", home / "model"), "has no tar files in it", "mmcl shards write")
    config = changed(**{f"{TASK}__train__0__shards": ["nowhere.tar"]})
    refused(mmcl("fit", "--config", config), f"nowhere.tar does not exist; relative paths begin in {workplace}")


def test_another_architecture(
    mmcl: Mmcl, changed: Callable[..., Path], finished: Path, workplace: Path, tmp_path: Path
) -> None:
    tiny.write_model(tmp_path / "wide", width=24)
    last = finished / "checkpoints" / "last.ckpt"
    config = changed(model__init_args__model=f"local-dir:{tmp_path / 'wide'}")
    wanted = [str(last), "is of another architecture", "(16,)", "(24,)"]
    refused(mmcl("fit", "--config", config, "--init_from", finished), *wanted)
    refused(mmcl("fit", "--config", config, "--model.random_init=false", "--model.checkpoint", last), *wanted[:2])
    refused(mmcl("test", "--config", config, "--ckpt_path", last), *wanted)
    assert not list(workplace.iterdir())


def test_no_checkpoint_at_all(mmcl: Mmcl, home: Path, workplace: Path, finished: Path) -> None:
    (workplace / "junk.ckpt").write_bytes(b"junk")
    refused(mmcl("fit", "--config", home / "tiny.yaml", "--init_from", "junk.ckpt"), "junk.ckpt", "damaged")
    refused(mmcl("test", "--config", finished / "config.yaml", "--ckpt_path", "task-9"), "task-9", "task-1, task-2")
    assert [p.name for p in workplace.iterdir()] == ["junk.ckpt"]


def test_folder_of_another_configuration(mmcl: Mmcl, home: Path, copy: Path) -> None:
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    flags = ["--model.lr", "0.5", "--strategies+=LwF", "--data.workers", "1"]
    answer = mmcl("fit", "--config", home / "tiny.yaml", "--run_dir", copy, *flags)
    refused(answer, "belongs to another configuration", "model.init_args.lr (0.01 there, 0.5 here)", "strategies")
    assert "workers" not in answer.err
    assert {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()} == before


def test_folder_in_use(mmcl: Mmcl, home: Path, copy: Path) -> None:
    from mmcl.run_folder import RunFolder

    with RunFolder(copy).locked():
        refused(mmcl("fit", "--config", home / "tiny.yaml", "--run_dir", copy), "is in use by process")


def test_nan(mmcl: Mmcl, changed: Callable[..., Path], workplace: Path) -> None:
    answer = mmcl("fit", "--config", changed(model__init_args__lr=1e30))
    assert answer.code == 1 and answer.err.count("\n") == 1
    for part in ("the loss is nan in task 'dots' at step", "of 8", "last good checkpoint: runs/changed/checkpoints"):
        assert part in answer.err
    weights = tiny.network(workplace / "runs" / "changed")
    assert all(torch.isfinite(w).all() for w in weights.values())


def test_full_disk(mmcl: Mmcl, home: Path, finished: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saves, save = 0, torch.save

    def full(content: Any, path: Any) -> None:
        nonlocal saves
        saves += 1
        if saves == 3:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(content, path)

    command = ["fit", "--config", home / "tiny.yaml", "--run_dir", "run"]
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        answer = mmcl(*command)
    assert answer.code == 1 and answer.err.count("\n") == 1
    assert "No space left on device" in answer.err and "last good checkpoint: run/checkpoints/last.ckpt" in answer.err
    assert not list((workplace / "run").rglob("*.part"))
    assert mmcl(*command).code == 0
    assert tiny.differences(finished, workplace / "run") == []


def test_words_in_class_names_are_taken_as_they_are(mmcl: Mmcl, changed: Callable[..., Path], workplace: Path) -> None:
    """YAML reads yes, no and numbers as something else: that is refused, not passed on."""
    names = [*list(COLOURS)[:3], 7]
    answer = mmcl("fit", "--config", changed(**{f"{TASK}__class_names": names}))
    refused(answer, "class_names")
