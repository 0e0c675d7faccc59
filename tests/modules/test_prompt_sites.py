"""Where prompts go: which networks have such places, what they compute there, and that nothing stays behind."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import vits
from torch import Tensor

from mmcl.errors import ConfigError, RunError
from mmcl.functional.prompts import gather_prefixes, key_pull_loss, select_prompts
from mmcl.modules import CausalLMModule, CLIPModule, ImageClassifierModule
from mmcl.modules.base import Module
from mmcl.outputs import ATTACHED

PARITY = Path(__file__).parents[1] / "parity"
TIMM = {"timm_model_name": "test_vit", "timm_model_pretrained": False, "timm_proj": "linear", "image_size": 160}
CLIPS: dict[str, dict[str, Any]] = {
    "clip": {"layers": 2},
    "clip-average": {"layers": 2, "pool_type": "avg", "final_ln_after_pool": True},
    "clip-attentional": {"layers": 2, "attentional_pool": True, "attn_pooler_queries": 3, "attn_pooler_heads": 2},
    "clip-custom": {"layers": 2, "qk_norm": True, "scale_heads": True, "scale_attn_inner": True},
    "clip-timm": {**TIMM, "timm_pool": "token"},
    "clip-timm-map": {**TIMM, "timm_model_name": "test_vit3", "timm_pool": "map"},
}
VITS: dict[str, dict[str, Any]] = {
    "vit": {},
    "vit-average": {"global_pool": "avg", "class_token": False},
    "vit-registers": {"reg_tokens": 2, "no_embed_class": True},
    "vit-normed": {"qk_norm": True, "pre_norm": True, "dynamic_img_size": True},
}
EVERY = [*VITS, *CLIPS]


def arrays(name: str) -> dict[str, Tensor]:
    with np.load(PARITY / name) as data:
        return {key: torch.from_numpy(np.array(data[key])) for key in data.files}


def made(name: str, folder: Path) -> Module:
    if name in VITS:
        return vits.classifier(folder, ["a", "b"], **VITS[name])
    module = vits.clip(folder, CLIPS[name])
    for weight, value in module.network.named_parameters():
        if weight.endswith("gamma"):  # the scale of layers, nearly 0 at first
            torch.nn.init.ones_(value)
    return module


def pictures(module: Module, rows: int = 3) -> Tensor:
    size = 160 if hasattr(getattr(module.network, "visual", None), "trunk") else 16
    dtype = next(module.network.parameters()).dtype
    return torch.randn(rows, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=dtype)


def features(module: Module, image: Tensor, *attach: Any) -> Tensor:
    found: Tensor = module({"image": image, ATTACHED: attach}).features["image"]
    return found


def prefix(site: Any, image: Tensor, seed: int = 2, length: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(2, len(image), length, site.dim, generator=generator, dtype=torch.float64)
    return made[0].to(image.dtype), made[1].to(image.dtype)


@pytest.mark.parametrize("name", EVERY)
def test_a_transformer_says_where_prompts_go(name: str, tmp_path: Path) -> None:
    module = made(name, tmp_path / "model")
    assert {"sites.attention", "sites.input", "sites.linear"} <= module.provides
    sites, (place,) = module.sites("attention"), module.sites("input")
    assert [site.block for site in sites] == list(range(len(sites))) and len(sites) >= 2
    image = pictures(module)
    answer = features(module, image)
    for site in (*sites, place):
        assert site.tower == "image" and site.features == answer.shape[1]
        assert module.network.get_submodule(site.name) is not None
        assert all(p is not None for p in site.trunk.parameters())
    assert sites[0].dim % sites[0].heads == 0
    assert place.embed(image).shape[2] == place.dim == len(place.position)


@pytest.mark.parametrize("name", EVERY)
def test_without_rows_nothing_changes(name: str, tmp_path: Path) -> None:
    """The layers of peer libraries are computed here as they are there: prefixes and prompts of length 0."""
    module = made(name, tmp_path / "model")
    image = pictures(module)
    before = features(module, image)
    none = [partial(site.prefix, *prefix(site, image, length=0)) for site in module.sites("attention")]
    (place,) = module.sites("input")
    none.append(partial(place.insert, torch.zeros(len(image), 0, place.dim, dtype=image.dtype)))
    with torch.no_grad():
        torch.testing.assert_close(features(module, image, *none), before)
    assert torch.equal(features(module, image), before)


@pytest.mark.parametrize("name", EVERY)
def test_prompts_are_for_one_forward_and_each_row_alone(name: str, tmp_path: Path) -> None:
    module = made(name, tmp_path / "model")
    image = pictures(module)
    before, names = features(module, image), set(dict(module.network.named_parameters()))
    (place,) = module.sites("input")
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randn(len(image), 2, place.dim, generator=generator, dtype=torch.float64).to(image.dtype)
    keys = prefix(module.sites("attention")[1], image)
    ways: list[Any] = [
        lambda rows: partial(module.sites("attention")[1].prefix, *(k[rows] for k in keys)),
        lambda rows: partial(place.insert, tokens[rows]),
        lambda rows: partial(place.insert, tokens[rows], pool=True),
    ]
    seen = [before]
    for way in ways:
        together = features(module, image, way(slice(None)))
        assert all(not torch.allclose(together, other) for other in seen)
        seen.append(together)
        for row in range(len(image)):
            rows = slice(row, row + 1)
            torch.testing.assert_close(features(module, image[rows], way(rows))[0], together[row])
        assert torch.equal(features(module, image), before)
    assert set(dict(module.network.named_parameters())) == names


@pytest.mark.parametrize("name", EVERY)
def test_a_low_rank_change_is_one_of_the_weights(name: str, tmp_path: Path) -> None:
    module = made(name, tmp_path / "model")
    image = pictures(module)
    before = features(module, image)
    site = module.sites("attention")[1]
    generator = torch.Generator().manual_seed(3)
    down, up = (torch.randn(2, size, generator=generator).to(image.dtype) for size in (site.width, 3 * site.dim))
    own = [part.expand(len(image), -1, -1) for part in (down, up)]
    found = features(module, image, partial(site.lowrank, *own))
    layer = module.network.get_submodule(site.name)
    weights = [p for n, p in layer.named_parameters() if n in ("qkv.weight", "in_proj_weight")]
    with torch.no_grad():
        weights[0].add_(up.T @ down)
    torch.testing.assert_close(found, features(module, image), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(found, before)


def test_nothing_is_left_after_an_error(tmp_path: Path) -> None:
    module = vits.classifier(tmp_path / "model", ["a", "b"])
    image = pictures(module)
    before = features(module, image)
    (site, *_), (place,) = module.sites("attention"), module.sites("input")
    wrong: list[tuple[Any, str]] = [
        (partial(site.prefix, torch.zeros(1, 2, 8), torch.zeros(1, 2, 8)), "a prefix of shape"),
        (partial(place.insert, torch.zeros(1, 2, 8)), "Sizes of tensors must match"),
    ]
    for attach, message in wrong:
        with pytest.raises((ValueError, RuntimeError), match=message):
            features(module, image, attach)
        assert torch.equal(features(module, image), before)
    twice = partial(site.prefix, *prefix(site, image))
    with pytest.raises(RunError, match=r"site 'backbone\.blocks\.0\.attn' has a prefix already"):
        features(module, image, twice, twice)
    assert torch.equal(features(module, image), before)
    site.trunk.set_grad_checkpointing(True)
    with pytest.raises(RunError, match="gradient checkpointing"):
        features(module, image, twice)


def test_a_teacher_gets_no_prompts(tmp_path: Path) -> None:
    module = vits.classifier(tmp_path / "model", ["a", "b"])
    teacher = module.build_network().double()
    teacher.load_state_dict(module.network.state_dict())
    image = pictures(module)
    before = features(module, image)
    (site, *_) = module.sites("attention")
    batch = {"image": image, ATTACHED: (partial(site.prefix, *prefix(site, image)),)}
    assert not torch.allclose(module(batch).features["image"], before)
    with site.prefix(*prefix(site, image)):
        assert torch.equal(module.compute(teacher, batch).features["image"], before)


def test_networks_without_such_places_say_so() -> None:
    module = ImageClassifierModule("test_resnet", random_init=True, image_size=32)
    assert "sites.linear" in module.provides
    for kind in ("attention", "input"):
        assert f"sites.{kind}" not in module.provides
        with pytest.raises(ConfigError, match=f"ImageClassifierModule has no sites of kind '{kind}'") as error:
            module.sites(kind)
        assert "\n" not in str(error.value)
    assert not {"sites.attention", "sites.input"} & (CLIPModule.provides | CausalLMModule.provides)


# -- a whole network against the port of DualPrompt -------------------------------------------------------------------


def dual_prompt(module: Module, a: dict[str, Tensor], indices: Tensor) -> list[Any]:
    """What goes where, from the arrays' own parameters."""
    sites, attach = module.sites("attention"), []
    general, experts = a["param.g_prompt"], gather_prefixes(a["param.e_prompt.prompt"], indices)
    for layer, block in enumerate(a["g_layers"].tolist()):
        both = general[layer].flatten(2)[:, None].expand(-1, len(indices), -1, -1)
        attach.append(partial(sites[block].prefix, *both))
    for layer, block in enumerate(a["e_layers"].tolist()):
        attach.append(partial(sites[block].prefix, *experts[layer].flatten(3).transpose(0, 1)))
    return attach


