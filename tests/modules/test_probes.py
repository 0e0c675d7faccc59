import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_asr
import torch
import torch.nn.functional as F
from torch import Tensor

from mmcl.errors import ConfigError, RunError
from mmcl.metrics.probes import Probe, ProbeResult, build
from mmcl.metrics.retrieval_probe import RetrievalProbe
from mmcl.metrics.zero_shot_probe import ZeroShotProbe
from mmcl.modules import CLIPModule
from mmcl.modules.speech_objectives import ContrastiveSpeech
from mmcl.outputs import Batch, Outputs
from mmcl.stream import EvalSet, Source

Make = Callable[..., CLIPModule]


def over_ranks(new: Callable[[], Probe], encode: Any, parts: list[list[Batch]]) -> ProbeResult:
    """What the first of several ranks computes, each with its own batches."""
    probes = [new() for _ in parts]
    for probe, batches in zip(probes, parts, strict=True):
        probe.start(encode)
        for batch in batches:
            probe.update(batch, encode(batch))
    sent: list[list[Tensor]] = []
    for probe in probes:

        def note(tensor: Tensor, record: list[Tensor]) -> Tensor:
            record.append(tensor)
            return tensor

        record: list[Tensor] = []
        if probe is not probes[0]:
            probe.compute(lambda t, r=record: note(t, r), lambda t, r=record: note(t, r))  # type: ignore[misc]
        sent.append(record)
    turn = iter(range(100))

    def everywhere(tensor: Tensor, join: Callable[[list[Tensor]], Tensor]) -> Tensor:
        i = next(turn)
        return join([tensor, *(record[i] for record in sent[1:])])

    return probes[0].compute(
        lambda t: everywhere(t, lambda all: torch.stack(all).sum(dim=0)), lambda t: everywhere(t, torch.cat)
    )


def cut(batch: Batch, *rows: list[int], pad: int = 0) -> list[Batch]:
    """Rows of a batch as batches; `pad` repeats of row 0 at the end of the last one are marked as padding."""
    found = []
    for i, part in enumerate(rows):
        extra = pad if i == len(rows) - 1 else 0
        taken = {k: v[part + [0] * extra] for k, v in batch.items()}
        found.append(taken | {"valid": torch.tensor([True] * len(part) + [False] * extra)})
    return found


def test_zero_shot_against_brute_force_on_any_number_of_ranks(make: Make, tools: SimpleNamespace) -> None:
    module = make().eval()
    batch = tools.batch(module, 12)
    templates = ["a photo of a {}", "a drawing of a red {}", "{} ."]
    evalset = EvalSet("e", Source(["a.tar"]), class_names=tools.names, templates=templates, options={"k": 2})
    with torch.no_grad():
        one = over_ranks(lambda: build(evalset, module), module, [[batch]])
        parts = [cut(batch, [0, 3, 6], [9], pad=2), cut(batch, [1, 4, 7, 10, 2], [5, 8, 11], pad=1)]
        two = over_ranks(lambda: build(evalset, module), module, parts)
        rows = []
        for name in tools.names:
            texts = module.network.encode_text(module.tokenize([t.format(name) for t in templates]), normalize=True)
            rows.append(F.normalize(texts.mean(dim=0), dim=-1))
        similarity = module.network.encode_image(batch["image"], normalize=True) @ torch.stack(rows).T
    assert one == two
    order = similarity.argsort(dim=1, descending=True)
    hits = order[:, 0] == batch["labels"]
    assert (one.value, one.count, one.correct) == (float(hits.double().mean()), 12, int(hits.sum()))
    assert one.metrics["top2"] == float((order[:, :2] == batch["labels"][:, None]).any(dim=1).double().mean())
    recalls = [float(hits[batch["labels"] == c].double().mean()) for c in range(5)]
    assert one.metrics["mean_per_class_recall"] == pytest.approx(sum(recalls) / 5)
    assert build(evalset, module).protocol == "zero-shot top-1 over 5 classes, 3 templates averaged"


