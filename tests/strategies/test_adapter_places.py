"""Where adapters go, what is refused, and what a module and its export know of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cases
import pytest
import tiny_clip
import torch
from torch import nn
from watching import FIRST_TASK, Cut, Watch, changed

from mmcl import Strategy, weights
from mmcl.errors import ConfigError
from mmcl.functional.lowrank import dora_weight, row_norm
from mmcl.session import Session
from mmcl.strategies import BitFit, CoDyRA, DoRA, LNFit, LoRA, VeRA, WeightEnsemble


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cases")


@pytest.fixture
def run(shards: Path, tmp_path: Path) -> Callable[..., Any]:
    """Train a case with strategies; gives what `cases.run` gives."""

    def train(case: str, strategies: Sequence[Strategy], name: str = "run", **more: Any) -> dict[str, Any]:
        return cases.run(case, shards / case, tmp_path / name, strategies, **more)

    return train


def test_places_can_be_chosen(run: Any) -> None:
    strategy = LoRA(2, towers=["text"], roles=["query", "out"], blocks=[-1], also=["logit_scale"])
    watch = Watch(*FIRST_TASK)
    with pytest.raises(Cut):
        run("clip", [strategy, watch])
    prefix = "transformer.resblocks.0.attn"
    assert [s.name for s in strategy.sites.values()] == [f"{prefix}.in_proj_weight[0:16]", f"{prefix}.out_proj.weight"]
    assert watch.trained == ["logit_scale"]
    seen = changed(watch.seen["initial"], watch.seen["end dots"])
    assert sorted(seen) == ["logit_scale", f"{prefix}.in_proj_weight", f"{prefix}.out_proj.weight"]


@pytest.mark.parametrize(
    ("case", "build", "words"),
    [
        ("clip", lambda: LoRA(towers=["audio"]), "tower 'audio' has no linear weights; known: image, text"),
        (
            "clip",
            lambda: LoRA(blocks=[7]),
            "there is no block 7: the image tower has 1 blocks, the text tower has 1 blocks",
        ),
        ("clip", lambda: LoRA(also=["logit_scal"]), "`also` 'logit_scal' fits no weight"),
        ("clip", lambda: LoRA(towers=["text"], tasks="separate"), "chooses by the features of 'image'"),
        ("classes", lambda: CoDyRA(), "no linear weight fits"),
        ("causal_lm", lambda: BitFit(), "no biases"),
        ("causal_lm", lambda: LoRA(tasks="separate"), "needs 'features'"),
        ("clip", lambda: [LoRA(), CoDyRA()], "LoRA and CoDyRA both claim 'adapters'"),
        ("clip", lambda: [LoRA(tasks="separate"), WeightEnsemble()], "both claim 'eval_weights'"),
    ],
)
def test_what_cannot_be_adapted_is_refused(run: Any, tmp_path: Path, case: str, build: Any, words: str) -> None:
    made = build()
    with pytest.raises(ConfigError, match=re.escape(words)):
        run(case, made if isinstance(made, list) else [made])
    assert not (tmp_path / "run" / "results.json").exists()


def test_adapters_go_where_the_module_trains() -> None:
    module = tiny_clip.module()
    module.network.visual.requires_grad_(False)
    for towers, sites in ((None, 5), (["text"], 5), (["image"], 0)):
        strategy = LoRA(towers=towers)
        strategy.attach_reach(SimpleNamespace(module=module))  # type: ignore[arg-type]
        if sites:
            strategy.setup(None)  # type: ignore[arg-type]
            assert len(strategy.sites) == sites and {s.tower for s in strategy.sites.values()} == {"text"}
        else:
            with pytest.raises(ConfigError, match="it trains none of the chosen weights"):
                strategy.setup(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: LoRA(0), "rank is 0"),
        (lambda: LoRA(scale=0), "factor on B A is 0"),
        (lambda: LoRA(scale=2, alpha=8), "scale is 2 and alpha 8"),
        (lambda: LoRA(orthogonality=-1), "orthogonality is -1"),
        (lambda: LoRA(orthogonality=1, tasks="continue"), "needs tasks 'merge'"),
        (lambda: LoRA(tasks="seperate"), "did you mean separate"),  # type: ignore[arg-type]
        (lambda: LoRA(tasks="separate", also=["x"]), "does not go with 'separate'"),
        (lambda: LoRA(clusters=0), "clusters is 0"),
        (lambda: LoRA(roles=["querry"]), "did you mean query"),  # type: ignore[list-item]
        (lambda: LoRA(also=["("]), "no regular expression"),
        (lambda: CoDyRA(0), "rank is 0"),
        (lambda: CoDyRA(kappa=-1), "kappa is -1"),
        (lambda: CoDyRA(dense=1.5), "dense is 1.5"),
        (lambda: CoDyRA(notches=1), "notches is 1"),
        (lambda: DoRA(0), "rank is 0"),
        (lambda: DoRA(scale=-1), "scale is -1"),
        (lambda: DoRA(tasks="separate"), "tasks 'separate' is unknown"),  # type: ignore[arg-type]
        (lambda: VeRA(0), "rank is 0"),
        (lambda: VeRA(scale=float("inf")), "scale is inf"),
    ],
)
def test_bad_arguments_are_refused(build: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        build()


def on_clip(strategy: Any) -> Any:
    """Adapters on a tiny CLIP with random values of their own, equal for equal adapters."""
    reach: Any = SimpleNamespace(
        module=tiny_clip.module(), generator=lambda task, name: torch.Generator().manual_seed(1)
    )
    strategy.attach_reach(reach)
    strategy.setup(SimpleNamespace(tasks=[None]))
    torch.manual_seed(0)
    for parameter in strategy.adapters.parameters():
        parameter.data = torch.randn(parameter.shape)
    return strategy


@pytest.mark.parametrize(
    ("plain", "scaled", "factor"),
    [(LoRA(2), LoRA(2, scale=3.0), 3), (LoRA(2), LoRA(2, alpha=8.0), 4), (VeRA(4), VeRA(4, scale=3.0), 3)],
)
def test_the_change_has_its_factor(plain: Any, scaled: Any, factor: float) -> None:
    changes = [{key: adapter() for key, adapter in on_clip(s).each().items()} for s in (plain, scaled)]
    for key, change in changes[0].items():
        assert change.any()
        torch.testing.assert_close(changes[1][key], factor * change)


def test_dora_goes_by_its_factor_and_begins_anew_from_what_was_merged() -> None:
    strategy = on_clip(DoRA(2, scale=3.0))
    for key, adapter in strategy.each().items():
        rows = strategy.sites[key].rows()
        wanted = dora_weight(rows, adapter.down, adapter.up, row_norm(rows) + adapter.growth, scale=3.0)
        torch.testing.assert_close(rows + adapter(), wanted)
    strategy.on_task_end(None, None)
    for key, adapter in strategy.each().items():
        assert torch.equal(adapter.anchor, strategy.sites[key].rows())


def test_vera_s_matrices_are_those_of_all_layers_of_a_shape() -> None:
    strategy = on_clip(VeRA(4))
    matrices = [adapter._matrices()["down"].data_ptr() for adapter in strategy.each().values()]
    assert len(set(matrices)) == len({site.shape for site in strategy.sites.values()}) < len(matrices)


class Odd(nn.Module):
    """Layers with biases and norms, and what only looks like one."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.bn = nn.Linear(3, 3), nn.LayerNorm(3), nn.BatchNorm1d(3)
        self.logit_bias = nn.Parameter(torch.zeros(1))
        self.position_bias = nn.Parameter(torch.zeros(3, 3))


