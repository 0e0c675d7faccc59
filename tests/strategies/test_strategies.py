"""What each strategy declares, keeps, refuses and leaves alone."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import settings
import torch

import mmcl.strategies
from mmcl import plugins, weights
from mmcl.compose import check, expand
from mmcl.errors import ConfigError, RunError
from mmcl.outputs import Outputs
from mmcl.strategies import (
    APER,
    ZSCL,
    Distillation,
    ExperienceReplay,
    Frozen,
    LoRA,
    LwF,
    MomentumInterpolation,
    SPrompts,
    SynapticIntelligence,
    WeightConsolidation,
    WeightEnsemble,
    WeightInterpolation,
)
from mmcl.strategy import Strategy
from mmcl.stream import Source, Stream


def test_names_are_found_in_the_sources() -> None:
    for name in plugins.listing("strategies"):
        assert getattr(mmcl.strategies, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = mmcl.strategies.Nothing


def test_every_docstring_tells_the_paper_and_the_differences() -> None:
    for name in plugins.listing("strategies"):
        module = importlib.import_module(plugins.class_path("strategies", name).rpartition(".")[0])
        assert "Differences from the published code:" in (getattr(module, name).__doc__ or ""), name


BAD: list[tuple[Callable[[], Any], str]] = [
    (lambda: Distillation(teacher="initail"), "teacher 'initail' is unknown; did you mean initial"),  # type: ignore[arg-type]
    (lambda: Distillation(temperature=0), "temperature is 0"),
    (lambda: Distillation(temperature=float("nan")), "temperature is nan"),
    (lambda: Distillation(image_to_text=-1), "image_to_text is -1"),
    (lambda: Distillation(batch_size=0), "batch_size is 0"),
    (lambda: Distillation(reference=None, texts="all"), "give `reference`"),
    (lambda: Distillation(cache_images=True), "cache_images needs"),
    (lambda: Distillation(texts="al"), "texts 'al' is neither 'batch', 'all' nor a text file"),
    (lambda: ExperienceReplay(4, share=1.0), "share is 1.0"),
    (lambda: ExperienceReplay(0), "ExperienceReplay: size is 0; it must be 1 or more"),
    (lambda: LwF(temperature=-1), "temperature is -1"),
    (lambda: MomentumInterpolation(1.5), "decay is 1.5"),
    (lambda: MomentumInterpolation(interval=0), "interval is 0"),
    (lambda: WeightConsolidation(-1.0), "weight is -1.0"),
    (lambda: WeightEnsemble(0), "interval is 0"),
    (lambda: WeightEnsemble(alpha=2), "alpha is 2"),
    (lambda: WeightInterpolation(1.2), "alpha is 1.2"),
    (lambda: WeightInterpolation(alphas=(0.1, -0.1)), "alpha is -0.1"),
    (lambda: WeightInterpolation(base="strat"), "base 'strat' is unknown; did you mean start"),  # type: ignore[arg-type]
    (lambda: WeightInterpolation(alphas=(0.1,), merge=True), "nothing to sweep"),
    (lambda: ZSCL(interval=-1), "interval is -1"),
    (lambda: ZSCL(consolidation=-1), "weight is -1"),
]


@pytest.mark.parametrize(("build", "message"), BAD)
def test_bad_arguments_are_refused(build: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        build()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_what_clashes_is_refused(toolbox: SimpleNamespace) -> None:
    with pytest.raises(ConfigError, match="WeightEnsemble of ZSCL and MomentumInterpolation both claim 'eval_weights'"):
        toolbox.Run([ZSCL(), MomentumInterpolation()])
    with pytest.raises(ConfigError, match="no source 'refrence'; did you mean reference"):
        toolbox.Run([Distillation(reference="refrence")])
    augmented = Source(["a.tar"], name="pictures")
    with pytest.raises(ConfigError, match="source 'pictures' is augmented"):
        toolbox.Run([Distillation(reference=augmented, texts="all", cache_images=True)])


def test_presets_are_made_of_parts() -> None:
    def names(preset: Strategy) -> list[str]:
        return [type(part).__name__ for part in preset.parts()]

    assert names(ZSCL()) == ["Distillation", "WeightEnsemble", "WeightConsolidation"]
    assert names(ZSCL(interval=None)) == ["Distillation", "WeightConsolidation"]
    assert names(ZSCL(consolidation=0)) == ["Distillation", "WeightEnsemble"]
    (lwf,) = LwF().parts()
    assert isinstance(lwf, Distillation)
    assert lwf.snapshots == {"start"} and lwf.reference is None
    (lwf,) = LwF(3.0, 4.0, 5.0, weight=6.0).parts()
    zscl, *_ = ZSCL(temperature=3.0, image_to_text=4.0, text_to_image=5.0).parts()
    for part, weight in ((lwf, 6.0), (zscl, 1.0)):
        assert isinstance(part, Distillation)
        assert part.terms == {"image_to_text": 4.0, "text_to_image": 5.0}
        assert (part.temperature, part.weight) == (3.0, weight)


def test_messages_name_what_stands_in_the_list(toolbox: SimpleNamespace) -> None:
    """No part is called by a class that the user cannot know; what is public is named with its preset."""
    listed = plugins.listing("strategies")
    for name, setting in settings.found().items():
        for part in expand(setting.build()):
            own, _, preset = part.title.partition(" of ")
            assert own in listed and (not preset or preset in listed), f"{name}: a message would say '{part.title}'"
    assert [s.title for s in expand([SynapticIntelligence()])] == ["SynapticIntelligence"] * 2
    assert [s.title for s in expand([APER(LwF()), LwF()])] == [
        *("Distillation of APER", "NearestMean of APER", "Distillation of LwF")
    ]
    module: Any = SimpleNamespace(network=toolbox.Towers(), is_head=lambda name: False, provides=frozenset())
    for preset, title in (SynapticIntelligence(), "SynapticIntelligence"), (ZSCL(), "WeightConsolidation of ZSCL"):
        with pytest.raises(ConfigError, match=f"^{title} works on weights .* and LoRA leaves none of "):
            check(expand([preset, LoRA()]), module)
    with pytest.raises(ConfigError, match=r"^SynapticIntelligence: weight is -1"):
        SynapticIntelligence(-1.0)


def test_the_reference_is_a_side_source_of_its_name(toolbox: SimpleNamespace) -> None:
    run = toolbox.Run([Distillation(batch_size=7)])
    (source,) = run.strategies[0].sources(toolbox.task("one"))
    assert (source.name, source.role, source.batch_size) == ("reference", "side", 7)
    own = Source(["a.tar"], name="own", batch_size=3)
    run = toolbox.Run([Distillation(reference=own)])
    assert run.strategies[0].sources(toolbox.task("one")) == (replace(own, role="side"),)


def test_teacher_features_are_computed_once(data: Any) -> None:
    run = data.run(Distillation(texts="all", cache_images=True))
    for name in ("one", "two"):
        run.begin(name)
        data.train(run)
    assert run.module.text_calls == 1
    assert run.passes == 1 and run.images_by_teacher == 0


def test_features_of_a_previous_teacher_are_made_anew_for_each_task(data: Any) -> None:
    run = data.run(Distillation("previous", texts="all", cache_images=True))
    for name in ("one", "two"):
        run.begin(name)
        data.train(run)
    assert run.module.text_calls == 2
    assert run.passes == 2 and run.images_by_teacher == 0


def test_texts_from_a_file(data: Any, tmp_path: Path, toolbox: SimpleNamespace) -> None:
    (tmp_path / "captions.txt").write_text("\n".join(data.captions) + "\n\n")
    runs = [data.run(Distillation(texts=texts)) for texts in ("all", str(tmp_path / "captions.txt"))]
    for run in runs:
        run.begin()
        data.train(run)
    toolbox.assert_same(runs[1].weights(), runs[0].weights())
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ConfigError, match="holds no captions"):
        Distillation(texts=str(tmp_path / "empty.txt"))


def test_a_reference_without_captions_is_an_error(data: Any) -> None:
    run = data.run(Distillation(texts="all"))
    run.caption_list = []
    run.begin()
    with pytest.raises(RunError, match="'reference' has no captions"):
        data.train(run, 1)


def test_the_logit_scale_is_not_distilled(data: Any) -> None:
    run = data.run(Distillation(texts="all"))
    run.module.network.logit_scale.requires_grad_(True)
    run.begin()
    context = run._context(data.batch(0), data.side(0))
    torch.stack(list(run.strategies[0].losses(context).values())).sum().backward()
    assert run.module.network.logit_scale.grad is None
    assert run.module.network.tok.weight.grad is None
    assert run.module.network.visual.weight.grad.abs().sum() > 0


def test_each_direction_has_its_factor(data: Any) -> None:
    found = []
    for strategy in (Distillation(), Distillation(image_to_text=3.0, text_to_image=0.5, weight=2.0)):
        run = data.run(strategy)
        run.begin()
        data.train(run, 1)
        found.append(run.losses[0])
    for name, factor in (("image_to_text", 6.0), ("text_to_image", 1.0)):
        torch.testing.assert_close(found[1][name], factor * found[0][name])


def test_modules_without_features_distil_their_logits(toolbox: SimpleNamespace) -> None:
    ours, theirs = torch.randn(2, 3, 5, requires_grad=True), torch.randn(2, 3, 4)
    valid = torch.tensor([[True, True, False], [True, False, False]])
    strategy = Distillation("previous", None, temperature=1.0, weight=2.0)
    strategy.attach_reach(SimpleNamespace(module=SimpleNamespace(distillable=("logits", "tokens"))))  # type: ignore[arg-type]
    strategy.setup(Stream("toy", [toolbox.task("one")]))
    context: Any = SimpleNamespace(
        batch={},
        outputs=Outputs(logits=ours, valid=valid),
        teacher=lambda name, batch: Outputs(logits=theirs),
        reduce=lambda tensor: tensor,
    )
    context.outputs.valid = torch.zeros_like(valid)  # a rank of its own without a token
    assert strategy.losses(context)["logits"] == 0
    context.outputs.valid = valid
    (loss,) = strategy.losses(context).values()
    rows = torch.nn.functional.cross_entropy(ours[valid][:, :4], theirs[valid].softmax(1))
    torch.testing.assert_close(loss, 2 * rows)
    context.outputs.known = torch.tensor([True, False, True, False])
    (loss,) = strategy.losses(context).values()
    few = [0, 2]  # columns that had been trained before the task
    torch.testing.assert_close(
        loss, 2 * torch.nn.functional.cross_entropy(ours[valid][:, few], theirs[valid][:, few].softmax(1))
    )
    context.outputs.known = torch.zeros(4, dtype=torch.bool)
    assert strategy.losses(context)["logits"] == 0
    context.outputs.logits = None
    with pytest.raises(RunError, match="hold no logits"):
        strategy.losses(context)


def test_frozen_trains_nothing(data: Any, toolbox: SimpleNamespace) -> None:
    run = data.run(Frozen())
    run.begin()
    assert run.optimizer is None


def _reach(live: Callable[[], dict[str, torch.Tensor]]) -> Any:
    def copied() -> dict[str, torch.Tensor]:
        return {name: value.clone() for name, value in live().items()}

    return SimpleNamespace(weights=lambda copy, dtype: copied(), grown=lambda older: weights.grown(copied(), older))


@pytest.mark.parametrize("decay", [0.9, 0.999, 0.9998])
@pytest.mark.parametrize("interval", [1, 5])
def test_slow_weights_follow_the_recording(toolbox: SimpleNamespace, decay: float, interval: int) -> None:
    recorded = np.load(toolbox.PARITY / "mwi" / "ema_f64.npz")
    fast = {"w": torch.from_numpy(recorded["fast_init"]).clone()}
    strategy = MomentumInterpolation(decay, interval)
    strategy.attach_reach(_reach(lambda: fast))
    for step in range(30):
        if step in (0, 7, 20):  # new tasks: the slow copy goes on
            strategy.on_task_start(toolbox.task("one"), None)  # type: ignore[arg-type]
        fast["w"] = torch.from_numpy(recorded["fast_after_each_step"][step])
        strategy.on_step_end(SimpleNamespace(step=step))  # type: ignore[arg-type]
        wanted = torch.from_numpy(recorded[f"slow_tau{decay}_every{interval}"][step])
        torch.testing.assert_close(strategy.slow["w"], wanted, rtol=1e-12, atol=1e-14)


def test_slow_weights_grow_with_the_network(toolbox: SimpleNamespace) -> None:
    live = {"w": torch.zeros(2, 3)}
    strategy = MomentumInterpolation()
    strategy.attach_reach(_reach(lambda: live))
    strategy.on_task_start(toolbox.task("one"), None)  # type: ignore[arg-type]
    live = {"w": torch.ones(4, 3), "new": torch.ones(1)}
    strategy.on_task_start(toolbox.task("two"), None)  # type: ignore[arg-type]
    assert strategy.slow["w"].sum(1).tolist() == [0, 0, 3, 3]
    assert strategy.slow["new"].tolist() == [1]


def test_interpolation_sweeps_without_training(data: Any, toolbox: SimpleNamespace) -> None:
    run = data.run(WeightInterpolation(0.5, alphas=(0.0, 0.3, 1.0)))
    run.begin()
    data.train(run)
    run.end()
    assert run.composition.variants() == ["alpha=0", "alpha=0.3", "alpha=1"]
    start, end = data.weights("init"), run.weights()
    for variant, alpha in (("", 0.5), ("alpha=0", 0.0), ("alpha=0.3", 0.3), ("alpha=1", 1.0)):
        found = run.evaluated(variant)
        for name, value in start.items():
            torch.testing.assert_close(found[name], (1 - alpha) * value + alpha * end[name], rtol=1e-12, atol=1e-14)
    assert int(run.evaluated()["seen"]) == 9
    with pytest.raises(ConfigError, match=r"no variant 'alpha=0\.4'"):
        run.strategies[0].eval_weights("alpha=0.4")


def test_an_earlier_row_can_be_evaluated_again(data: Any, toolbox: SimpleNamespace) -> None:
    """From the weights and the state of that time alone, though the run has gone on."""
    run = data.run(WeightInterpolation(0.6, base="start"))
    (strategy,) = run.strategies
    run.begin("one")
    data.train(run)
    run.end()
    row, saved, state = run.evaluated(), run.weights(copy=True), strategy.export_state()
    run.begin("two")
    data.train(run)
    run.load(saved)
    strategy.import_state(state)
    toolbox.assert_same(run.evaluated(), row)


def test_averages_of_half_precision_are_kept_in_float32(data: Any) -> None:
    run = data.run(WeightEnsemble(1))
    run.module.network.bfloat16()
    run.begin()
    (ensemble,) = run.strategies
    assert {v.dtype for v in ensemble.average.values()} == {torch.float32, torch.int64}
    assert run.weights()["visual.weight"].dtype == torch.bfloat16


def test_consolidation_leaves_alone_what_came_later(data: Any) -> None:
    run = data.run(WeightConsolidation())
    run.begin()
    run.module.network.adapter = torch.nn.Linear(2, 2)
    data.train(run, 2)
    assert run.module.network.adapter.weight.grad is None
    assert run.logged["weight_consolidation/penalty"] > 0


def test_what_holds_weights_is_refused_where_none_trains(
    toolbox: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    module: Any = SimpleNamespace(
        network=toolbox.Towers(), is_head=lambda name: False, provides=frozenset({"sites.linear", "logit_scale"})
    )
    with pytest.raises(ConfigError, match="WeightConsolidation works on weights of the network that train, and LoRA"):
        check([LoRA(), WeightConsolidation()], module)
    check([LoRA(), WeightConsolidation(0.0)], module)
    check([LoRA(also=["visual.weight"]), WeightConsolidation()], module)
    assert not caplog.text
    module.is_head = lambda name: name.startswith("visual.")
    check([LoRA(), WeightConsolidation()], module)
    assert "WeightConsolidation holds the head alone: LoRA freezes the rest of the network" in caplog.text
    module.provides = frozenset({"sites.input"})
    check([SPrompts(classifiers=False), WeightConsolidation()], module)
    with pytest.raises(ConfigError, match="WeightConsolidation works on weights of the network that train, and SPr"):
        check([SPrompts(), WeightConsolidation()], module)


def test_consolidation_logs_its_value(data: Any) -> None:
    run = data.run(WeightConsolidation(3.0))
    run.begin()
    data.train(run, 2)
    assert run.logged["weight_consolidation/penalty"] > 0