def test_class_texts_are_encoded_some_at_a_time() -> None:
    sizes: list[int] = []

    def encode(batch: Batch) -> Outputs:
        sizes.append(len(batch["text"]))
        return Outputs({"text": batch["text"].float()})

    def prompts(names: Any, templates: Any) -> Tensor:
        return torch.arange(1, 1 + len(names) * len(templates) * 2).reshape(len(names), len(templates), 2)

    for classes, templates in ((700, 3), (2, 1100)):
        sizes.clear()
        probe = ZeroShotProbe(prompts, ["x"] * classes, ["{}"] * templates)
        probe.start(encode)
        assert max(sizes) <= 512 and sum(sizes) == classes * templates
        expected = F.normalize(
            F.normalize(prompts(["x"] * classes, ["{}"] * templates).float(), dim=-1).mean(1), dim=-1
        )
        torch.testing.assert_close(probe.classifier, expected)


def test_labels_must_fit_the_class_names(make: Make, tools: SimpleNamespace) -> None:
    module = make()
    batch = tools.batch(module)
    probe = build(EvalSet("e", Source(["a.tar"]), class_names=["cat", "dog"]), module)
    probe.start(module)
    with pytest.raises(RunError, match=r"labels 0\.\.4 do not fit 2 class names"):
        probe.update(batch, module(batch))
    with pytest.raises(RunError, match="no labels"):
        probe.update({"image": batch["image"]}, module(batch))
    with pytest.raises(RunError, match="no samples"):
        probe.compute(lambda t: t, lambda t: t)
    with pytest.raises(ConfigError, match="option k is 1"):
        build(EvalSet("e", Source(["a.tar"]), class_names=["cat"], options={"k": 1}), module)


# -- speech ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("wav2vec2", {"beams": 5, "language": "xx"}, "option 'beams' of generation is unknown"),
        ("wav2vec2", {"language": "xx"}, "'xx' has no alphabet"),
        ("wav2vec2", {"language": False}, "option language is False"),
        ("whisper", {"max_new_tokens": 0}, "max_new_tokens is 0"),
        ("whisper", {"normalize": "no"}, "option normalize is 'no'"),
    ],
)
def test_options_of_generation_are_refused_at_start_up(kind: str, options: dict[str, Any], message: str) -> None:
    evalset = EvalSet("e", Source(["a.tar"]), "error_rate", options=options)
    with pytest.raises(ConfigError, match=f"^evaluation set 'e': .*{message}"):
        build(evalset, tiny_asr.module(kind))
    good = EvalSet("e", Source(["a.tar"]), "error_rate", options={"max_new_tokens": 9, "language": "en"})
    probe = build(good, tiny_asr.module(kind))
    with pytest.raises(RunError, match="the references of evaluation set 'e' have no words"):
        probe.start(None)  # type: ignore[arg-type]
        probe.compute(lambda t: t, lambda t: t)


def test_a_collapsed_codebook_is_not_the_best_score() -> None:
    distractors, collapsed = 10, torch.full((2, 5, 11), -torch.inf)
    collapsed[..., 0] = 10.0
    usage = torch.zeros(2, 5, 2, 8)
    usage[..., 0] = 1.0
    counted = torch.ones(2, 5, dtype=torch.bool)
    outputs = Outputs(extra={"contrastive_logits": collapsed, "counted": counted, "code_usage": usage})
    module: Any = SimpleNamespace(objective=ContrastiveSpeech(), probes={"objective"})
    found = {}
    for metric in ("objective", "contrastive_accuracy"):
        probe = build(EvalSet("e", Source(["a.tar"]), "objective", options={"metric": metric}), module)
        probe.start(None)  # type: ignore[arg-type]
        probe.update({}, outputs)
        found[metric] = probe.compute(lambda t: t, lambda t: t)
        assert probe.direction == {"objective": "lower", "contrastive_accuracy": "higher"}[metric]
    chance = math.log(1 + distractors)
    assert found["objective"].value == pytest.approx(chance + 0.1 * (16 - 2) / 16)
    assert found["contrastive_accuracy"].value == 0.0
    terms = module.objective.terms(outputs, {})  # training keeps fairseq's rule
    assert float(terms["contrastive_loss"]) == 0.0
    with pytest.raises(ConfigError, match=r"metric 'accuracy' is unknown; did you mean contrastive_accuracy"):
        build(EvalSet("e", Source(["a.tar"]), "objective", options={"metric": "accuracy"}), module)
    outputs.extra["contrastive_logits"] = torch.full((2, 5, 11), torch.nan)
    probe = build(EvalSet("e", Source(["a.tar"]), "objective"), module)
    probe.start(None)  # type: ignore[arg-type]
    probe.update({}, outputs)
    with pytest.raises(RunError, match="the objective of evaluation set 'e' is nan"):
        probe.compute(lambda t: t, lambda t: t)


