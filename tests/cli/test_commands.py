"""fit, test, validate, predict and report, in one process, on a run that takes a second."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml
from safetensors.torch import load_file

import mmcl as package
from mmcl.errors import RunError
from mmcl.training import Training

Mmcl = Callable[..., Any]


def test_fit_fills_the_run_folder(finished: Path) -> None:
    files = {p.name for p in finished.iterdir() if not p.name.startswith(".")}
    assert {"config.yaml", "results.json", "matrix.csv", "metrics.jsonl", "checkpoints"} <= files
    results = tiny.results(finished)
    assert results["run"]["status"] == "finished" and len(results["matrix"]["values"]) == 3
    assert results["matrix"]["counts"] == [24, 24, 15, 30]
    assert {p.stem for p in (finished / "checkpoints").glob("*.ckpt")} == {"last", "previous", "task-1", "task-2"}


def test_fit_prints_the_final_table_and_a_second_one_trains_nothing(
    mmcl: Mmcl, home: Path, copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = (copy / "results.json").read_bytes()
    with caplog.at_level("WARNING", logger="mmcl"):
        answer = mmcl("fit", "--config", home / "tiny.yaml", "--run_dir", copy)
    assert answer.code == 0 and "is finished; nothing to do" in caplog.text
    assert "before training" in answer.out and "2 stripes" in answer.out
    assert (copy / "results.json").read_bytes() == before


@pytest.mark.parametrize(("checkpoint", "row"), [("last", 2), ("task-1", 1), ("task-2", 2), ("path", 1)])
def test_test_reproduces_the_row(mmcl: Mmcl, copy: Path, checkpoint: str, row: int) -> None:
    given = str(copy / "checkpoints" / "task-1.ckpt") if checkpoint == "path" else checkpoint
    answer = mmcl("test", "--config", copy / "config.yaml", "--ckpt_path", given)
    assert answer.code == 0, answer.err
    stem = "task-1" if checkpoint == "path" else checkpoint
    content = json.loads((copy / f"test-{stem}.json").read_text())
    scores = content["scores"]["default"]
    matrix = tiny.results(copy)["matrix"]
    assert [scores[name]["value"] for name in matrix["columns"]] == matrix["values"][row]
    assert [scores[name]["count"] for name in matrix["columns"]] == matrix["counts"]
    assert content["stage"] == "test" and content["checkpoint"].endswith(f"{stem}.ckpt")


def test_config_of_a_run_works_from_elsewhere(mmcl: Mmcl, copy: Path, workplace: Path) -> None:
    answer = mmcl("test", "--config", copy / "config.yaml")
    assert answer.code == 0, answer.err
    assert (copy / "test-last.json").exists() and not list(workplace.iterdir())


def test_validate_takes_the_subsets(mmcl: Mmcl, copy: Path) -> None:
    assert mmcl("validate", "--config", copy / "config.yaml").code == 0
    scores = json.loads((copy / "validate-last.json").read_text())["scores"]["default"]
    assert {name: cell["count"] for name, cell in scores.items()} == {"dots": 8, "stripes": 8, "held": 15, "pairs": 12}


def test_predict_agrees_with_the_matrix(mmcl: Mmcl, copy: Path) -> None:
    answer = mmcl("predict", "--config", copy / "config.yaml", "--ckpt_path", "task-1")
    assert answer.code == 0, answer.err
    lines = (copy / "predictions-held.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len({row["key"] for row in rows}) == 15 and all(0 < row["probability"] <= 1 for row in rows)
    hits = sum(row["predicted"] == row["label"] for row in rows)
    assert hits / 15 == tiny.results(copy)["matrix"]["values"][1][2]
    assert all(list(tiny.COLOURS)[row["predicted"]] == row["class"] for row in rows)


def test_report_over_two_runs(mmcl: Mmcl, home: Path, finished: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    assert mmcl("fit", "--config", home / "tiny.yaml", "--run_dir", other, "--model.lr", "0.001").code == 0
    answer = mmcl("report", finished, other, "--out", tmp_path / "both")
    assert answer.code == 0, answer.err
    page = (tmp_path / "both" / "report.html").read_text()
    assert "finished" in page and "other" in page
    assert mmcl("report", other).out.strip() == str(other / "report.html")


def test_init_from_begins_where_the_other_run_ended(mmcl: Mmcl, home: Path, finished: Path, tmp_path: Path) -> None:
    answer = mmcl("fit", "--config", home / "tiny.yaml", "--run_dir", tmp_path / "next", "--init_from", finished)
    assert answer.code == 0, answer.err
    assert tiny.results(tmp_path / "next")["matrix"]["values"][0] == tiny.results(finished)["matrix"]["values"][-1]


def test_weights_of_a_run_are_a_checkpoint_of_the_module(
    mmcl: Mmcl, home: Path, finished: Path, tmp_path: Path
) -> None:
    file = finished / "checkpoints" / "last.ckpt"
    flags = ["--model.random_init", "false", "--model.checkpoint", file]
    assert mmcl("fit", "--config", home / "tiny.yaml", "--run_dir", tmp_path / "next", *flags).code == 0
    assert tiny.results(tmp_path / "next")["matrix"]["values"][0] == tiny.results(finished)["matrix"]["values"][-1]


def test_dry_run_writes_nothing(mmcl: Mmcl, home: Path, workplace: Path) -> None:
    answer = mmcl("fit", "--config", home / "tiny.yaml", "--strategies+=ZSCL", "--dry_run")
    assert answer.code == 0, answer.err
    assert "task 1 dots: 24 samples, 8 steps" in answer.out and "nothing was written" in answer.out
    assert not list(workplace.iterdir())


class Killed(Exception):
    """Stands for the end of the process."""


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    inner = Training._after_step

    def after_step(self: Training, engine: Any, batch: Any) -> None:
        inner(self, engine, batch)
        if engine.step == step:
            raise error

    monkeypatch.setattr(Training, "_after_step", after_step)


@pytest.mark.parametrize("step", [7, *(pytest.param(step, marks=pytest.mark.slow) for step in (2, 8, 11))])
def test_an_interrupted_run_goes_on_with_other_workers(
    mmcl: Mmcl, home: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    command = ["fit", "--config", home / "tiny.yaml", "--run_dir", tmp_path / "cut"]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        stop_at(step, patch, Killed())
        mmcl(*command)
    more = ["--data.workers", "1", "--data.eval_batch_size", "7", "--trainer.enable_progress_bar", "true"]
    assert mmcl(*command, *(more if step == 7 else [])).code == 0
    assert tiny.differences(finished, tmp_path / "cut") == []


def test_a_fault_while_running_is_one_line_and_can_be_continued(
    mmcl: Mmcl, home: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["fit", "--config", home / "tiny.yaml", "--run_dir", tmp_path / "cut"]
    with monkeypatch.context() as patch:
        stop_at(5, patch, RunError("the shard went away"))
        answer = mmcl(*command)
    assert answer.code == 1 and answer.err.count("\n") == 1
    assert "the shard went away; last good checkpoint" in answer.err
    assert mmcl(*command).code == 0
    assert tiny.differences(finished, tmp_path / "cut") == []


def test_the_same_from_python(finished: Path, home: Path, tmp_path: Path) -> None:
    import torch

    from mmcl.datamodules import StreamDataModule
    from mmcl.modules import CLIPModule
    from mmcl.trainer import make

    settings = tiny.config(home)["data"]["stream"]

    def source(given: dict[str, Any]) -> package.Source:
        return package.Source(**given)

    tasks = [
        package.Task(**{**t, "train": [source(s) for s in t["train"]], "budget": package.Budget(**t["budget"])})
        for t in settings["tasks"]
    ]
    evals = [package.EvalSet(**{**e, "source": source(e["source"])}) for e in settings["evals"]]
    stream = package.Stream("tiny", tasks, evals, protocol=settings["protocol"])

    def run() -> dict[str, Any]:
        torch.manual_seed(0)
        module = CLIPModule(f"local-dir:{home / 'model'}", random_init=True, lr=0.01)
        trainer = make(accelerator="cpu", enable_progress_bar=False, log_every_n_steps=2)
        return package.run(
            stream=StreamDataModule(stream, batch_size=8), module=module, trainer=trainer, run_dir=folder
        )

    folder = tmp_path / "python"
    results = run()
    assert results["matrix"]["values"] == tiny.results(finished)["matrix"]["values"]
    assert tiny.differences(finished, folder) == []
    assert run() == results


def test_export_gives_the_weights_that_were_measured(mmcl: Mmcl, copy: Path, tmp_path: Path) -> None:
    done = mmcl("export", copy, "--to", tmp_path / "out", "--format", "safetensors", "--ckpt_path", "task-1")
    assert (done.code, done.out.strip()) == (0, str(tmp_path / "out"))
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert weights.keys() == tiny.network(copy, "task-1").keys()
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    assert (record["run"], record["checkpoint"], record["task"]) == (copy.name, "task-1.ckpt", 0)
    for arguments, message in (
        (["--to", tmp_path / "out"], "there is something already"),
        (["--to", tmp_path / "other", "--format", "onnx"], "--format onnx: CLIPModule is exported as"),
        (["--to", tmp_path / "other", "--variant", "none"], "--variant none"),
        (["--to", tmp_path / "other", "--ckpt_path", "task-9"], "no checkpoint"),
        ([], "--to"),
    ):
        refused = mmcl("export", copy, *arguments)
        assert refused.code == 2 and message in refused.err, refused.err
        assert not (tmp_path / "other").exists()
    assert "is no run folder" in mmcl("export", tmp_path, "--to", tmp_path / "other").err


def test_what_several_processes_trained_is_exported_by_one(mmcl: Mmcl, copy: Path, tmp_path: Path) -> None:
    file = copy / "config.yaml"
    content = yaml.safe_load(file.read_text())
    content["trainer"] |= {"devices": 2, "strategy": "ddp"}
    file.write_text(yaml.safe_dump(content))
    assert mmcl("export", copy, "--to", tmp_path / "out", "--format", "safetensors").code == 0
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == tiny.network(copy, "task-2").keys()


def test_an_export_goes_to_the_working_folder_or_says_why_not(
    mmcl: Mmcl, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert mmcl("export", copy, "--to", ".", "--format", "safetensors").code == 0
    assert {p.name for p in Path().iterdir()} == {"model.safetensors", "export.json"}
    refused = mmcl("export", copy, "--to", "export.json/out")
    assert refused.code == 2 and "--to export.json/out: it cannot be written: Not a directory" in refused.err
