"""Prompt methods in whole runs, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import settings_prompts
import tiny
import torch
import vits
from prompt_runs import CLIP, Maker, batch_of, moved, strategies_in
from safetensors.torch import save_file

from mmcl import Budget, Strategy, Stream, Task
from mmcl import trainer as lightning
from mmcl.datamodules import StreamDataModule
from mmcl.engine import Context
from mmcl.errors import ConfigError
from mmcl.export import Export, export
from mmcl.report import build_report
from mmcl.runner import Runner, RunOptions
from mmcl.strategies import (
    L2P,
    LGCL,
    CODAPrompt,
    DualPrompt,
    ExperienceReplay,
    LwF,
    MomentumInterpolation,
    SPrompts,
)
from mmcl.strategies._prompting import SELECTED


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shards")


@pytest.fixture
def make(shards: Path, tmp_path: Path) -> Maker:
    return Maker(shards, tmp_path)


# -- whole runs -------------------------------------------------------------------------------------------------------


def test_dual_prompt_trains_one_slot_after_the_other(make: Maker) -> None:
    runner = make([DualPrompt()])
    runner.fit()
    assert moved(runner) == {"dual_prompt.general", "dual_prompt.slots.1", "dual_prompt.keys.1"}
    end = strategies_in(runner, "task-1")
    fresh = make.entered([DualPrompt()], 0).composition.strategies[0].state_dict()
    assert torch.equal(end["dual_prompt.slots.1"], fresh["slots.1"])
    logged = [record for record in tiny.metrics(runner.folder.path) if record["kind"] == "step"]
    assert all(0 <= record["dual_prompt/right_slot"] <= 1 for record in logged)
    assert logged[-1]["dual_prompt/selected/0"] + logged[-1]["dual_prompt/selected/1"] == pytest.approx(1)
    counts = runner.composition.strategies[0].selected
    assert {name: int(found.sum()) for name, found in counts.items()} == {"task-0": 48, "task-1": 48}
    results = json.loads((runner.folder.path / "results.json").read_text())
    for entry in results["tasks"]:
        wanted = (counts[entry["name"]] / 48).tolist()
        assert list(entry["shares"]["dual_prompt"].values()) == pytest.approx(wanted)
    page = build_report([runner.folder.path], runner.folder.path).read_text()
    assert "<h2>Shares</h2>" in page and ">dual_prompt</th>" in page
    assert f"1, task-0: {100 * float(counts['task-0'][1]) / 48:.2f} %" in page


def test_an_export_names_what_it_lacks(make: Maker, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trained = make([DualPrompt(), MomentumInterpolation(0.5)])
    trained.fit()
    again = make([DualPrompt(), MomentumInterpolation(0.5)], folder=trained.folder.path)
    folder = export(again, "last", Export(tmp_path / "out", "safetensors"))
    assert json.loads((folder / "export.json").read_text())["left_out"] == {"DualPrompt": "prompts"}
    warnings = [record.getMessage() for record in caplog.records if record.name == "mmcl.export"]
    assert warnings == ["DualPrompt: the prompts stay in the checkpoint; the folder holds the network without them"]


def test_coda_prompt_trains_its_new_components_alone(make: Maker) -> None:
    runner = make([CODAPrompt(pool_size=6, length=4, blocks=(0, 2), orthogonality=0.1)])
    runner.fit()
    assert moved(runner) == {f"coda_prompt.{part}.1" for part in ("keys", "attention", "prompts")}
    assert strategies_in(runner, "task-1")["coda_prompt.keys.1"].abs().sum() == 0
    logged = [record for record in tiny.metrics(runner.folder.path) if record["kind"] == "step"]
    assert all("coda_prompt/orthogonality" in record for record in logged)


@pytest.mark.parametrize("part", ["keys", "attention", "prompts"])
def test_coda_prompt_holds_all_three_orthogonal(make: Maker, part: str) -> None:
    """Orthogonal rows of length 2 are off by mean (4 I - I)^2 = 9 / 6 in each of two blocks."""
    runner = make.entered([CODAPrompt(pool_size=6, length=4, blocks=(0, 2), orthogonality=0.1)])
    strategy: Any = runner.composition.strategies[0]
    with torch.no_grad():
        for components in getattr(strategy, part):
            components.mul_(2)
    (found,) = strategy.losses(None).values()
    assert float(found.detach()) == pytest.approx(0.1 * 2 * 9 / 6, rel=1e-4)


def test_s_prompts_of_one_domain_leave_the_others_alone(make: Maker) -> None:
    runner = make([SPrompts(3, 2)], "domains")
    runner.fit()
    assert moved(runner) == {"s_prompts.prompts.1", "s_prompts.heads.1"}
    centres = runner.composition.strategies[0].centres
    assert {name: tuple(found.shape) for name, found in centres.items()} == {"train": (2, 64), "held": (2, 64)}


def test_carried_moments_do_not_move_what_earlier_tasks_trained(make: Maker) -> None:
    runner = make([DualPrompt()], carry_optimizer=True)
    runner.fit()
    assert "dual_prompt.slots.0" not in moved(runner) and "dual_prompt.keys.0" not in moved(runner)


def test_half_precision_trains_head_and_prompts(make: Maker) -> None:
    """The query's forward comes first; copies of weights that it leaves without a history must not be used again."""
    runner = make([DualPrompt()], precision="bf16-mixed")
    runner.fit()
    first, second = tiny.network(runner.folder.path, "task-1"), tiny.network(runner.folder.path, "task-2")
    rows = len(first["head.weight"])
    assert not torch.equal(first["head.weight"], second["head.weight"][:rows])
    assert "dual_prompt.slots.1" in moved(runner)


