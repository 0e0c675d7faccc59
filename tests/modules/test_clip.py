import math
import pickle
import random
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import Tensor
from torch.utils.data import DataLoader

from mmcl.errors import ConfigError, RunError
from mmcl.metrics.probes import build
from mmcl.modules import CLIPModule
from mmcl.modules.clip_transform import ImageAugment
from mmcl.modules.contrastive_losses import ClassTextCrossEntropy, Contrastive
from mmcl.stream import EvalSet, Source, Stream

Make = Callable[..., CLIPModule]


def test_a_partial_batch_gives_partial_outputs(make: Make, tools: SimpleNamespace) -> None:
    module = make()
    batch = tools.batch(module)
    full = module(batch)
    assert {k: tuple(v.shape) for k, v in full.features.items()} == {"image": (6, 24), "text": (6, 24)}
    assert full.logits is None
    assert full.targets is batch["labels"]
    torch.testing.assert_close(full.logit_scale, torch.tensor(1 / 0.07))
    assert set(module({"text": batch["text"]}).features) == {"text"}
    assert not torch.allclose(full.features["image"].norm(dim=-1), torch.ones(6))  # not normalised
    torch.testing.assert_close(full.features["image"], module.network.encode_image(batch["image"]))


def test_logits_are_scaled_cosines_of_images_and_class_texts(make: Make, tools: SimpleNamespace) -> None:
    module = make()
    batch = tools.batch(module) | {"class_text": module.tokenize(["a photo of a cat", "a photo of a dog", "tree"])}
    outputs = module(batch)
    image, text, scale = module.network(batch["image"], batch["class_text"])
    torch.testing.assert_close(outputs.logits, scale * image @ text.T)


def test_siglip_like_models_give_their_bias(make: Make, tools: SimpleNamespace, tmp_path: Any) -> None:
    config = tools.config(init_logit_bias=-3.0, init_logit_scale=1.0)
    module = make(model=f"local-dir:{tools.write(tmp_path / 'sig', config)}")
    batch = tools.batch(module) | {"class_text": module.tokenize(["cat", "dog"])}
    outputs = module(batch)
    assert outputs.extra["logit_bias"].item() == -3.0
    plain = F.normalize(outputs.features["image"], dim=-1) @ F.normalize(outputs.features["class_text"], dim=-1).T
    torch.testing.assert_close(outputs.logits, math.e * plain - 3.0)