# -- retrieval ------------------------------------------------------------------------------------------------------

CAPTIONS = [2, 1, 3, 1, 2, 1, 1, 2, 1, 4, 1, 1]


def features_of(batch: Batch) -> Outputs:
    return Outputs({"image": batch["image_features"], "text": batch["text"]})


def retrieval_batch(rows: list[int], pad: int = 0) -> Batch:
    """Samples `rows` of a fixed set with several captions each, then `pad` repeats of its sample 0."""
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(len(CAPTIONS), 6, generator=generator)
    texts = [images[i] + 1.2 * torch.randn(n, 6, generator=generator) for i, n in enumerate(CAPTIONS)]
    taken = rows + [0] * pad
    owners = [torch.full((CAPTIONS[i],), place) for place, i in enumerate(taken)]
    return {
        "image_features": images[taken],
        "text": torch.cat([texts[i] for i in taken]),
        "text_rows": torch.cat(owners),
        "valid": torch.tensor([True] * len(rows) + [False] * pad),
        "__index__": torch.tensor(taken) * 10 + 3,
    }


def test_retrieval_against_brute_force_on_any_number_of_ranks() -> None:
    whole = retrieval_batch(list(range(12)))
    one = over_ranks(lambda: RetrievalProbe(k=[1, 3], chunk=5), features_of, [[whole]])
    parts = [
        [retrieval_batch([11, 2, 4]), retrieval_batch([0, 6, 8], pad=2)],
        [retrieval_batch([1, 3, 5, 7]), retrieval_batch([9, 10], pad=1)],
    ]
    assert over_ranks(lambda: RetrievalProbe(k=[1, 3]), features_of, parts) == one
    similarity = F.normalize(whole["image_features"], dim=-1) @ F.normalize(whole["text"], dim=-1).T
    owner = whole["text_rows"]
    for k in (1, 3):
        best = similarity.topk(k, dim=1).indices
        forth = sum(bool((owner[best[i]] == i).any()) for i in range(12)) / 12
        best = similarity.T.topk(k, dim=1).indices
        back = sum(bool((best[j] == owner[j]).any()) for j in range(len(owner))) / len(owner)
        assert one.metrics[f"image_to_text_recall@{k}"] == forth
        assert one.metrics[f"text_to_image_recall@{k}"] == back
        assert one.metrics[f"mean_recall@{k}"] == pytest.approx((forth + back) / 2)
    assert 0.2 < one.value < 1 and one.value == one.metrics["mean_recall@1"]
    assert (one.count, one.correct) == (12 + sum(CAPTIONS), None)


def test_retrieval_with_one_caption_needs_no_owners(make: Make, tools: SimpleNamespace) -> None:
    module = make()
    batch = tools.batch(module)
    with torch.no_grad():
        result = over_ranks(lambda: build(EvalSet("e", Source(["a.tar"]), "retrieval"), module), module, [[batch]])
        again = over_ranks(RetrievalProbe, module, [cut(batch, [0, 2, 4], pad=1), cut(batch, [1, 3], [5])])
    assert result.count == 12 and result == again
    assert set(result.metrics) >= {"image_to_text_recall@10", "text_to_image_recall@5", "mean_recall@1"}


def test_what_retrieval_lacks_is_named() -> None:
    batch = retrieval_batch([0, 1])
    for key in ("text", "__index__"):
        with pytest.raises(RunError, match=f"have no '{key}'"):
            RetrievalProbe().update({k: v for k, v in batch.items() if k != key}, features_of(batch))
    with pytest.raises(RunError, match="no samples"):
        RetrievalProbe().compute(lambda t: t, lambda t: t)
    twice = [[batch, retrieval_batch([1])]]
    with pytest.raises(RunError, match="one came twice"):
        over_ranks(RetrievalProbe, features_of, twice)
    with pytest.raises(ConfigError, match="option k"):
        RetrievalProbe(k=[0])
