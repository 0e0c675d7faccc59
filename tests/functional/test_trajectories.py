"""Whole tasks of the ZSCL reference code, run again with torch's AdamW and our functions in float64."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmcl.functional import warmup_cosine, zscl_loss

FOLDER = Path(__file__).parents[1] / "parity" / "zscl"
NAMES = ("visual.weight", "visual.bias", "tok.weight", "tproj.weight")
BASE_RATE, WARMUP, STEPS, SMOOTHING, TEMPERATURE = 3e-2, 2, 8, 0.2, 2.0

Params = dict[str, Tensor]


def encode_image(params: Params, x: Tensor) -> Tensor:
    return F.linear(x, params["visual.weight"], params["visual.bias"])


def encode_text(params: Params, tokens: Tensor) -> Tensor:
    return F.linear(params["tok.weight"][tokens].mean(dim=1), params["tproj.weight"])


def losses_of(step: int, params: Params, a: Params, distill: bool) -> dict[str, Tensor]:
    """The terms of one step; the teacher is the zero-shot model."""
    scale = a["prev.logit_scale"].exp()
    image, text = encode_image(params, a["images"][step % 3]), encode_text(params, a["class_text_tokens"])
    logits = scale * F.normalize(image) @ F.normalize(text).T
    terms = {"ce": F.cross_entropy(logits, a["labels"][step % 3], label_smoothing=SMOOTHING)}
    if distill:
        teacher = {name: a[f"init.{name}"] for name in NAMES}
        reference = a["ref_images"][step % 2]
        terms["i2t"], terms["t2i"] = zscl_loss(
            encode_image(params, reference),
            encode_image(teacher, reference),
            encode_text(teacher, a["ref_text_tokens"]),
            logit_scale=scale,
            temperature=TEMPERATURE,
        )
    return terms


@pytest.mark.parametrize(("run", "distill"), [("traj_finetune", False), ("traj_zscl_feature_only", True)])
def test_trajectory(run: str, distill: bool) -> None:
    with np.load(FOLDER / f"{run}.npz") as data:
        a = {key: torch.from_numpy(data[key].copy()) for key in data.files}
    params = {name: a[f"prev.{name}"].clone().requires_grad_() for name in NAMES}
    optimizer = torch.optim.AdamW(params.values(), lr=BASE_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, STEPS, WARMUP))
    for step in range(STEPS + 1):  # the reference takes one step more than the schedule has, at rate 0
        terms = losses_of(step, params, a, distill)
        loss = sum(terms.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        weights = torch.cat([value.detach().flatten() for value in params.values()])
        torch.testing.assert_close(loss.detach(), a["total_loss_per_step"][step], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(weights, a["traj_params_after_each_step"][step], rtol=1e-9, atol=1e-11)
        if distill:
            torch.testing.assert_close(terms["i2t"].detach(), a["loss_i2t_per_step"][step], rtol=1e-9, atol=1e-12)
    for name, value in params.items():
        torch.testing.assert_close(value.detach(), a[f"saved.{name}"], rtol=1e-9, atol=1e-11)
