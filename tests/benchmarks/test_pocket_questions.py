"""The stream of questions and the model composed for it, on small parts made on the spot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_mllm
import tiny_text
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from mmcl import assets
from mmcl.benchmarks import pocket_questions as benchmark
from mmcl.benchmarks.assets import composed_mllm
from mmcl.benchmarks.pocket_questions import pocket_questions
from mmcl.datamodules import write_shard
from mmcl.errors import ConfigError, RunError
from mmcl.modules.mllm import MLLMModule

GRAPES, DOG = "1f347", "1f415"
SMILE = "1f600"


@pytest.fixture
def questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rows = list(tiny_mllm.questions("dots", 12))
    for kind, own in benchmark.KINDS.items():
        for split in ("train", own.test):
            codes = [GRAPES, DOG, SMILE] * 4
            named = [
                {**{k: v for k, v in row.items() if k != "cls"}, "__key__": f"pictures/style{i}-{code}"}
                for i, (row, code) in enumerate(zip(rows, codes, strict=True))
            ]
            write_shard(tmp_path / f"{kind}-{split}.tar", named)
    for split in ("train", "test"):
        write_shard(tmp_path / f"english-{split}.tar", tiny_text.documents("plain", 4))
    folders = {"picture-questions": tmp_path, "texts": tmp_path}
    monkeypatch.setattr(assets, "folder", lambda name: folders[name])
    return tmp_path


def test_columns_are_fixed_questions_of_the_test_splits(questions: Path) -> None:
    stream = pocket_questions(steps=3, test=5)
    assert [task.name for task in stream.tasks] == ["emoji-groups", "tux-kinds", "emoji-names"]
    assert stream.columns() == ["emoji-groups", "tux-kinds", "emoji-names", "english"]
    assert [e.group for e in stream.evals] == ["task", "task", "task", "held_out"]
    assert stream.trained_columns() == ["emoji-groups", "tux-kinds", "emoji-names"]
    sizes = [len(column.source.keys or ()) for column in stream.evals]
    assert sizes == [5, 5, 5, 0]
    assert [e.source.keys for e in pocket_questions(test=5).evals] == [e.source.keys for e in stream.evals]
    named = {str(key).partition("-")[2] for key in stream.tasks[2].train[0].keys or ()}
    assert named == {GRAPES, DOG}
    assert "5 at most" in stream.protocol


def test_refusals(questions: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean tux-kinds"):
        pocket_questions(tasks=["tux-kind"])
    with pytest.raises(ConfigError, match="test is 0"):
        pocket_questions(test=0)


@pytest.fixture
def parts(tmp_path: Path) -> tuple[Path, Path]:
    """A tower of timm and a language model of transformers, as the assets hold them."""
    import timm

    vision, language = tmp_path / "vision", tmp_path / "language"
    vision.mkdir()
    torch.manual_seed(0)
    save_file(timm.create_model("mobilenetv2_035").state_dict(), vision / "model.safetensors")
    known = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    config = {"architecture": "mobilenetv2_035", "num_features": 1280, "pretrained_cfg": known}
    (vision / "config.json").write_text(json.dumps(config))
    tokenizer = tiny_text.tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.save_pretrained(language)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    made = LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, **sizes)
    AutoModelForCausalLM.from_config(made).save_pretrained(language)
    return vision, language


def test_the_composition_holds_both_parts(parts: tuple[Path, Path], tmp_path: Path) -> None:
    vision, language = parts
    out = tmp_path / "composed"
    out.mkdir()
    composed_mllm.compose(vision, language, out, size=64)
    module = MLLMModule(str(out)).eval()
    own = module.network.state_dict()
    tower, words = load_file(vision / "model.safetensors"), load_file(language / "model.safetensors")
    assert torch.equal(own["model.vision_tower.timm_model.conv_head.weight"], tower["conv_head.weight"])
    embeddings = own["model.language_model.embed_tokens.weight"]
    assert torch.equal(embeddings[:-1], words["model.embed_tokens.weight"])
    torch.testing.assert_close(embeddings[-1], words["model.embed_tokens.weight"].mean(dim=0))
    sample = next(tiny_mllm.questions("dots", 1))
    row = module.transform({"image": sample["png"], "conversation": sample["json"]}, False)
    prompt = module.tokenizer.decode(row["input_ids"][: row["prompt_length"]])
    asked = f"<|im_start|>user\n{'<image>' * 4}Which colour?<|im_end|>\n<|im_start|>assistant\n"
    assert prompt == asked
    batch = module.collate([{**row, "__key__": "one"}])
    assert torch.isfinite(module.loss(module(batch), batch)["cross_entropy_loss"])
    assert "/" not in (out / "config.json").read_text().replace("</", "")


def test_parts_that_do_not_go_together(parts: tuple[Path, Path], tmp_path: Path) -> None:
    vision, language = parts
    tensors = load_file(vision / "model.safetensors")
    del tensors["conv_head.weight"]
    save_file(tensors, vision / "model.safetensors")
    with pytest.raises(RunError, match=r"conv_head\.weight is missing"):
        composed_mllm.compose(vision, language, tmp_path / "none")