@pytest.mark.parametrize(
    ("strategy", "trained"),
    [
        (BitFit(), ["linear.bias", "norm.bias", "bn.bias"]),
        (LNFit(), ["norm.weight", "norm.bias", "bn.weight", "bn.bias"]),
    ],
)
def test_biases_and_norms_of_layers_train_alone(strategy: Any, trained: list[str]) -> None:
    network = Odd()
    strategy.attach_reach(SimpleNamespace(module=SimpleNamespace(network=network, is_head=lambda name: False)))
    strategy.setup(None)
    strategy.grow(None)
    assert [name for name, parameter in network.named_parameters() if parameter.requires_grad] == trained


def test_a_frozen_batch_norm_keeps_its_statistics(run: Any) -> None:
    watch = Watch(*FIRST_TASK)
    with pytest.raises(Cut):
        run("classes", [LoRA(2, roles=["other"]), watch])
    assert not [n for n in changed(watch.seen["initial"], watch.seen["end task-0"]) if "running" in n]
    watch = Watch(*FIRST_TASK)
    with pytest.raises(Cut):
        run("classes", [LNFit(), watch], "norms")
    assert [n for n in changed(watch.seen["initial"], watch.seen["end task-0"]) if "running" in n]


def test_the_export_holds_the_merged_weights(run: Any, tmp_path: Path) -> None:
    strategy = CoDyRA(4, kappa=0.3)
    with pytest.raises(Cut):
        run("clip", [strategy, Watch(*FIRST_TASK)])
    module = strategy.module
    assert changed(weights.read(module.build_network()), weights.read(module.network))
    (tmp_path / "export").mkdir()
    module.export(tmp_path / "export", "open_clip")
    import open_clip

    peer = open_clip.create_model(f"local-dir:{tmp_path / 'export'}")
    effective = weights.read(module.network)
    for name, value in peer.state_dict().items():
        torch.testing.assert_close(value, effective[name].cpu(), rtol=0, atol=0)


def test_a_run_with_adapters_is_no_start_for_another(run: Any, tmp_path: Path) -> None:
    with pytest.raises(Cut):
        run("clip", [LoRA(2), Watch(*FIRST_TASK)])
    module = tiny_clip.module()
    with pytest.raises(ConfigError, match="holds adapters beside the weights; fold them in"):
        Session.load_network(SimpleNamespace(module=module), str(tmp_path / "run"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("case", "heads"),
    [
        ("classes", {"head"}),
        ("asr-wav2vec2", {"lm_head"}),
        ("asr-whisper-ctc", {"head"}),
        ("asr-whisper", set()),
        ("hubert", {"project", "codewords"}),
        ("clip", set()),
        ("causal_lm", set()),
    ],
)
def test_modules_know_their_heads(case: str, heads: set[str]) -> None:
    module = cases.found()[case][0]()
    named = [name for name, _ in module.network.named_parameters()]
    assert {name.split(".")[0] for name in named if module.is_head(name)} == heads
