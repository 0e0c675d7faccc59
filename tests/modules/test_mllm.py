"""Models that read pictures and answer: loss, generation, answers, bad input, export."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_mllm
import torch
import transformers
from torch import Tensor

from mmcl import weights
from mmcl.errors import ConfigError, SampleError
from mmcl.metrics.probes import build
from mmcl.modules.mllm import MLLMModule, part
from mmcl.modules.mllm_conversation import read
from mmcl.outputs import SKIP, Batch
from mmcl.stream import EvalSet, Source

KINDS = list(tiny_mllm.CASES)


def rows(module: MLLMModule, count: int = 3, style: str = "stripes") -> list[dict[str, Any]]:
    found = []
    for sample in tiny_mllm.questions(style, count):
        known = {"__key__": sample["__key__"]}
        found.append({**module.transform({"image": sample["png"], "conversation": sample["json"]}, False), **known})
    return found


def document(module: MLLMModule, text: str = "plain text") -> dict[str, Any]:
    return {**module.transform({"text": text}, False), "__key__": "document"}


def seeded(kind: str, **changes: Any) -> MLLMModule:
    torch.manual_seed(0)
    return tiny_mllm.module(kind, **changes)


def reference(module: MLLMModule, row: dict[str, Any]) -> Tensor:
    """The loss of transformers itself on one row."""
    labels = row["input_ids"].clone()
    labels[: row["prompt_length"]] = -100
    given: Batch = {"input_ids": row["input_ids"][None], "labels": labels[None]}
    for key in ("pixel_values", "pixel_attention_mask", "image_grid_thw"):
        if key in row:
            tiles = module.pictures.kind in ("smolvlm", "idefics3")
            given[key] = row[key][None] if tiles else row[key]
    if "image_grid_thw" in row:
        given["mm_token_type_ids"] = (given["input_ids"] == module.image_token).int()
    network: Any = module.network
    loss: Tensor = network(**given).loss
    return loss


@pytest.mark.parametrize("kind", KINDS)
def test_loss_is_that_of_transformers(kind: str) -> None:
    module = seeded(kind).eval()
    found = rows(module)
    for row in found:
        batch = module.collate([row])
        (loss,) = module.loss(module(batch), batch).values()
        torch.testing.assert_close(loss, reference(module, row), atol=1e-6, rtol=0)
    batch = module.collate(found)
    (together,) = module.loss(module(batch), batch).values()
    counts = torch.tensor([float((row["targets"] != -100).sum()) for row in found])
    each = torch.stack([reference(module, row) for row in found])
    torch.testing.assert_close(together, (each * counts).sum() / counts.sum(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_generation_does_not_depend_on_the_batch(kind: str) -> None:
    module = seeded(kind, lr=0.05).eval()
    with torch.no_grad():  # random weights of the usual size answer the same to everything
        for parameter in module.network.parameters():
            parameter.mul_(4)
    questions = [*tiny_mllm.questions("stripes", 2), *tiny_mllm.questions("dots", 2, seed=1)]
    found = [
        {**module.transform({"image": q["png"], "conversation": q["json"]}, False), "__key__": q["__key__"]}
        for q in questions
    ]
    together = module.generate(module.collate(found), max_new_tokens=6).texts
    alone = [module.generate(module.collate([row]), max_new_tokens=6).texts for row in found]
    assert together == [texts[0] for texts in alone if texts]
    assert len(set(together or [])) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_replaced_after_the_same_prompt(kind: str) -> None:
    module = seeded(kind).eval()
    found = rows(module)
    batch = module.collate(found)
    other = module.answer(batch, ["It is grey.", found[1]["answers"][0], "no"])
    kept = module(batch).logits, module(other).logits
    same = found[1]["prompt_length"] - 1
    length = len(found[1]["input_ids"]) - 1
    torch.testing.assert_close(
        kept[0][1, same - batch["answer_start"] : length - batch["answer_start"]],
        kept[1][1, same - other["answer_start"] : length - other["answer_start"]],
    )
    written = other["input_ids"][0, found[0]["prompt_length"] : other["input_ids_lengths"][0]]
    assert module.tokenizer.decode(written).strip() == "It is grey.<end>"


def test_only_the_answer_and_its_end_are_learned() -> None:
    module = seeded("llava")
    row = rows(module, 1)[0]
    learned = row["targets"][row["targets"] != -100]
    assert module.tokenizer.decode(learned) == " It is red.<end>"
    asked = module.tokenizer.decode(row["input_ids"][: row["prompt_length"]])
    assert asked == f"User: {tiny_mllm.IMAGE * 4}\nDots or stripes, and which colour?\nAssistant:"
    batch = module.collate([row])
    assert batch["answer_start"] == row["prompt_length"] - 1


def test_earlier_turns_are_part_of_the_prompt() -> None:
    module = seeded("qwen2_vl")
    turns = [
        *({"from": "human", "value": "<image>\nfirst"}, {"from": "gpt", "value": "one"}),
        *({"from": "human", "value": "second"}, {"from": "gpt", "value": "two"}),
    ]
    row = module.transform({"image": tiny_picture(), "conversation": turns}, False)
    prompt = module.tokenizer.decode(row["input_ids"][: row["prompt_length"]]).replace(tiny_mllm.IMAGE, "")
    assert prompt == "<start>user\nfirst<end>\n<start>assistant\none<end>\n<start>user\nsecond<end>\n<start>assistant\n"
    assert row["answers"] == ["two"]


def test_documents_share_a_batch_with_questions() -> None:
    module = seeded("llava").eval()
    mixed = module.collate([*rows(module, 2), document(module)])
    assert mixed["pixel_counts"].tolist() == [1, 1, 0]
    alone = module.collate([document(module)])
    assert "pixel_values" not in alone
    logits, wanted = module(mixed), module(alone)
    assert wanted.logits is not None and logits.logits is not None and wanted.valid is not None
    torch.testing.assert_close(logits.logits[2, : wanted.logits.shape[1]], wanted.logits[0])
    assert int(wanted.valid.sum()) == len(document(module)["input_ids"]) - 1


def test_rows_that_are_padding_do_not_count() -> None:
    module = seeded("llava").eval()
    found = rows(module)
    batch = {**module.collate(found), "valid": torch.tensor([True, False, True])}
    (loss,) = module.loss(module(batch), batch).values()
    kept = module.collate([found[0], found[2]])
    torch.testing.assert_close(loss, *module.loss(module(kept), kept).values())


@pytest.mark.parametrize(
    ("kind", "chosen", "layers", "trained"),
    [
        ("llava", ["projector"], None, {"projector"}),
        ("qwen2_vl", ["vision"], None, {"vision"}),
        ("smolvlm", ["projector", "language"], 1, {"projector", "language"}),
    ],
)
def test_what_trains(kind: str, chosen: Any, layers: int | None, trained: set[str]) -> None:
    module = seeded(kind, trainable=chosen, language_layers=layers)
    names = [name for name, parameter in module.network.named_parameters() if parameter.requires_grad]
    assert {part(name) for name in names} == trained
    if layers is not None:
        assert not any("layers.0." in name or "embed_tokens" in name for name in names if part(name) == "language")
        assert any("layers.1." in name for name in names)
    vision = [inner for name, inner in module.network.named_modules() if name and part(name) == "vision"]
    assert vision and all(inner.training == ("vision" in trained) for inner in vision)
    scales = {part(name): seeded(kind, projector_lr=3.0).lr_scale(name) for name in names}
    assert scales.get("projector", 3.0) == 3.0 and scales.get("language", 1.0) == 1.0


def test_layers_that_no_picture_goes_through_do_not_train() -> None:
    frozen = [name for name, p in seeded("llava").network.named_parameters() if not p.requires_grad]
    assert frozen and all("vision_tower" in name for name in frozen)
    assert {name.split("layers.")[-1][0] for name in frozen if "layers." in name} == {"1"}  # the last of two
    for kind in ("qwen2_vl", "idefics3"):
        assert all(p.requires_grad for p in seeded(kind).network.parameters())
    module = seeded("llava")
    batch = module.collate(rows(module))
    module.loss(module(batch), batch)["cross_entropy_loss"].backward()
    assert all(p.grad is not None for p in module.network.parameters() if p.requires_grad)


def tiny_picture() -> Any:
    return next(tiny.pictures("dots", 1))["png"]


@pytest.mark.parametrize(
    ("conversation", "message"),
    [
        ([{"role": "user", "content": "Why?"}], "without an answer"),
        ([{"role": "user", "content": "Why?"}, {"role": "assistant", "content": " "}], "without an answer"),
        ([{"role": "assistant", "content": "Because."}], "without a question"),
        ([{"role": "robot", "content": "Why?"}], "role 'robot'"),
        ([{"role": "user", "content": 3}], "no text but int"),
        (["Why?"], "no dictionary"),
        ({"question": "Why?"}, "no conversation"),
        ({"conversations": []}, "no conversation"),
    ],
)
def test_conversations_that_cannot_be_used(conversation: Any, message: str) -> None:
    with pytest.raises(SampleError, match=message):
        read(conversation)


def test_samples_that_cannot_be_used() -> None:
    module = seeded("llava", max_length=60)
    turns = [{"role": "user", "content": "<image> What?"}, {"role": "assistant", "content": "This."}]
    with pytest.raises(SampleError, match="has none"):
        module.transform({"conversation": turns}, False)
    with pytest.raises(SampleError, match="`fields` name the member"):
        module.transform({"image": tiny_picture(), "text": "a caption"}, False)
    long = [{"role": "user", "content": "What? " * 20}, turns[1]]
    row = module.transform({"image": tiny_picture(), "conversation": long}, False)
    assert "leaves no answer" in row[SKIP]  # it can be measured, not trained on
    cut = [turns[0], {"role": "assistant", "content": "This. " * 20}]
    row = module.transform({"image": tiny_picture(), "conversation": cut}, False)
    assert "would be cut" in row[SKIP]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_token_index": 5}, "that is of another model"),
        ({"image_token_index": 5000}, "beyond its"),
        ({"text_vocabulary": 100}, "another model"),
    ],
)
def test_the_tokenizer_of_another_model(change: dict[str, int], message: str, tmp_path: Path) -> None:
    folder = tiny_mllm.write_model(tmp_path, "llava")
    config = json.loads((folder / "config.json").read_text())
    size = change.pop("text_vocabulary", None)
    config |= change
    config["text_config"]["vocab_size"] = size or config["text_config"]["vocab_size"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=message):
        MLLMModule(str(folder), random_init=True)


def test_the_processor_of_another_model(tmp_path: Path) -> None:
    folder = tiny_mllm.write_model(tmp_path, "qwen2_vl")
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "patch_size": 14}))
    with pytest.raises(ConfigError, match="patch_size is 14, the model's is 8"):
        MLLMModule(str(folder), random_init=True)


def test_models_and_settings_that_cannot_be_used(tmp_path: Path) -> None:
    import tiny_text

    with pytest.raises(ConfigError, match="reads no pictures"):
        MLLMModule(str(tiny_text.model("causal")), random_init=True)
    with pytest.raises(ConfigError, match="language_layers is 3"):
        seeded("llava", language_layers=3)
    with pytest.raises(ConfigError, match="trainable part 'eyes'"):
        seeded("llava", trainable=["eyes"])
    bits = EvalSet("e", Source(["a.tar"]), "perplexity", options={"metric": "bits_per_byte"})
    with pytest.raises(ConfigError, match=r"evaluation set 'e': .*MLLMModule does not count the bytes"):
        build(bits, seeded("llava"))
    with pytest.raises(ConfigError, match="chat template cannot be used"):
        seeded("llava", chat_template="{% for")


PEER = """
import sys, torch, transformers
folder, given = sys.argv[1], torch.load(sys.argv[2])
assert "mmcl" not in sys.modules
network = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
transformers.AutoImageProcessor.from_pretrained(folder)
with torch.no_grad():
    logits = network(**given["inputs"]).logits
