"""CoCa: the loss of open_clip, captions, evaluation and export."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_captioner
import torch
from open_clip.loss import CoCaLoss

from mmcl.errors import ConfigError
from mmcl.metrics.probes import build
from mmcl.modules.captioner import CaptionerModule, Captioning
from mmcl.modules.contrastive_losses import ClassTextCrossEntropy
from mmcl.outputs import Batch, Outputs
from mmcl.stream import Budget, EvalSet, Source, Stream, Task


def batch_of(module: CaptionerModule, count: int = 5, several: bool = False) -> Batch:
    found = []
    for sample in tiny.pictures("dots", count):
        text = [sample["txt"], "a photo of a square"] if several else sample["txt"]
        row = module.transform({"image": sample["png"], "text": text}, False)
        found.append({**row, "__key__": sample["__key__"]})
    return module.collate(found)


def seeded(**changes: Any) -> CaptionerModule:
    torch.manual_seed(0)
    return tiny_captioner.module(**changes)


def test_loss_is_that_of_open_clip() -> None:
    module = seeded().eval()
    batch = batch_of(module)
    network: Any = module.network
    found = network(batch["image"], batch["text"])
    wanted = CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0)(**found, output_dict=True)
    terms = module.loss(module(batch), batch)
    assert terms.keys() == {"contrastive_loss", "caption_loss"}
    for name, value in terms.items():
        torch.testing.assert_close(value, wanted[name], atol=1e-6, rtol=0)


def test_weights_scale_the_two_terms() -> None:
    module = seeded().eval()
    batch = batch_of(module)
    outputs = module(batch)
    plain, scaled = module.loss(outputs, batch), Captioning(0.5, 6.0).terms(outputs, batch)
    torch.testing.assert_close(scaled["contrastive_loss"], plain["contrastive_loss"] / 2)
    torch.testing.assert_close(scaled["caption_loss"], plain["caption_loss"] * 3)
    with pytest.raises(ConfigError, match="one must be positive"):
        Captioning(0, 0)


def test_padding_rows_do_not_count() -> None:
    module = seeded().eval()
    batch = batch_of(module, 4)
    part: Batch = {key: batch[key][:3] for key in ("image", "text")}
    batch["valid"] = torch.tensor([True, True, True, False])
    for found, wanted in zip(
        module.loss(module(batch), batch).values(), module.loss(module(part), part).values(), strict=True
    ):
        torch.testing.assert_close(found, wanted)


def test_several_captions_of_a_picture() -> None:
    module = seeded().eval()
    outputs = module(batch_of(module, 3, several=True))
    assert outputs.logits is not None and outputs.logits.shape[0] == 6
    one = module(batch_of(module, 3))
    assert one.logits is not None
    torch.testing.assert_close(outputs.logits[::2], one.logits)


def test_random_weights_are_made_by_the_seed() -> None:
    first, second = (seeded().network.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert float(first["text_decoder.text_projection"].abs().max()) < 2


def test_captions_are_the_likeliest_tokens() -> None:
    module = seeded().eval()
    batch = batch_of(module)
    texts = module.generate(batch, max_new_tokens=6).texts
    assert texts is not None and len(set(texts)) > 1
    again = module.answer(batch, texts)
    outputs = module(again)
    assert outputs.logits is not None and outputs.targets is not None
    steps = [len(text.split()) for text in texts]
    for row, count in enumerate(steps):
        assert count > 0
        best = outputs.logits[row, :count].argmax(dim=-1)
        assert best.tolist() == outputs.targets[row, :count].tolist()
    alone = [module.generate({"image": image[None]}, max_new_tokens=6).texts for image in batch["image"]]
    assert texts == [found[0] for found in alone if found]


def test_what_trains() -> None:
    names = {name for name, p in seeded(decoder=False).network.named_parameters() if p.requires_grad}
    assert names and not any(name.startswith("text_decoder.") for name in names)
    names = {name for name, p in seeded(trainable=["text"]).network.named_parameters() if p.requires_grad}
    assert {name.split(".")[0] for name in names} == {"text", "text_decoder"}


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no text decoder"):
        CaptionerModule(f"local-dir:{tiny.write_model(tmp_path)}", random_init=True)
    module = seeded()
    with pytest.raises(ConfigError, match="option 'beams' of generation is unknown"):
        module.generate(batch_of(module), beams=3)
    assert module.needed() == module.needed("exact_match") == {"image", "text"}
    assert module.needed("choice") == {"image"} and module.needed("zero_shot") == {"image", "labels"}
    from mmcl.errors import RunError

    with pytest.raises(RunError, match="lacks pictures or captions"):
        Captioning().terms(Outputs(), {})


COLOURS = list(tiny.COLOURS)


def test_classes_by_their_texts() -> None:
    objective = ClassTextCrossEntropy(0.0)
    module = seeded(objective=objective)
    objective.start(
        module, Task("t", [Source(["a.tar"])], Budget(steps=1), class_names=COLOURS, templates=["a {} square"])
    )
    batch = objective.prepare({**batch_of(module), "labels": torch.tensor([0, 1, 2, 3, 0])})
    outputs = module(batch)
    network: Any = module.network
    images = network.encode_image(batch["image"])
    texts = network.encode_text(module.tokenize([f"a {name} square" for name in COLOURS]))
    assert outputs.logits is not None
    torch.testing.assert_close(outputs.logits, network.logit_scale.exp() * images @ texts.T)
    (loss,) = module.loss(outputs, batch).values()
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(outputs.logits, batch["labels"]))
    loss.backward()
    trained = {name: p for name, p in module.network.named_parameters() if p.requires_grad}
    assert all(p.grad is not None for p in trained.values())
    assert not any(name.startswith("text_decoder.") for name in trained)  # no batch of this objective reaches it


def choice(**settings: Any) -> EvalSet:
    fields = settings.pop("fields", {"image": ["png"], "labels": ["cls"]})
    return EvalSet("e", Source(["a.tar"], fields=fields), "choice", **settings)


def test_choices_by_labels_need_no_captions() -> None:
    module = seeded().eval()
    task = Task("t", [Source(["a.tar"])], Budget(steps=1))
    names = [f"a {name} square" for name in COLOURS]
    module.check(Stream("s", [task], [choice(class_names=names)]))
    module.check(Stream("s", [task], [choice(options={"choices": names})]))
    for wrong, message in (
        (choice(), "needs `class_names`"),
        (choice(class_names=names, fields={"image": ["png"]}), "lack labels, or text"),
    ):
        with pytest.raises(ConfigError, match=message):
            module.check(Stream("s", [task], [wrong]))
    probe = build(choice(class_names=names), module)
    probe.start(module)  # type: ignore[arg-type]
    rows = [module.transform({"image": s["png"], "labels": s["cls"]}, False) for s in tiny.pictures("dots", 4)]
    with torch.no_grad():
        probe.update(module.collate([{**row, "__key__": str(i)} for i, row in enumerate(rows)]), Outputs())
    assert probe.compute(lambda t: t, lambda t: t).count == 4


@pytest.mark.parametrize(
    ("probe", "options", "message"),
    [
        ("perplexity", {"metric": "bits_per_byte"}, "CaptionerModule does not count the bytes"),
        ("exact_match", {"max_new_tokens": 2.5}, "max_new_tokens is 2.5"),
        ("exact_match", {"max_new_tokens": "many"}, "do not fit its probe"),
        ("retrieval", {"chunk": 0}, "option chunk is 0"),
        ("choice", {"choices": "red"}, "option choices is 'red'"),
    ],
)
def test_options_are_refused_before_anything_is_written(probe: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^evaluation set 'e': .*{message}"):
        build(EvalSet("e", Source(["a.tar"]), probe, options=options), seeded())


PEER = """
import sys, torch, open_clip
folder, given = sys.argv[1], torch.load(sys.argv[2])
assert "mmcl" not in sys.modules
network = open_clip.create_model("local-dir:" + folder).eval()
with torch.no_grad():
    found = network(given["image"], given["text"])
torch.testing.assert_close(found["logits"], given["logits"], atol=1e-5, rtol=0)
torch.testing.assert_close(found["image_features"], given["image_features"], atol=1e-5, rtol=0)
"""


@pytest.mark.slow
def test_exported_folder_is_read_by_open_clip(tmp_path: Path) -> None:
    module = seeded().eval()
    folder = tmp_path / "exported"
    folder.mkdir()
    module.export(folder, "open_clip")
    assert "multimodal_cfg" in json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    batch = batch_of(module)
    network: Any = module.network
    with torch.no_grad():
        found = network(batch["image"], batch["text"])
    torch.save({**{key: batch[key] for key in ("image", "text")}, **found}, tmp_path / "given.pt")
    command = [sys.executable, "-c", PEER, str(folder), str(tmp_path / "given.pt")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    again = CaptionerModule(f"local-dir:{folder}").network.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in module.network.state_dict().items())