def test_they_go_with_replay_distillation_and_averages(make: Maker) -> None:
    runner = make([ExperienceReplay(6), DualPrompt(), LwF(), MomentumInterpolation(0.9)])
    results = runner.fit()
    assert torch.tensor(results["matrix"]["values"], dtype=torch.float64).isfinite().all()
    assert moved(runner) == {"dual_prompt.general", "dual_prompt.slots.1", "dual_prompt.keys.1"}


# -- language ---------------------------------------------------------------------------------------------------------


def test_language_guides_keys_and_features(make: Maker) -> None:
    runner = make.entered([L2P(6, 2, 2), LGCL(settings_prompts.texts(), task_weight=0.5, class_weight=2.0)])
    lgcl: Any = runner.composition.strategies[1]
    batch = {**batch_of(runner), "labels": torch.tensor([0, 1, 0, 1, -100, 0])}
    context = Context(runner.engine, "fit", batch)
    context.outputs = context.forward(batch)
    found = lgcl.losses(context)
    classes, tasks = lgcl._features()
    negatives = lgcl._earlier_classes(classes, torch.Generator())
    assert {tuple(row.tolist()) for row in negatives[2:]} <= {tuple(row.tolist()) for row in classes[:2]}
    assert torch.equal(negatives[0], classes[1]) and torch.equal(negatives[1], classes[0])
    keys = context.outputs.extra[SELECTED].keys
    cosine = torch.nn.functional.cosine_similarity
    wanted = (1 - cosine(keys, tasks[1], dim=-1) + cosine(keys, tasks[0], dim=-1)).mean()
    torch.testing.assert_close(found["task"], 0.5 * wanted)
    found["task"].backward()
    assert runner.composition.strategies[0].key.grad.abs().sum() > 0  # type: ignore[union-attr]
    generator, kept = context.generator, [0, 1, 2, 3, 5]  # one row has no label
    lgcl._earlier_tasks(tasks, generator)
    columns = torch.tensor([2, 3, 2, 3, 2])
    own, earlier = classes[columns], lgcl._earlier_classes(classes, generator)[columns]
    features = context.outputs.features["image"][kept]
    wanted = (1 - cosine(features, own) + cosine(features, earlier)).mean()
    torch.testing.assert_close(found["class"], 2 * wanted)


def test_the_first_task_has_nothing_to_be_told_from(make: Maker) -> None:
    runner = make.entered([DualPrompt(), LGCL(settings_prompts.texts())], 0)
    lgcl: Any = runner.composition.strategies[1]
    classes, tasks = lgcl._features()
    assert lgcl._earlier_classes(classes, torch.Generator()).abs().sum() == 0
    assert lgcl._earlier_tasks(tasks, torch.Generator())[0].abs().sum() == 0


def test_texts_come_from_a_model_of_clip(tmp_path: Path, make: Maker) -> None:
    """The tiny one's texts have 12 numbers, the features 64."""
    vits.clip(tmp_path / "clip")
    with pytest.raises(ConfigError, match="no weights in"):
        make.entered([DualPrompt(), LGCL(f"local-dir:{tmp_path / 'clip'}")])
    module = vits.clip(tmp_path / "clip")
    module.export(tmp_path / "clip", "open_clip")
    with pytest.raises(ConfigError, match="vectors of 12 numbers, the features have 64"):
        make.entered([DualPrompt(), LGCL(f"local-dir:{tmp_path / 'clip'}")])