def backbone(a: dict[str, Tensor]) -> dict[str, Tensor]:
    names = (n for n in a if n.startswith("param.") and "prompt" not in n)
    return {n.removeprefix("param."): a[n] for n in names}


def test_dual_prompt_on_a_whole_transformer(tmp_path: Path) -> None:
    a = arrays("dualprompt/tiny_vit_eval_b1_official.npz")
    module = vits.classifier(tmp_path / "model", [*"abcdef"], weights=backbone(a))
    keys = a["param.e_prompt.prompt_key"]
    indices = select_prompts(a["query"], keys, 1)
    assert torch.equal(indices, a["prompt_idx"])
    outputs = module({"image": a["images"], ATTACHED: dual_prompt(module, a, indices)})
    for found, wanted in (
        (outputs.features["image"], a["pre_logits"]),
        (outputs.logits, a["logits"]),
        (-key_pull_loss(a["query"], keys[indices]), a["reduce_sim"]),
    ):
        assert found is not None
        torch.testing.assert_close(found.detach(), wanted, rtol=1e-9, atol=1e-12)


def test_prompts_of_l2p_in_a_whole_transformer(tmp_path: Path) -> None:
    """[class token; prompts; patches] with positions, and the mean of the prompts' outputs, computed block by block."""
    module = vits.classifier(tmp_path / "model", [*"ab"])
    trunk: Any = module.network.backbone
    (place,) = module.sites("input")
    image = pictures(module)
    tokens = torch.randn(len(image), 4, 8, dtype=torch.float64)
    x = place.embed(image)
    torch.testing.assert_close(place.position, trunk.pos_embed[0, 0])
    x = torch.cat([trunk.cls_token.expand(len(x), -1, -1), tokens, x], dim=1)
    positions = torch.cat([trunk.pos_embed[:, :1].expand(-1, 5, -1), trunk.pos_embed[:, 1:]], dim=1)
    y = trunk.norm(trunk.blocks(x + positions))
    for pool, wanted in ((True, y[:, 1:5].mean(1)), (False, y[:, 0])):
        found = features(module, image, partial(place.insert, tokens + place.position, pool=pool))
        torch.testing.assert_close(found, wanted)


def test_gradients_reach_prompts_through_a_frozen_network(tmp_path: Path) -> None:
    module = vits.clip(tmp_path / "model")
    module.network.requires_grad_(False)
    image = pictures(module)
    (place,), sites = module.sites("input"), module.sites("attention")
    tokens = torch.randn(len(image), 2, place.dim, requires_grad=True)
    keys, values = (part.requires_grad_() for part in prefix(sites[0], image))
    features(module, image, partial(place.insert, tokens), partial(sites[0].prefix, keys, values)).sum().backward()
    for leaf in (tokens, keys, values):
        assert leaf.grad is not None and leaf.grad.abs().sum() > 0


def test_half_precision_keeps_prompts_in_float32(tmp_path: Path) -> None:
    module = vits.clip(tmp_path / "model")
    image = pictures(module)
    site = module.sites("attention")[0]
    contexts: list[AbstractContextManager[Any]] = [torch.autocast("cpu", dtype=torch.bfloat16)]
    with contexts[0]:
        found = features(module, image, partial(site.prefix, *prefix(site, image)))
    assert bool(found.isfinite().all())
    torch.testing.assert_close(
        found.float(), features(module, image, partial(site.prefix, *prefix(site, image))), rtol=0.1, atol=0.1
    )
