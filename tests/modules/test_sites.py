import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmcl import weights
from mmcl.errors import RunError
from mmcl.modules import CLIPModule
from mmcl.modules.sites import linear_sites

Make = Callable[..., CLIPModule]


class Delta(nn.Module):
    def __init__(self, shape: tuple[int, int], rank: int = 2) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, shape[1]))
        self.up = nn.Parameter(torch.zeros(shape[0], rank))

    def forward(self) -> Tensor:
        return self.up @ self.down


def features(module: CLIPModule, batch: Any) -> list[Tensor]:
    found = module(batch).features
    return [found["image"], found["text"]]


def test_every_linear_weight_is_a_site(make: Make) -> None:
    sites = make().sites("linear")
    assert len(sites) == 2 * 2 * 6
    first = [(s.role, s.shape) for s in sites[:6]]
    assert sites[0].name == "visual.transformer.resblocks.0.attn.in_proj_weight[0:32]"
    roles = [("query", (32, 32)), ("key", (32, 32)), ("value", (32, 32)), ("out", (32, 32))]
    assert first == [*roles, ("mlp_in", (128, 32)), ("mlp_out", (32, 128))]
    assert {(s.tower, s.block) for s in sites} == {("image", 0), ("image", 1), ("text", 0), ("text", 1)}
    assert len({s.name for s in sites}) == len(sites)


def test_timm_s_layers_are_sites(make: Make, tools: SimpleNamespace, tmp_path: Any) -> None:
    config = tools.config(vision_cfg={"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "", "image_size": 224})
    sites = make(model=f"local-dir:{tools.write(tmp_path / 'timm', config)}").sites("linear")
    image = [s for s in sites if s.tower == "image"]
    assert [s.role for s in image[:6]] == ["query", "key", "value", "out", "mlp_in", "mlp_out"]
    assert image[1].name == "visual.trunk.blocks.0.attn.qkv.weight[192:384]"
    assert image[-1].role == "projection"
    assert len(image) == 12 * 6 + 1


@pytest.mark.parametrize("training", [True, False])
def test_attached_folded_and_detached(make: Make, tools: SimpleNamespace, training: bool) -> None:
    module = make().train(training)
    batch = tools.batch(module)
    before = features(module, batch)
    names = set(module.network.state_dict())
    parameters = dict(module.network.named_parameters())
    sites = module.sites("linear")
    deltas = [Delta(site.shape) for site in sites]
    for site, delta in zip(sites, deltas, strict=True):
        site.attach(delta)
    assert all(torch.equal(a, b) for a, b in zip(features(module, batch), before, strict=True))  # an identity
    assert set(weights.read(module.network)) == names  # nothing of the deltas is the network's

    sum(x.square().sum() for x in features(module, batch)).backward()  # type: ignore[union-attr]
    assert all(delta.up.grad is not None and delta.up.grad.abs().sum() > 0 for delta in deltas)
    with torch.no_grad():
        for delta in deltas:
            delta.up.normal_(std=0.1)
    attached = features(module, batch)
    assert not torch.allclose(attached[0], before[0])
    effective = weights.read(module.network, copy=True)
    for site, delta in zip(sites, deltas, strict=True):
        site.fold()
        nn.init.zeros_(delta.up)
    assert all(torch.equal(a, b) for a, b in zip(features(module, batch), attached, strict=True))
    for site in sites:
        site.detach()
    assert dict(module.network.named_parameters()).keys() == parameters.keys()
    assert all(p is parameters[n] for n, p in module.network.named_parameters())
    state = module.network.state_dict()
    assert all(torch.equal(state[name], effective[name]) for name in names)


def test_the_effective_rows_are_the_weight_plus_the_delta(make: Make) -> None:
    module = make()
    site = next(s for s in module.sites("linear") if s.role == "key")
    attention: Any = module.network.get_submodule("visual.transformer.resblocks.0.attn")
    raw = attention.in_proj_weight.detach().clone()
    first, second = Delta(site.shape), Delta(site.shape)
    for delta in (first, second):
        nn.init.normal_(delta.up)
        site.attach(delta)  # several add up
    expected = raw.clone()
    expected[32:64] = expected[32:64] + first() + second()
    torch.testing.assert_close(attention.in_proj_weight, expected, rtol=0, atol=1e-6)
    twin = copy.deepcopy(module.network)
    torch.testing.assert_close(twin.get_submodule("visual.transformer.resblocks.0.attn").in_proj_weight, expected)
    site.detach()
    torch.testing.assert_close(attention.in_proj_weight, expected, rtol=0, atol=1e-6)
    assert isinstance(attention._parameters["in_proj_weight"], nn.Parameter)


def test_only_the_deltas_train_where_the_network_is_frozen(make: Make, tools: SimpleNamespace) -> None:
    module = make(trainable=())
    site = next(s for s in module.sites("linear") if s.role == "out")
    delta = Delta(site.shape)
    site.attach(delta)
    module.grow(tools.task())
    module(tools.batch(module)).features["image"].sum().backward()
    assert delta.up.grad is not None and float(delta.up.grad.abs().sum()) > 0
    assert all(p.grad is None for p in module.network.parameters())


def test_convolutions_of_one_place_are_linear() -> None:
    network = nn.Sequential()
    network.add_module("fc1", nn.Conv2d(3, 5, 1, bias=False))
    for name, layer in (
        ("wide", nn.Conv2d(5, 5, 3)),
        ("grouped", nn.Conv2d(5, 5, 1, groups=5)),
        ("strided", nn.Conv2d(5, 5, 1, stride=2)),
    ):
        network.add_module(name, layer)
    network.to(memory_format=torch.channels_last)
    (site,) = linear_sites(network, lambda name: "image")
    assert (site.name, site.role, site.shape) == ("fc1.weight", "mlp_in", (5, 3))
    images = torch.randn(2, 3, 4, 4)
    before = network.fc1(images)
    delta = Delta(site.shape)
    site.attach(delta)
    assert torch.equal(network.fc1(images), before)
    nn.init.normal_(delta.up)
    expected = before + torch.einsum("oi,bihw->bohw", delta(), images)
    torch.testing.assert_close(network.fc1(images), expected)
    site.detach()
    torch.testing.assert_close(network.fc1(images), expected)


def test_gpt_2_keeps_its_weights_transposed() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    network = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=16, n_embd=8, n_layer=2, n_head=2)).eval()
    sites = linear_sites(network, lambda name: None if name == "lm_head.weight" else "text")
    assert [(s.role, s.shape) for s in sites[:4]] == [*((r, (8, 8)) for r in ("query", "key", "value", "out"))]
    assert [(s.role, s.shape) for s in sites[4:6]] == [("mlp_in", (32, 8)), ("mlp_out", (8, 32))]
    assert sites[1].name == "transformer.h.0.attn.c_attn.weight[8:16]" and len(sites) == 12
    ids = torch.arange(12)[None]
    before = network(ids).logits
    deltas = [Delta(site.shape) for site in sites]
    for site, delta in zip(sites, deltas, strict=True):
        site.attach(delta)
    assert torch.equal(network(ids).logits, before)
    raw = [site.rows().clone() for site in sites]
    for delta in deltas:
        nn.init.normal_(delta.up)
    attached = network(ids).logits
    keys: Any = network.transformer.h[0].attn.c_attn
    torch.testing.assert_close(keys.weight[:, 8:16], (raw[1] + deltas[1]()).T)
    for site in sites:
        site.detach()
    assert torch.equal(network(ids).logits, attached)
    torch.testing.assert_close(sites[1].rows(), raw[1] + deltas[1]())