def test_the_captioner_s_decoder_does_not_train(make: Make, tools: SimpleNamespace, tmp_path: Any) -> None:
    config = tools.config(multimodal_cfg={"width": 32, "heads": 2, "layers": 1, "context_length": 10})
    config |= {"custom_text": True, "text_cfg": config["text_cfg"] | {"embed_cls": True, "output_tokens": True}}
    config["vision_cfg"] |= {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
    config["text_cfg"] |= {"pad_id": 0}
    module = make(model=f"local-dir:{tools.write(tmp_path / 'coca', config)}")
    batch = module.objective.prepare(tools.batch(module))
    sum(module.loss(module(batch), batch).values()).backward()  # type: ignore[union-attr]
    idle = [n for n, p in module.network.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []
    assert not any(p.requires_grad for p in module.network.text_decoder.parameters())


def test_a_teacher_is_the_same_architecture_and_moves_no_random_numbers(make: Make, tools: SimpleNamespace) -> None:
    module = make()
    state = torch.get_rng_state()
    teacher = module.build_network()
    assert torch.equal(torch.get_rng_state(), state)
    teacher.load_state_dict(module.network.state_dict())
    batch = tools.batch(module)
    torch.testing.assert_close(module.compute(teacher, batch).features["image"], module(batch).features["image"])


@pytest.mark.parametrize("parts", [("image",), ("text",), ("logit_scale",), ("image", "text"), ()])
def test_only_the_chosen_parts_train(make: Make, tools: SimpleNamespace, parts: tuple[str, ...]) -> None:
    module = make(trainable=parts)
    module.grow(tools.task())
    trains = {n for n, p in module.network.named_parameters() if p.requires_grad}
    assert ("visual.proj" in trains) == ("image" in parts)
    assert ("token_embedding.weight" in trains) == ("text" in parts)
    assert ("logit_scale" in trains) == ("logit_scale" in parts)
    grouped = {name for group in module.parameter_groups() for name in group["param_names"]}
    assert grouped == trains
    module.train()
    assert module.network.visual.training == ("image" in parts)


def test_the_logit_scale_stays_below_one_hundred(make: Make) -> None:
    module = make()
    with torch.no_grad():
        module.network.logit_scale.fill_(7.0)
    module.after_step()
    assert module.network.logit_scale.exp().item() == pytest.approx(100)
    frozen = make(trainable=("image",))
    with torch.no_grad():
        frozen.network.logit_scale.fill_(7.0)
    frozen.after_step()
    assert frozen.network.logit_scale.item() == 7.0


def test_a_larger_logit_scale_of_the_pretrained_model_stays(make: Make, tools: SimpleNamespace, tmp_path: Any) -> None:
    config = tools.config(init_logit_bias=-3.0, init_logit_scale=math.log(117))
    module = make(model=f"local-dir:{tools.write(tmp_path / 'sig', config)}")
    module.after_step()
    assert module.network.logit_scale.exp().item() == pytest.approx(117)
    with torch.no_grad():
        module.network.logit_scale.fill_(7.0)
    module.after_step()
    assert module.network.logit_scale.exp().item() == pytest.approx(117)


def test_layer_decay_falls_from_each_output_down(make: Make) -> None:
    module = make(layer_decay=0.5)
    expected = {
        "visual.conv1.weight": 0.125,
        "visual.class_embedding": 0.125,
        "visual.transformer.resblocks.0.attn.in_proj_weight": 0.25,
        "visual.transformer.resblocks.1.mlp.c_fc.weight": 0.5,
        "visual.proj": 1.0,
        "token_embedding.weight": 0.125,
        "transformer.resblocks.0.ln_1.weight": 0.25,
        "transformer.resblocks.1.ln_1.weight": 0.5,
        "text_projection": 1.0,
        "logit_scale": 1.0,
    }
    assert {name: module.lr_scale(name) for name in expected} == expected
    assert {g["lr_scale"] for g in module.parameter_groups()} == {0.125, 0.25, 0.5, 1.0}


def test_layer_decay_follows_resnets_and_timm(make: Make, tools: SimpleNamespace, tmp_path: Any) -> None:
    resnet = tools.config(vision_cfg={"image_size": 32, "layers": [1, 1, 2, 1], "width": 8})
    module = make(model=f"local-dir:{tools.write(tmp_path / 'rn', resnet)}", layer_decay=0.5)
    assert module.lr_scale("visual.conv1.weight") == 0.5**6
    assert module.lr_scale("visual.layer3.1.conv2.weight") == 0.25
    assert module.lr_scale("visual.attnpool.c_proj.weight") == 1.0
    timm = tools.config(vision_cfg={"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "", "image_size": 224})
    module = make(model=f"local-dir:{tools.write(tmp_path / 'timm', timm)}", layer_decay=0.5)
    scales = [module.lr_scale(f"visual.trunk.blocks.{i}.attn.qkv.weight") for i in (0, 5, 11)]
    assert scales == sorted(scales) and len(set(scales)) == 3
    assert module.lr_scale("visual.trunk.patch_embed.proj.weight") < scales[0]
    assert module.lr_scale("visual.head.proj.weight") == 1.0


# -- samples --------------------------------------------------------------------------------------------------------


def test_the_plain_transform_is_open_clip_s(make: Make, tools: SimpleNamespace) -> None:
    module = make()
    settings = PreprocessCfg(size=32, mean=(0.5, 0.4, 0.3), std=(0.25, 0.2, 0.3), interpolation="bilinear")
    expected = image_transform_v2(settings, is_train=False)(tools.picture())
    sample = {"image": tools.picture(), "text": "a red cat", "labels": 3, "__key__": "k", "__index__": 7}
    row = module.transform(sample, augment=False)
    assert torch.equal(row["image"], expected)
    assert row["text"].dtype == torch.int64 and row["text"].shape == (10,)
    assert (row["labels"], row["__key__"], row["__index__"]) == (3, "k", 7)
    assert not isinstance(sample["image"], Tensor)  # the sample itself is left alone


def test_nothing_is_drawn_where_nothing_is_augmented(make: Make, tools: SimpleNamespace) -> None:
    module = make(augment=ImageAugment(scale=(0.3, 0.9)))
    sample = {"image": tools.picture(), "text": ["a cat", "a dog"], "__key__": "k"}
    assert module.transform.draws_to_augment and module.collate.draws_to_augment  # type: ignore[attr-defined]

    def state() -> tuple[Any, ...]:
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    for augment in (False, True):
        before = state()
        module.collate([module.transform(sample, augment)])
        assert (state() == before) is not augment


def test_augmentation_follows_the_random_state_and_can_be_switched_off(make: Make, tools: SimpleNamespace) -> None:
    strong = ImageAugment(scale=(0.3, 0.9), hflip=True, color_jitter=0.3)
    module = make(augment=strong)
    sample = {"image": tools.picture(), "text": ["a cat", "a dog", "a tree"]}

    def row(seed: int) -> dict[str, Any]:
        torch.manual_seed(seed)
        return module.transform(sample, augment=True)

    assert torch.equal(row(1)["image"], row(1)["image"])
    assert not torch.equal(row(1)["image"], row(2)["image"])
    assert row(1)["image"].shape == (3, 32, 32)
    assert len({tuple(row(i)["text"].tolist()) for i in range(20)}) == 3  # one caption of several
    assert module.transform(sample, augment=False)["text"].shape == (3, 10)
    plain = make(augment=None)
    assert torch.equal(plain.transform(sample, True)["image"], plain.transform(sample, False)["image"])


def test_the_transform_pickles_without_the_network(make: Make, tools: SimpleNamespace) -> None:
    module = make()
    content = pickle.dumps(module.samples)
    assert len(content) < 60_000
    sample = {"image": tools.picture().convert("RGBA"), "text": "a red cat"}
    torch.testing.assert_close(pickle.loads(content)(sample, False), module.transform(sample, False))


@pytest.mark.parametrize("text", ["", "  ", [], ["a cat", ""]])
def test_an_empty_caption_is_refused_by_its_key(make: Make, text: Any) -> None:
    with pytest.raises(RunError, match="sample 'k12' has an empty caption"):
        make().transform({"text": text, "__key__": "k12"}, False)


@pytest.mark.parametrize(
    "settings", [{"scale": (0.0, 1.0)}, {"scale": (0.9, 0.5)}, {"ratio": (0.0, 1.0)}, {"color_jitter": 2.0}]
)
def test_impossible_augmentation_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="augment"):
        ImageAugment(**settings)


# -- streams --------------------------------------------------------------------------------------------------------


def test_a_stream_is_checked_before_anything_is_written(make: Make, tools: SimpleNamespace) -> None:
    module = make()

    def stream(evalset: EvalSet, **task: Any) -> Stream:
        return Stream("s", [tools.task(**task)], [evalset])

    source = Source(["a.tar"])
    module.check(stream(EvalSet("e", source, class_names=["cat"])))
    build(EvalSet("e", source, class_names=["cat"], options={"k": 3}), module)
    with pytest.raises(ConfigError, match="'e': zero-shot classification needs `class_names`"):
        build(EvalSet("e", source), module)
    with pytest.raises(ConfigError, match=r"no probe 'zeroshot'; did you mean zero_shot\?"):
        build(EvalSet("e", source, probe="zeroshot"), module)
    with pytest.raises(ConfigError, match=r"'e': options .*chunks"):
        build(EvalSet("e", source, probe="retrieval", options={"chunks": 3}), module)
    assert module.needed() == module.needed("retrieval") == {"image", "text"}
    assert module.needed("zero_shot") == {"image", "labels"}
    classes = make(objective=ClassTextCrossEntropy())
    assert classes.needed() == {"image", "labels"} and classes.needed("retrieval") == {"image", "text"}
    with pytest.raises(ConfigError, match="task 'things' has no class names"):
        classes.check(stream(EvalSet("e", source, class_names=["cat"]), class_names=None))


def test_bad_arguments_are_refused(make: Make) -> None:
    with pytest.raises(ConfigError, match=r"part 'texts' is unknown; did you mean text or text\.head\?"):
        make(trainable=("texts",))
    with pytest.raises(ConfigError, match="layer_decay is"):
        make(layer_decay=1.5)
    with pytest.raises(ConfigError, match="no sites of kind 'lineer'"):
        make().sites("lineer")


def test_it_trains_and_predicts_in_a_plain_trainer(make: Make, tools: SimpleNamespace) -> None:
    module = make(lr=1e-2)
    batch = tools.batch(module)
    loader: Any = DataLoader([batch], batch_size=None)  # type: ignore[arg-type]
    before = module.loss(module(batch), batch)["contrastive_loss"].item()
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = pl.Trainer(max_steps=20, accelerator="cpu", **quiet)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, DataLoader([batch] * 20, batch_size=None))  # type: ignore[arg-type]
        [predicted] = pl.Trainer(accelerator="cpu", **quiet).predict(module, loader)  # type: ignore[arg-type,misc]
    assert module.loss(module(batch), batch)["contrastive_loss"].item() < before
    with torch.no_grad():
        expected = torch.nn.functional.normalize(module(batch).features["image"], dim=-1)
    torch.testing.assert_close(predicted["image_features"], expected)


@pytest.mark.parametrize("objective", [Contrastive(), ClassTextCrossEntropy()])
def test_mixed_precision_keeps_losses_and_gradients_finite(make: Make, tools: SimpleNamespace, objective: Any) -> None:
    module = make(objective=objective)
    objective.start(module, tools.task())
    batch = objective.prepare(tools.batch(module))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = module(batch)
        [loss] = module.loss(outputs, batch).values()
    assert outputs.features["image"].dtype == torch.bfloat16
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in module.network.parameters())
    torch.testing.assert_close(loss, module.loss(module(batch), batch).popitem()[1], rtol=0.05, atol=0.05)
