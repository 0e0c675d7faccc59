"""Image classifiers: label space, growing and masked heads, losses, probe, export."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cases
import numpy as np
import pytest
import timm
import tiny_classes
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from mmcl import Budget, EvalSet, Source, Stream, Task
from mmcl.errors import ConfigError, RunError
from mmcl.metrics.probes import build
from mmcl.modules import ImageClassifierModule
from mmcl.modules.image_objective import MaskedCrossEntropy
from mmcl.modules.labels import LabelSpace
from mmcl.outputs import Batch, Outputs

MODEL = "test_resnet"
SOURCE = Source(["a.tar"])


def task(name: str, names: Sequence[str] | None) -> Task:
    return Task(name, [SOURCE], Budget(steps=1), class_names=names)


def evalset(names: Sequence[str] | None, **settings: Any) -> EvalSet:
    return EvalSet("set", SOURCE, "classification", names, **settings)


def stream(*names: Sequence[str], evals: Sequence[EvalSet] = ()) -> Stream:
    return Stream("s", [task(f"t{i}", each) for i, each in enumerate(names)], evals)


ANIMALS = stream(["cat", "dog"], ["bird", "cat"], ["fish"])


def make(given: Stream | None = ANIMALS, **settings: Any) -> ImageClassifierModule:
    torch.manual_seed(0)
    settings = {"model": MODEL, "image_size": 32, "augment": None} | settings
    module = ImageClassifierModule(**settings)
    if given is not None:
        module.check(given)
    return module


def picture(seed: int = 0, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 36, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def batch_of(module: ImageClassifierModule, labels: Sequence[int], domain: int = 0) -> Batch:
    rows = [
        module.transform({"image": picture(i), "labels": label, "domain": domain}, False)
        for i, label in enumerate(labels)
    ]
    return module.collate([{"__key__": str(i), **row} for i, row in enumerate(rows)])


# -- the label space ------------------------------------------------------------------------------------------------


def test_columns_are_the_union_of_the_tasks_classes_in_their_order() -> None:
    labels = LabelSpace.of(ANIMALS)
    assert labels.names == ("cat", "dog", "bird", "fish")
    assert labels.table == ((0, 1), (2, 0), (3,))
    assert [labels.seen(i) for i in range(3)] == [2, 3, 4]
    assert labels.column(1, 1) == 0 and labels.column(1, -100) == -100
    assert labels.columns(["fish", "cat"], "here") == [3, 0]
    again = LabelSpace.of(stream(["a", "b"], ["a", "b"]))
    assert again.names == ("a", "b") and again.table[0] == again.table[1]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([["cat", "cat"]], "task 't0': class 'cat' is labels 0 and 1"),
        ([["cat"], ["Cat"]], "class 'Cat' of task 't1' and 'cat' of task 't0' differ by case or spaces alone"),
        ([["cat"], None], "task 't1' has no class names"),
    ],
)
def test_names_that_clash_are_refused(names: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(stream(*names))


def test_labels_outside_the_task_are_named_by_their_sample() -> None:
    module = make()
    with pytest.raises(RunError, match=r"sample 'k7' has label 2, but its task has 2 classes \(labels 0\.\.1\)"):
        module.transform({"image": picture(), "labels": 2, "domain": 1, "__key__": "k7"}, True)
    row = module.transform({"image": picture(), "labels": 2, "domain": -1}, False)
    assert "targets" not in row and row["labels"] == 2  # an evaluation set's labels count in its own names


def test_a_stream_that_cannot_be_served_is_refused() -> None:
    module = make()
    with pytest.raises(ConfigError, match=r"evaluation set 'set': no task has the class 'birds'; did you mean bird\?"):
        module.check(stream(["bird"], evals=[evalset(["birds"])]))
    with pytest.raises(ConfigError, match="classification needs `class_names`"):
        module.check(stream(["bird"], evals=[evalset(None)]))
    assert module.needed() == module.needed("classification") == {"image", "labels"}
    with pytest.raises(ConfigError, match="task 'other' is not of the stream"):
        module.grow(task("other", ["bird"]))


# -- the network ----------------------------------------------------------------------------------------------------


def test_features_and_logits_are_timm_s() -> None:
    module = make(given=None, class_names=["a", "b", "c"])
    torch.manual_seed(0)
    reference = timm.create_model(MODEL, num_classes=3)
    own: Any = module.network
    state = own.backbone.state_dict() | {f"fc.{k}": v for k, v in own.head.state_dict().items()}
    reference.load_state_dict(state)
    module.eval(), reference.eval()
    images = torch.randn(4, 3, 32, 32)
    outputs = module({"image": images})
    torch.testing.assert_close(outputs.logits, reference(images))
    features = reference.forward_head(reference.forward_features(images), pre_logits=True)
    torch.testing.assert_close(outputs.features["image"], features)
    assert outputs.targets is None


def test_the_plain_transform_is_timm_s() -> None:
    module = make(image_size=None)
    config = resolve_model_data_config(timm.create_model(MODEL))
    expected: Any = create_transform(**config, is_training=False)
    assert torch.equal(module.transform({"image": picture()}, False)["image"], expected(picture()))
    assert module.transform.draws_to_augment  # type: ignore[attr-defined]
    before = torch.get_rng_state()
    grey = module.transform({"image": picture(mode="L")}, False)["image"]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(grey, expected(picture(mode="L").convert("RGB")))


def test_a_growing_head_appends_rows_as_a_function_of_seed_and_task() -> None:
    def grown(seed: int) -> ImageClassifierModule:
        module = make(head="growing")
        assert module.network.head.weight.shape[0] == 0
        for i, each in enumerate(ANIMALS.tasks[:2]):
            torch.manual_seed(seed + i)
            before = torch.get_rng_state()
            old = module.network.head.weight.detach().clone()
            module.grow(each)
            assert torch.equal(module.network.head.weight[: len(old)], old)
            assert torch.equal(torch.get_rng_state(), before)
        return module

    one, same, other = grown(1), grown(1), grown(5)
    assert one.network.head.weight.shape[0] == one.network.head.out_features == 3
    assert torch.equal(one.network.head.weight, same.network.head.weight)
    assert not torch.equal(one.network.head.weight, other.network.head.weight)
    teacher = one.build_network()
    assert teacher.state_dict()["head.weight"].shape == (3, one.network.head.in_features)


def test_parts_train_and_norms_keep_their_statistics() -> None:
    module = make(trainable=["head"], head_lr_scale=5.0)
    module.train()
    assert {n for n, p in module.network.named_parameters() if p.requires_grad} == {"head.weight", "head.bias"}
    assert not module.network.backbone.training
    assert {g["lr_scale"] for g in module.parameter_groups()} == {5.0}
    module = make()
    module.train()
    before = module.network.backbone.bn1.running_mean.clone()
    module(batch_of(module, [0, 1, 1]))
    assert torch.equal(module.network.backbone.bn1.running_mean, before) and module.network.backbone.training
    free = make(freeze_norm=False)
    free.train()
    free(batch_of(free, [0, 1, 1]))
    assert not torch.equal(free.network.backbone.bn1.running_mean, before)


def test_a_cosine_head_scales_cosines_and_grows() -> None:
    module = make(head="growing", head_kind="cosine", head_scale=5.0).eval()
    for each in ANIMALS.tasks[:2]:
        module.grow(each)
    images = torch.randn(4, 3, 32, 32)
    outputs = module({"image": images})
    head, features = module.classifier, outputs.features["image"]
    expected = torch.stack([F.cosine_similarity(features, row[None]) for row in head.weight], dim=1)
    torch.testing.assert_close(outputs.logits, 5 * expected)
    head.weight.data *= torch.tensor([[1.0], [20.0], [0.1]])
    torch.testing.assert_close(module({"image": images}).logits, outputs.logits)  # no row counts for its length
    assert {n for n, _ in head.named_parameters()} == {"weight", "scale"} and head.out_features == 3
    teacher = module.build_network()
    assert {k: v.shape for k, v in teacher.state_dict().items()} == {
        k: v.shape for k, v in module.network.state_dict().items()
    }
    fixed = make(head_kind="cosine", learn_scale=False)
    assert "head.scale" not in dict(fixed.network.named_parameters()) and fixed.classifier.scale == 16.0
    assert "head.cosine" in fixed.provides and "head.linear" not in fixed.provides
    assert "head.linear" in make().provides


def test_a_vision_transformer_s_feature_is_its_class_token() -> None:
    module = make(model="test_vit").eval()
    images = torch.randn(2, 3, 32, 32)
    tokens = module.network.backbone.forward_features(images)
    assert torch.equal(module({"image": images}).features["image"], tokens[:, 0])


# -- the loss -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_torch_s_over_the_candidates(smoothing: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(6, 5, generator=generator), torch.tensor([2, 3, 2, -100, 3, 2])
    valid = torch.tensor([True, True, True, True, False, True])
    candidates = torch.tensor([False, False, True, True, False]).expand(6, 5)
    outputs = Outputs(logits=logits.requires_grad_(), targets=targets, valid=valid)
    outputs.extra["candidates"] = candidates
    [loss] = MaskedCrossEntropy(smoothing).terms(outputs, {}).values()
    rows = torch.tensor([0, 1, 2, 5])
    expected = F.cross_entropy(logits[rows][:, 2:4], targets[rows] - 2, label_smoothing=smoothing)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-6)
    [gradient] = torch.autograd.grad(loss, logits)
    assert bool(gradient.isfinite().all()) and bool((gradient[:, [0, 1, 4]] == 0).all())
    del outputs.extra["candidates"]
    [loss] = MaskedCrossEntropy(smoothing).terms(outputs, {}).values()
    expected = F.cross_entropy(logits[rows], targets[rows], label_smoothing=smoothing)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("choice", "expected"), [("task", [[0, 2], [3]]), ("seen", [[0, 1, 2], [0, 1, 2, 3]]), ("all", [[0, 1, 2, 3]] * 2)]
)
@pytest.mark.parametrize("head", ["masked", "growing"])
def test_the_loss_chooses_among_what_it_should(head: Any, choice: Any, expected: list[list[int]]) -> None:
    module = make(head=head, train_classes=choice)
    for each, own in zip(ANIMALS.tasks, [None, *expected], strict=True):
        module.grow(each)
        if own is None:
            continue
        width = 4 if head == "masked" else module.seen
        outputs = module(batch_of(module, [0, -100], domain=module.position))
        [row, other] = outputs.extra["candidates"]
        assert torch.equal(row, other) and row.nonzero()[:, 0].tolist() == [c for c in own if c < width]
        assert outputs.valid.tolist() == [True, False]
        assert outputs.known.tolist() == [i < (2 if module.position == 1 else 3) for i in range(width)]
        assert outputs.logits.isfinite().all() and outputs.logits.shape == (2, width)  # raw
        terms = module.loss(outputs, {})
        assert bool(terms["cross_entropy_loss"].isfinite())


def test_rows_of_other_tasks_choose_among_their_own_classes() -> None:
    module = make().eval()
    module.grow(ANIMALS.tasks[0])
    module.grow(ANIMALS.tasks[1])
    outputs = module(batch_of(module, [1], domain=0))
    assert outputs.targets.tolist() == [1]
    assert outputs.extra["candidates"].tolist() == [[True, True, False, False]]


# -- the probe ------------------------------------------------------------------------------------------------------


def measured(module: ImageClassifierModule, logits: Any, labels: Any, names: Sequence[str], **options: Any) -> Any:
    probe: Any = build(evalset(names, options=options), module)
    probe.start(lambda batch: Outputs())
    valid = torch.tensor([True] * len(labels) + [False])
    batch = {"labels": torch.tensor([*labels, 0]), "valid": valid}
    outputs = Outputs(logits=torch.tensor([*logits, [0.0] * len(logits[0])]))
    probe.update(batch, outputs)
    return probe, probe.compute(lambda x: x, lambda x: x), probe.predict(batch, outputs)


def test_top1_is_among_the_classes_seen_and_task_top1_among_the_set_s_own() -> None:
    module = make()
    module.grow(ANIMALS.tasks[0])
    logits = [[1.0, 3.0, 0.0, 9.0], [2.0, 1.0, 9.0, 9.0], [3.0, 1.0, 2.0, 0.0]]
    probe, result, rows = measured(module, logits, [1, 0, 0], ["bird", "cat"])  # bird is not seen yet
    assert result.metrics["top1"] == result.value == 0.0 and result.count == 3 and result.correct == 0
    assert result.metrics["task_top1"] == pytest.approx(2 / 3)
    assert "not yet seen counts as wrong" in probe.protocol
    assert [row["class"] for row in rows[:3]] == ["dog", "cat", "cat"] and rows[0]["label"] == 0
    module.grow(ANIMALS.tasks[1])
    _, result, _ = measured(module, logits, [1, 0, 0], ["bird", "cat"])
    assert result.correct == 1 and result.metrics["mean_per_class_recall"] == pytest.approx(0.25)
    _, result, _ = measured(module, logits, [1, 0, 0], ["bird", "cat"], metric="task_top1")
    assert result.value == pytest.approx(2 / 3)
    with pytest.raises(ConfigError, match="option metric is 'top5'"):
        measured(module, logits[:1], [1], ["bird", "cat"], metric="top5")
    with pytest.raises(RunError, match=r"labels 2\.\.2 do not fit 2 class names"):
        measured(module, logits[:1], [2], ["bird", "cat"])


def test_before_a_head_has_rows_everything_is_wrong() -> None:
    module = make(head="growing")
    probe: Any = build(evalset(["cat", "dog"]), module)
    probe.start(lambda batch: Outputs())
    batch = {"labels": torch.tensor([0, 1])}
    outputs = Outputs(logits=torch.zeros(2, 0))
    probe.update(batch, outputs)
    assert probe.compute(lambda x: x, lambda x: x).value == 0
    assert probe.predict(batch, outputs)[0]["class"] is None


# -- sources of weights, and export ---------------------------------------------------------------------------------

SCRIPT = """
import sys, timm, torch
found = {}
for name in sys.argv[2:]:
    model = timm.create_model(f"local-dir:{sys.argv[1]}/{name}", pretrained=True).eval()
    size = timm.data.resolve_model_data_config(model)["input_size"][-1]
    logits = model(torch.load(f"{sys.argv[1]}/images.pt"))
    found[name] = {"logits": logits, "size": size, "names": list(model.pretrained_cfg["label_names"])}
