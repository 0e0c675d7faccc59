"""Heads that train above frozen towers, SigLIP through the command line, and export for open_clip."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
import transformers

from mmcl.errors import ConfigError
from mmcl.modules import CLIPModule
from mmcl.modules.clip_layers import head

Make = Callable[..., CLIPModule]
HEADS = ("image.head", "text.head")


def composed(tools: SimpleNamespace, folder: Path) -> str:
    """Towers of timm and transformers below projections, as in the asset mobilenet-minilm."""
    config = tools.config(vision_cfg={"timm_model_name": "test_resnet", "timm_proj": "mlp", "image_size": 32})
    text = {"hf_model_name": "inner", "hf_pooler_type": "mean_pooler", "hf_proj_type": "linear"}
    config["text_cfg"] = {"context_length": 10, "vocab_size": 20, "hf_tokenizer_name": "."} | text
    tools.write(folder, config)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    transformers.BertConfig(vocab_size=20, **small).save_pretrained(folder / "inner")
    return f"local-dir:{folder}"


@pytest.fixture(params=["vit", "resnet", "composed"])
def model(request: pytest.FixtureRequest, tools: SimpleNamespace, tmp_path: Path) -> str:
    if request.param == "composed":
        return composed(tools, tmp_path / "m")
    changes = (
        {"vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}} if request.param == "resnet" else {}
    )
    return f"local-dir:{tools.write(tmp_path / 'm', tools.config(**changes))}"


def test_only_the_projections_train(make: Make, tools: SimpleNamespace, model: str) -> None:
    module = make(model=model, trainable=HEADS)
    module.grow(tools.task())
    module.train()
    trains = {n for n, p in module.network.named_parameters() if p.requires_grad}
    assert {head(n) for n in trains} == set(HEADS)
    assert not module.network.visual.training
    state = {k: v.clone() for k, v in module.network.state_dict().items()}
    batch = tools.batch(module)
    sum(module.loss(module(batch), batch).values()).backward()  # type: ignore[union-attr]
    torch.optim.SGD(module.parameters(), 0.1).step()
    changed = {k for k, v in module.network.state_dict().items() if not torch.equal(v, state[k])}
    assert changed == trains


def test_a_head_trains_in_its_own_mode_above_a_frozen_trunk(make: Make, tools: SimpleNamespace, tmp_path: Path) -> None:
    module = make(model=composed(tools, tmp_path / "m"), trainable=["image.head", "text"])
    module.train()
    network: Any = module.network
    assert (network.visual.trunk.training, network.visual.head.training, network.text.training) == (False, True, True)
    assert all(p.requires_grad for p in network.text.parameters())


def test_a_model_without_a_projection_is_refused(make: Make, tools: SimpleNamespace, tmp_path: Path) -> None:
    vision = {"timm_model_name": "test_resnet", "timm_proj": "none", "timm_pool": "avg", "image_size": 32}
    folder = tools.write(tmp_path / "m", tools.config(vision_cfg=vision))
    with pytest.raises(ConfigError, match=r"trainable 'image\.head': '.*' has no such projection; name the tower"):
        make(model=f"local-dir:{folder}", trainable=["image.head"])


SCRIPT = """
import sys, open_clip, torch
model = open_clip.create_model(f"local-dir:{sys.argv[1]}").eval()
tokens = open_clip.get_tokenizer(f"local-dir:{sys.argv[1]}")(["a photo of a cat", "a red ball"])
image = model.encode_image(torch.load(sys.argv[2]))
mean = list(model.visual.preprocess_cfg["mean"])
torch.save({"image": image, "text": model.encode_text(tokens), "mean": mean}, sys.argv[3])
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["native", "composed"])
@torch.no_grad()
def test_open_clip_alone_reads_the_export(make: Make, tools: SimpleNamespace, tmp_path: Path, kind: str) -> None:
    module = make(model=composed(tools, tmp_path / "m")) if kind == "composed" else make()
    images, out = torch.randn(2, 3, 32, 32), tmp_path / "out"
    out.mkdir()
    module.export(out, "open_clip")
    torch.save(images, tmp_path / "images.pt")
    # open_clip looks for a text tower's folder from the working directory
    command = [sys.executable, "-c", SCRIPT, ".", str(tmp_path / "images.pt"), str(tmp_path / "found.pt")]
    subprocess.run(command, cwd=out, env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=True, timeout=300)
    found = torch.load(tmp_path / "found.pt")
    text = module.tokenize(["a photo of a cat", "a red ball"])
    expected = module.eval()({"image": images, "text": text}).features
    torch.testing.assert_close(found["image"], expected["image"])
    torch.testing.assert_close(found["text"], expected["text"])
    assert found["mean"] == [0.5, 0.4, 0.3]
    again = CLIPModule(f"local-dir:{out}").eval()({"image": images, "text": text}).features
    torch.testing.assert_close(again["text"], expected["text"])


def test_open_clip_s_own_architectures_bring_their_configuration(tmp_path: Path, monkeypatch: Any) -> None:
    from mmcl.modules import clip_export, clip_source

    named = clip_source.find("ViT-B-32")
    assert clip_export.model_config(named)["vision_cfg"]["patch_size"] == 32
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"model_cfg": {"embed_dim": 7}}))
    monkeypatch.setattr(clip_export, "download_pretrained_from_hf", lambda name, filename: str(file))
    assert clip_export.model_config(clip_source.CLIPSource("hf-hub:a/b")) == {"embed_dim": 7}


@pytest.mark.slow
def test_siglip_trains_through_the_command_line(tmp_path: Path) -> None:
    tiny.build(tmp_path, steps=(6, 4))
    file = tmp_path / "model" / "open_clip_config.json"
    config = json.loads(file.read_text())
    config["model_cfg"] |= {"init_logit_bias": -10.0, "init_logit_scale": 2.3}
    file.write_text(json.dumps(config))
    ran = tiny.mmcl("fit", "--config", tmp_path / "tiny.yaml", "--run_dir", tmp_path / "run")
    assert ran.returncode == 0, ran.stderr
    weights = tiny.network(tmp_path / "run")
    assert weights["logit_bias"].item() != -10.0
    losses = [record["contrastive_loss"] for record in tiny.metrics(tmp_path / "run") if record["kind"] == "step"]
    assert losses[-1] < losses[0] and all(loss > 0 for loss in losses)
    exported = tiny.mmcl("export", tmp_path / "run", "--to", tmp_path / "out", "--format", "open_clip")
    assert exported.returncode == 0, exported.stderr
    again = CLIPModule(f"local-dir:{tmp_path / 'out'}")
    assert torch.equal(again.network.state_dict()["logit_bias"], weights["logit_bias"])
