"""Momentum contrast, its queues and the momentum model, against the parity arrays of CTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmcl.errors import MmclError
from mmcl.functional import (
    compatible_momentum,
    distillation_loss,
    divergence_loss,
    momentum_contrast_loss,
    topology_preservation_loss,
    update_queue,
)

PARITY = Path(__file__).parents[1] / "parity" / "ctp"
Weights = dict[str, Tensor]


def arrays(name: str) -> dict[str, Tensor]:
    with np.load(PARITY / f"{name}.npz") as data:
        return {key: torch.from_numpy(data[key].copy()) for key in data.files}


def close(actual: Any, expected: Tensor) -> None:
    torch.testing.assert_close(actual.detach(), expected, rtol=1e-9, atol=1e-12)


def weights(a: dict[str, Tensor], prefix: str) -> Weights:
    return {k.removeprefix(f"{prefix}."): v for k, v in a.items() if k.startswith(f"{prefix}.")}


def encode(w: Weights, a: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """(image features, text features, masked-language logits) of the stand-in model that the notes describe."""
    tokens = torch.tanh(F.linear(a["image_input"], w["visual_encoder.p.weight"], w["visual_encoder.p.bias"]))
    table = w["text_mlm_encoder.emb.weight"]
    words = torch.tanh(table[a["text_ids"]])
    fused = torch.tanh(table[a["masked_ids"]] + F.linear(tokens, w["text_mlm_encoder.img.weight"])[:, None])
    return (
        F.linear(tokens, w["vision_proj.weight"], w["vision_proj.bias"]),
        F.linear(words.mean(1), w["text_proj.weight"], w["text_proj.bias"]),
        F.linear(fused, w["text_mlm_encoder.out.weight"], w["text_mlm_encoder.out.bias"]),
    )


def in_batch(v: Tensor, t: Tensor, tau: float) -> Tensor:
    logits = F.normalize(v) @ F.normalize(t).T / tau
    targets = torch.arange(len(v))
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


@pytest.mark.parametrize("name", ["ita", "cmc"])
def test_components(name: str) -> None:
    a = arrays("components_f64")
    v, t = (a[f"student_{kind}_feat_raw"].clone().requires_grad_() for kind in ("image", "text"))
    tau = float(a["tau"])
    if name == "ita":
        loss = in_batch(v, t, tau)
    else:
        momentum = (a[f"momentum_{kind}_feat_raw"] for kind in ("image", "text"))
        loss = momentum_contrast_loss(v, t, *momentum, a["image_queue"], a["text_queue"], temperature=tau)
    loss.backward()
    close(loss, a[f"loss_{name}"])
    close(v.grad, a[f"grad_image_{name}"])
    close(t.grad, a[f"grad_text_{name}"])


def step(a: dict[str, Tensor], kind: str) -> dict[str, Any]:
    """One step by the notes: ``finetune``, ``ctp_init`` (the first task) or ``ctp`` (the later ones)."""
    tau = float(a["temp"])
    student = {n: w.clone().requires_grad_() for n, w in weights(a, "student").items()}
    momentum = {n: w.clone() for n, w in weights(a, "momentum_before").items()}
    queues, pointer = [a[f"{name}_queue_before"].clone() for name in ("image", "text")], int(a["queue_ptr_before"])
    v, t, logits = encode(student, a)
    for x in (v, t, logits):
        x.retain_grad()
    ita = in_batch(v, t, tau)
    mlm = F.cross_entropy(logits.flatten(0, 1), a["mlm_labels"].flatten(), ignore_index=-100)
    extra: dict[str, Tensor] = {}
    if kind != "finetune":
        first = kind == "ctp_init"
        previous = None if first else weights(a, "reference")
        live = {n: w.detach() for n, w in student.items()}
        compatible_momentum(momentum, live, previous, decay=0.995 if first else 0.9, alpha=0.0 if first else 0.5)
        vm, tm, theirs = encode(momentum, a)
        cmc = momentum_contrast_loss(v, t, vm, tm, *queues, temperature=tau)
        masked = a["mlm_labels"] != -100
        extra = {"ita_dis": cmc, "mlm_dis": distillation_loss(theirs[masked], logits[masked], temperature=1.0)}
        if not first:
            reference = encode(weights(a, "reference"), a)
            extra["ita_dis"] = cmc + sum(topology_preservation_loss(v, t, *reference[:2], temperature=tau))
        pointers = [update_queue(queue, x, pointer) for queue, x in zip(queues, (vm, tm), strict=True)]
        assert pointers[0] == pointers[1]
        pointer = pointers[0]
    total = ita + mlm + sum(extra.values())
    total.backward()
    if kind == "ctp_init":  # there the distillation is part of the two losses
        ita, mlm, extra = ita + extra["ita_dis"], mlm + extra["mlm_dis"], {}
    return {
        "losses": {"ita": ita, "mlm": mlm, "total": total, **extra},
        "grads": {n: w.grad for n, w in student.items()},
        "outputs": (v, t, logits),
        "momentum": momentum,
        "queues": queues,
        "pointer": pointer,
    }


@pytest.mark.parametrize("kind", ["ctp_init", "finetune"])
def test_a_whole_step(kind: str) -> None:
    a = arrays(f"{kind}_step")
    found = step(a, kind)
    for name, value in found["losses"].items():
        close(value, a[f"loss_{name}"])
    v, t, logits = found["outputs"]
    for value, name in ((v, "image_feat_raw"), (t, "text_feat_raw"), (logits, "mlm_logits")):
        close(value, a[f"student_{name}"])
        close(value.grad, a[f"grad_{name}"])
    for name, gradient in found["grads"].items():
        close(gradient, a[f"grad.{name}"])
    for name, value in found["momentum"].items():
        close(value, a[f"momentum_after.{name}"])
    for kind_of, queue in zip(("image", "text"), found["queues"], strict=True):
        close(queue, a[f"{kind_of}_queue_after"])
    assert found["pointer"] == int(a["queue_ptr_after"])


def test_the_losses_of_a_later_step_are_the_components() -> None:
    """The step of later tasks, whose arrays are not here, out of the parts that are."""
    a = arrays("ctp_init_step")
    found = step(a, "ctp")
    v, t, _ = found["outputs"]
    assert found["losses"]["total"] > found["losses"]["ita"] + found["losses"]["mlm"]
    before, student, previous = (
        weights(a, n)["vision_proj.weight"] for n in ("momentum_before", "student", "reference")
    )
    close(found["momentum"]["vision_proj.weight"], 0.9 * before + 0.05 * student + 0.05 * previous)
    assert torch.equal(found["queues"][0][:, :12], a["image_queue_before"][:, :12])
    close(found["queues"][0][:, 12:], F.normalize(encode(found["momentum"], a)[0]).T)
    assert found["pointer"] == 0 and v.grad.isfinite().all() and t.grad.isfinite().all()


def test_the_baseline_over_feature_values() -> None:
    """LwF as the notes have it: KL of the raw features' softmax, averaged over rows."""
    a = arrays("components_f64")
    reference, student = a["reference_image_feat_raw"], a["student_image_feat_raw"].clone().requires_grad_()
    p, q = ((x / 0.07).softmax(1) for x in (reference, student))
    expected = (p * (p.log() - q.log())).nansum(1).mean()
    close(divergence_loss(reference, student, temperature=0.07), expected.detach())