torch.save(found, f"{sys.argv[1]}/found.pt")
"""


@pytest.mark.slow
@torch.no_grad()
def test_timm_alone_reads_the_export(tmp_path: Path) -> None:
    images = torch.randn(3, 3, 32, 32)
    torch.save(images, tmp_path / "images.pt")
    models = {name: make(model=name, head="growing") for name in (MODEL, "test_vit")}
    for name, module in models.items():
        (tmp_path / name).mkdir()
        with pytest.raises(ConfigError, match="no classes before the first task"):
            module.export(tmp_path / name, "timm")
        for each in ANIMALS.tasks[:2]:
            module.grow(each)
        module.network.head.bias.normal_()
        module.export(tmp_path / name, "timm")
    subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path), *models], check=True, timeout=300)
    for name, found in torch.load(tmp_path / "found.pt").items():
        expected = models[name].eval()({"image": images})
        torch.testing.assert_close(found["logits"], expected.logits)
        assert found["size"] == 32 and found["names"] == ["cat", "dog", "bird"]
        again = make(model=f"local-dir:{tmp_path / name}", image_size=None).eval()
        torch.testing.assert_close(again({"image": images}).features, expected.features)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architecture": MODEL, "num_classes": 5, "pretrained_cfg": {}}))
    where = f"local-dir:{tmp_path}"
    with pytest.raises(ConfigError, match=r"no weights in .* give `checkpoint`"):
        make(model=where)
    module = make(model=where, random_init=True)
    torch.nn.init.normal_(module.network.backbone.bn1.weight)
    module.export(tmp_path, "safetensors")
    filled = make(checkpoint=str(tmp_path / "model.safetensors"))
    assert torch.equal(filled.network.backbone.bn1.weight, module.network.backbone.bn1.weight)
    with pytest.raises(ConfigError, match="`pretrained` is for timm's own names"):
        make(model=where, pretrained=True)
    with pytest.raises(ConfigError, match="is of another architecture than 'test_vit'"):
        make(model="test_vit", checkpoint=str(tmp_path / "model.safetensors"))
    with pytest.raises(ConfigError, match=r"'test_resnett' is no architecture of timm; did you mean"):
        make(model="test_resnett")
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        make(model=f"local-dir:{tmp_path.parent}")
    with pytest.raises(ConfigError, match=r"head 'growin' is unknown; did you mean growing\?"):
        make(head="growin")
    with pytest.raises(ConfigError, match=r"head_kind 'cosin' is unknown; did you mean cosine\?"):
        make(head_kind="cosin")
    with pytest.raises(ConfigError, match="head_scale is 0"):
        make(head_kind="cosine", head_scale=0)
    with pytest.raises(ConfigError, match=r"timm's models have no cosine head; --format safetensors"):
        make(head_kind="cosine").export(tmp_path, "timm")
    with pytest.raises(ConfigError, match="head_lr_scale is 0"):
        make(head_lr_scale=0)
    with pytest.raises(ConfigError, match="crop is 2"):
        make(crop=2.0)


def test_a_new_head_is_a_function_of_the_runs_seed(tmp_path: Path) -> None:
    """Whatever the process did before."""
    heads = []
    for seed, history in ((0, 1), (0, 2), (1, 1)):
        (tmp_path / "shards").mkdir(exist_ok=True)
        runner = cases.runner("classes", tiny_classes.stream(tmp_path / "shards"), tmp_path / "run")
        runner.options = replace(runner.options, seed=seed)
        torch.manual_seed(history)
        runner.check()
        heads.append(runner.module.network.head.weight.detach().clone())
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
