import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss, SigLipLoss

from mmcl.errors import ConfigError
from mmcl.modules import CLIPModule
from mmcl.modules.contrastive_losses import ClassTextCrossEntropy, Contrastive
from mmcl.outputs import Outputs

Make = Callable[..., CLIPModule]
SCRIPT = Path(__file__).with_name("ranks.py")


def make_outputs(bias: float | None = None, rows: int = 8) -> Outputs:
    generator = torch.Generator().manual_seed(1)
    features = {name: torch.randn(rows, 16, generator=generator) for name in ("image", "text")}
    extra = {} if bias is None else {"logit_bias": torch.tensor(bias)}
    return Outputs(features, logit_scale=torch.tensor(20.0), extra=extra)


def unit(outputs: Outputs) -> tuple[torch.Tensor, torch.Tensor]:
    return F.normalize(outputs.features["image"], dim=-1), F.normalize(outputs.features["text"], dim=-1)


def test_pairs_are_trained_by_open_clip_s_losses() -> None:
    outputs = make_outputs()
    expected = ClipLoss()(*unit(outputs), outputs.logit_scale)
    [loss] = Contrastive().terms(outputs, {}).values()
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-6)
    outputs = make_outputs(bias=-5.0)
    expected = SigLipLoss()(*unit(outputs), outputs.logit_scale, outputs.extra["logit_bias"])
    [loss] = Contrastive().terms(outputs, {}).values()  # chosen by the model's bias
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-6)
    [loss] = Contrastive("clip").terms(outputs, {}).values()
    torch.testing.assert_close(loss, ClipLoss()(*unit(outputs), outputs.logit_scale), rtol=0, atol=1e-5)


@pytest.mark.parametrize("bias", [None, -5.0])
def test_padding_does_not_count(bias: float | None) -> None:
    outputs, short = make_outputs(bias), make_outputs(bias)
    short.features = {name: x[:5] for name, x in outputs.features.items()}
    valid = torch.arange(8) < 5
    padded = Contrastive().terms(outputs, {"valid": valid})["contrastive_loss"]
    torch.testing.assert_close(padded, Contrastive().terms(short, {})["contrastive_loss"])
    nothing = Contrastive().terms(outputs, {"valid": torch.zeros(8, dtype=torch.bool)})["contrastive_loss"]
    assert nothing.item() == 0


def test_several_captions_count_by_the_first(make: Make, tools: SimpleNamespace) -> None:
    module = make()
    batch = tools.batch(module, 3)
    rows = torch.tensor([0, 0, 1, 2, 2, 2])
    several = batch | {"text": batch["text"][rows], "text_rows": rows}
    prepared = Contrastive().prepare(several)
    assert torch.equal(prepared["text"], batch["text"]) and "text_rows" not in prepared
    assert "text_rows" in several


def test_class_texts_are_the_task_s_first_template(make: Make, tools: SimpleNamespace) -> None:
    objective = ClassTextCrossEntropy(label_smoothing=0.2)
    module = make(objective=objective)
    batch = tools.batch(module)
    objective.start(module, tools.task())
    prepared = objective.prepare(batch)
    assert "text" not in prepared and "text" in batch
    assert torch.equal(prepared["class_text"], module.tokenize([f"a photo of a {n}" for n in tools.names]))
    image, text, scale = module.network(prepared["image"], prepared["class_text"])
    expected = F.cross_entropy(scale * image @ text.T, batch["labels"], label_smoothing=0.2)
    torch.testing.assert_close(module.loss(module(prepared), prepared)["cross_entropy_loss"], expected)
    valid = torch.tensor([True, True, False, True, False, False])
    padded = module.loss(module(prepared), prepared | {"valid": valid})["cross_entropy_loss"]
    kept = (scale * image @ text.T)[valid]
    torch.testing.assert_close(padded, F.cross_entropy(kept, batch["labels"][valid], label_smoothing=0.2))


def test_what_an_objective_lacks_is_named(make: Make, tools: SimpleNamespace) -> None:
    module = make()
    batch = tools.batch(module)
    without_text = {k: v for k, v in batch.items() if k != "text"}
    with pytest.raises(ConfigError, match="Contrastive needs text in every sample; the data give image, labels"):
        Contrastive().prepare(without_text)
    objective = ClassTextCrossEntropy()
    with pytest.raises(ConfigError, match="no classes yet"):
        objective.prepare(batch)
    with pytest.raises(ConfigError, match="task 'things' has no class names"):
        objective.start(module, tools.task(class_names=None))
    objective.start(module, tools.task(class_names=["cat", "dog"]))
    with pytest.raises(ConfigError, match=r"labels 0\.\.4 do not fit the 2 class names"):
        objective.prepare(batch)
    with pytest.raises(ConfigError, match="ClassTextCrossEntropy needs labels"):
        objective.prepare({"image": batch["image"]})
    bad: Any = "softmax"
    with pytest.raises(ConfigError, match="kind 'softmax'"):
        Contrastive(bad)
    with pytest.raises(ConfigError, match="label_smoothing is 1"):
        ClassTextCrossEntropy(label_smoothing=1.0)


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    processes = [subprocess.Popen([sys.executable, str(SCRIPT), str(tmp_path), str(r), "2"]) for r in (0, 1)]
    assert [p.wait(timeout=120) for p in processes] == [0, 0]
    spec = importlib.util.spec_from_file_location("ranks", SCRIPT)
    assert spec is not None and spec.loader is not None
    ranks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(ranks)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        for case in ranks.CASES:
            for padded in (False, True):
                expected = ranks.gradients(case, padded, 0, 1)
                torch.testing.assert_close(found[f"{case} {padded}"], expected, rtol=1e-5, atol=1e-6)