def test_queue_goes_round() -> None:
    queue = torch.zeros(2, 5)
    pointer = 0
    for i in range(4):
        pointer = update_queue(queue, torch.tensor([[1.0 + i, 0.0], [0.0, 1.0 + i], [-1.0, 0.0]]), pointer)
        assert pointer == 3 * (i + 1) % 5
    assert queue.tolist() == [[0.0, -1.0, 0.0, -1.0, 1.0], [1.0, 0.0, 1.0, 0.0, 0.0]]


def test_a_feature_of_length_0_stays_0() -> None:
    v, t, vm, tm = torch.randn(4, 3, 2, dtype=torch.float64).unbind()
    vm[1] = 0
    queues = [F.normalize(torch.randn(2, 4, dtype=torch.float64), dim=0) for _ in range(2)]
    targets = torch.arange(3)
    logits = [
        F.normalize(a) @ torch.cat([F.normalize(b).T, q], 1) for a, b, q in ((v, tm, queues[1]), (t, vm, queues[0]))
    ]
    expected = sum(F.cross_entropy(x / 0.07, targets) for x in logits) / 2
    close(momentum_contrast_loss(v, t, vm, tm, *queues, temperature=0.07), torch.as_tensor(expected))
    update_queue(queues[0], vm, 1)
    assert queues[0].isfinite().all() and (queues[0][:, 2] == 0).all()


def test_only_the_student_receives_a_gradient_and_half_precision_is_widened() -> None:
    features = [torch.randn(4, 8, requires_grad=True) for _ in range(4)]
    queues = [F.normalize(torch.randn(8, 6), dim=0) for _ in range(2)]
    loss = momentum_contrast_loss(*features, *queues, temperature=0.07)
    loss.backward()
    assert [f.grad is not None for f in features] == [True, True, False, False]
    half = momentum_contrast_loss(*(f.detach().bfloat16() for f in features), *queues, temperature=0.07)
    assert half.dtype == torch.float32 and half.isfinite()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(momentum_contrast_loss(*features, *queues, temperature=0.07), loss)


def test_momentum_of_the_first_task_is_a_plain_average() -> None:
    student, previous = {"w": torch.ones(3), "n": torch.tensor(4)}, {"w": torch.full((3,), 5.0), "n": torch.tensor(2)}
    for found in (
        compatible_momentum({"w": torch.zeros(3), "n": torch.tensor(0)}, student, None, decay=0.75, alpha=0.5),
        compatible_momentum({"w": torch.zeros(3), "n": torch.tensor(0)}, student, previous, decay=0.75, alpha=0.0),
    ):
        assert found["w"].tolist() == [0.25] * 3 and found["n"] == 4


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x, q: momentum_contrast_loss(x, x, x, x, q, q, temperature=0.0), "temperature must be above 0"),
        (lambda x, q: momentum_contrast_loss(x, x, x, x[:2], q, q, temperature=1.0), "momentum_text_features"),
        (lambda x, q: momentum_contrast_loss(x, x, x, x, q, q[:2], temperature=1.0), "text_queue has shape"),
        (lambda x, q: update_queue(q, torch.zeros(9, 3), 0), r"\(3, 8\) does not take"),
        (lambda x, q: update_queue(q, x, 8), "pointer 8"),
        (lambda x, q: compatible_momentum({}, {}, {}, decay=0.5, alpha=2.0), "alpha must be"),
        (lambda x, q: compatible_momentum({"w": x}, {"w": x[:2]}, {"w": x[:2]}, decay=0.5, alpha=0.5), "'w' has shape"),
    ],
)
def test_errors(call: Any, words: str) -> None:
    with pytest.raises(MmclError, match=words):
        call(torch.randn(4, 3), F.normalize(torch.randn(3, 8), dim=0))