torch.testing.assert_close(logits, given["logits"], atol=1e-5, rtol=0)
assert tokenizer.encode("It is red.", add_special_tokens=False) == given["ids"]
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llava", "smolvlm"])
def test_exported_folder_is_read_by_transformers(kind: str, tmp_path: Path) -> None:
    module = seeded(kind).eval()
    with torch.no_grad():
        for parameter in module.network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    folder = tmp_path / "exported"
    folder.mkdir()
    module.export(folder, "transformers")
    batch = module.collate(rows(module))
    inputs: dict[str, Tensor] = {key: batch[key] for key in ("input_ids",)}
    tiles = kind == "smolvlm"
    inputs["pixel_values"] = batch["pixel_values"][:, None] if tiles else batch["pixel_values"]
    longest = torch.arange(batch["input_ids"].shape[1])
    inputs["attention_mask"] = (longest < batch["input_ids_lengths"][:, None]).long()
    with torch.no_grad():
        logits = module.network(**inputs).logits
    given = {"inputs": inputs, "logits": logits, "ids": module.prompter.ids("It is red.")}
    torch.save(given, tmp_path / "given.pt")
    command = [sys.executable, "-c", PEER, str(folder), str(tmp_path / "given.pt")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    again = MLLMModule(str(folder))
    assert weights.read(again.network).keys() == weights.read(module.network).keys()


def other_kind(folder: Path, make: Any, text: str, **settings: Any) -> Path:
    """A tiny model of a kind that has no case of its own."""
    known = tiny_mllm.tokenizer()
    known.chat_template = tiny_mllm.CHAT
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    words = {**size, "vocab_size": len(known), "head_dim": 8, "num_key_value_heads": 2, "model_type": text}
    sees = {**size, "image_size": 16, "patch_size": 4, "projection_dim": 16, "model_type": "siglip_vision_model"}
    image = known.convert_tokens_to_ids(tiny_mllm.IMAGE)
    make(text_config=words, vision_config=sees, image_token_id=image, **settings).save_pretrained(folder)
    known.save_pretrained(folder)
    return folder


def test_the_tokens_of_a_picture_see_each_other_in_gemma(tmp_path: Path) -> None:
    folder = other_kind(tmp_path, transformers.Gemma3Config, "gemma3_text", mm_tokens_per_image=4)
    torch.manual_seed(0)
    module = MLLMModule(str(folder), random_init=True).eval()
    batch = module.collate(rows(module, 1))
    spans = (batch["input_ids"] == module.image_token).long()
    assert spans.sum() == 4
    given = {"input_ids": batch["input_ids"], "pixel_values": batch["pixel_values"], "token_type_ids": spans}
    with torch.no_grad():
        expected = module.network(**given).logits[:, batch["answer_start"] :]
        torch.testing.assert_close(module(batch).logits, expected, rtol=0, atol=1e-6)


def test_a_model_that_must_be_told_what_each_token_is(tmp_path: Path) -> None:
    folder = other_kind(tmp_path, transformers.PaliGemmaConfig, "gemma", projection_dim=16)
    with pytest.raises(ConfigError, match="is a paligemma, which needs token_type_ids"):
        MLLMModule(str(folder), random_init=True)