def test_texts_come_from_the_module_itself(shards: Path, tmp_path: Path, make: Maker) -> None:
    own = make([L2P(4, 2, 2, pool="tower"), LGCL()], CLIP)
    with pytest.raises(ConfigError, match="task 'dots' has no class names"):
        make.enter(own)
    names = list(tiny.COLOURS)
    given = own.stream
    tasks = [Task(t.name, t.train, Budget(steps=2), t.evaluates, class_names=names) for t in given.tasks]
    stream = Stream("named", tasks, given.evals)
    data = StreamDataModule(stream, batch_size=8, eval_batch_size=5)
    quiet = {"accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1}
    options = RunOptions(tmp_path / "named", identity={})
    runner = Runner(data, own.module, [L2P(4, 2, 2, pool="tower"), LGCL()], lightning.make(**quiet), options)
    runner.fit()
    steps = [record for record in tiny.metrics(tmp_path / "named") if record["kind"] == "step"]
    assert all({"lgcl/task", "lgcl/class"} <= set(record) for record in steps)


def test_language_needs_a_pool(make: Maker) -> None:
    with pytest.raises(ConfigError, match=r"LGCL needs 'prompts\.keys', .*; put DualPrompt or L2P into the list"):
        make.entered([CODAPrompt(pool_size=6, length=4, blocks=(0,)), LGCL(settings_prompts.texts())])


# -- what is refused --------------------------------------------------------------------------------------------------

BAD: list[tuple[Callable[[], Any], str]] = [
    (lambda: L2P(top_k=11), "top_k 11 of 10 prompts"),
    (lambda: L2P(length=0), "of length 0"),
    (lambda: L2P(pull=-1.0), "pull is -1.0"),
    (lambda: L2P(query="clss"), "query 'clss' is unknown; did you mean cls"),  # type: ignore[arg-type]
    (lambda: L2P(vote="all"), "vote 'all' is unknown"),  # type: ignore[arg-type]
    (lambda: L2P(pool="mean"), "pool 'mean' is unknown"),  # type: ignore[arg-type]
    (lambda: L2P(copy_slots=True), "copy_slots belongs to task_slots"),
    (lambda: DualPrompt(expert_length=0), "they must be 1 or more"),
    (lambda: DualPrompt(expert_blocks=(1, 2)), "block 1 is in both lists"),
    (lambda: DualPrompt(expert_blocks=()), "expert_blocks is empty"),
    (lambda: DualPrompt(pull=float("nan")), "pull is nan"),
    (lambda: CODAPrompt(length=5), "the length must be even"),
    (lambda: CODAPrompt(blocks=(1, 1)), "name each of at least one block once"),
    (lambda: CODAPrompt(orthogonality=-1.0), "orthogonality is -1.0"),
    (lambda: SPrompts(length=0), "length 0"),
    (lambda: SPrompts(tune="adapter"), "tune 'adapter' is unknown"),  # type: ignore[arg-type]
    (lambda: LGCL(task_weight=-1.0), "task_weight is -1.0"),
    (lambda: LGCL(template="a photo"), "needs one {}"),
]


@pytest.mark.parametrize(("build", "message"), BAD)
def test_bad_arguments_are_refused(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        build()
    assert message in str(error.value) and "\n" not in str(error.value)


UNFIT: list[tuple[Callable[[], list[Strategy]], str]] = [
    (lambda: [DualPrompt(expert_blocks=(2, 9))], "expert_blocks names block 9; the image tower has blocks 0 to 5"),
    (lambda: [CODAPrompt(pool_size=6, blocks=(-1,))], "blocks names block -1"),
    (lambda: [CODAPrompt(pool_size=1)], "pool_size is 1; the stream has 2 tasks"),
    (lambda: [CODAPrompt()], "features of 64 numbers have no more orthogonal directions"),
    (lambda: [L2P(4, 2, 3, task_slots=True)], "task_slots need 6 prompts"),
    (lambda: [L2P(), SPrompts()], "L2P and SPrompts both claim 'prompts'"),
    (lambda: [CODAPrompt(), DualPrompt()], "CODAPrompt and DualPrompt both claim 'prefix'"),
    (lambda: [DualPrompt(), LGCL()], "ImageClassifierModule has no text tower; give `texts`"),
    (lambda: [DualPrompt(), LGCL("nothing.safetensors")], "texts 'nothing.safetensors' cannot be read"),
]


@pytest.mark.parametrize(("build", "message"), UNFIT)
def test_what_does_not_fit_is_refused(make: Maker, build: Callable[[], list[Strategy]], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        make.entered(build())
    assert message in str(error.value) and "\n" not in str(error.value)


def test_texts_lack_a_class(make: Maker, tmp_path: Path) -> None:
    save_file({"red": torch.zeros(64)}, tmp_path / "texts.safetensors")
    with pytest.raises(ConfigError, match="no vector for the class 'green'"):
        make.entered([DualPrompt(), LGCL(str(tmp_path / "texts.safetensors"))])


def test_a_network_without_a_transformer_is_refused(make: Maker) -> None:
    with pytest.raises(ConfigError, match=r"L2P needs 'sites\.input', which ImageClassifierModule does not provide"):
        make([L2P()], "classes").check()