def test_a_site_knows_its_bare_rows_and_whether_they_train(make: Make) -> None:
    module = make(trainable=["image"])
    sites = module.sites("linear")
    assert {(s.tower, s.trains) for s in sites} == {("image", True), ("text", False)}
    site = next(s for s in sites if s.role == "value")
    attention: Any = module.network.get_submodule("visual.transformer.resblocks.0.attn")
    raw = attention.in_proj_weight.detach()[64:96].clone()
    delta = Delta(site.shape)
    nn.init.normal_(delta.up)
    site.attach(delta)
    assert torch.equal(site.rows(), raw) and site.trains
    site.fold()
    torch.testing.assert_close(site.rows(), raw + delta())


def test_folding_keeps_double_precision() -> None:
    layer = nn.Sequential(nn.Linear(3, 2)).double()
    (site,) = linear_sites(layer, lambda name: "text")
    before = layer[0].weight.detach().clone()
    delta = Delta(site.shape).double()
    nn.init.constant_(delta.up, 1e-12)
    site.attach(delta)
    site.fold()
    assert torch.equal(site.rows(), before + delta())


def test_a_delta_of_another_shape_is_refused(make: Make) -> None:
    site = make().sites("linear")[0]
    with pytest.raises(RunError, match=r"in_proj_weight\[0:32\]': delta\(\) is \(3, 3\)"):
        site.attach(Delta((3, 3)))
