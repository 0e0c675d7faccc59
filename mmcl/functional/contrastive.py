"""Contrast with a momentum model and queues of its features. Gradients reach the student's arguments only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.functional import normalize

from mmcl.errors import MmclError
from mmcl.functional._precision import no_autocast, widen, wider_dtype
from mmcl.functional.averaging import ema

Weights = TypeVar("Weights", bound=Mapping[str, Tensor])


def momentum_contrast_loss(
    student_image_features: Tensor,
    student_text_features: Tensor,
    momentum_image_features: Tensor,
    momentum_text_features: Tensor,
    image_queue: Tensor,
    text_queue: Tensor,
    *,
    temperature: float,
) -> Tensor:
    """Contrast of a batch with a momentum model's features of it and of earlier ones (CTP; Zhu et al., ICCV 2023).

    1/2 [CE(v [t_m^T, text queue] / T) + CE(t [v_m^T, image queue] / T)], features normalised; the target of row i is
    column i, the momentum feature of its own pair, and the mean is over rows.

    Args:
        student_image_features: (B, D).
        student_text_features: (B, D), row i the text of image i.
        momentum_image_features: (B, D) of the momentum model.
        momentum_text_features: (B, D) of the momentum model.
        image_queue: (D, Q), normalised; Q may be 0.
        text_queue: (D, Q), normalised.
        temperature: T, above 0; the paper trains with 0.07.

    Returns:
        A scalar in float32 or the inputs' wider type.

    Raises:
        MmclError: shapes do not fit, or `temperature` is not above 0.

    >>> x, queue = torch.eye(2), torch.zeros(2, 0)
    >>> round(momentum_contrast_loss(x, x, x, x, queue, queue, temperature=1.0).item(), 4)  # log(1 + 1 / e)
    0.3133
    """
    features = {
        "student_image_features": student_image_features,
        "student_text_features": student_text_features,
        "momentum_image_features": momentum_image_features,
        "momentum_text_features": momentum_text_features,
    }
    _check(temperature, features, image_queue, text_queue)
    v, t, vm, tm, images, texts = widen(
        student_image_features,
        student_text_features,
        *(x.detach() for x in (momentum_image_features, momentum_text_features, image_queue, text_queue)),
    )
    with no_autocast(v):
        targets = torch.arange(len(v), device=v.device)
        to_text = normalize(v) @ torch.cat([normalize(tm).T, texts], dim=1) / temperature
        to_image = normalize(t) @ torch.cat([normalize(vm).T, images], dim=1) / temperature
        return (F.cross_entropy(to_text, targets) + F.cross_entropy(to_image, targets)) / 2


def update_queue(queue: Tensor, features: Tensor, pointer: int) -> int:
    """Write a batch of features over the oldest entries of a queue: columns pointer, pointer + 1, ..., modulo Q.

    Args:
        queue: (D, Q), in float32 or wider; written in place.
        features: (B, D) with B at most Q; they are normalised here.
        pointer: where to begin, 0 to Q - 1.

    Returns:
        Where the next batch begins, (pointer + B) mod Q.

    Raises:
        MmclError: shapes do not fit, the batch is larger than the queue, or the pointer lies outside.

    >>> queue = torch.zeros(1, 3)
    >>> update_queue(queue, torch.tensor([[2.0], [-2.0]]), 2), queue
    (1, tensor([[-1.,  0.,  1.]]))
    """
    rows, size = len(features), queue.shape[1]
    if features.ndim != 2 or features.shape[1] != queue.shape[0] or rows > size:
        raise MmclError(f"a queue of shape {tuple(queue.shape)} does not take features {tuple(features.shape)} at once")
    if not 0 <= pointer < size:
        raise MmclError(f"pointer {pointer} lies outside a queue of {size}")
    with torch.no_grad():
        columns = (torch.arange(rows, device=queue.device) + pointer) % size
        queue[:, columns] = normalize(features.detach().to(wider_dtype(features))).T.to(queue)
    return (pointer + rows) % size


def random_queue(width: int, size: int, generator: torch.Generator) -> Tensor:
    """A queue of normalised noise, with which the published code begins: (width, size).

    >>> random_queue(3, 5, torch.Generator().manual_seed(0)).norm(dim=0)
    tensor([1.0000, 1.0000, 1.0000, 1.0000, 1.0000])
    """
    return normalize(torch.randn(size, width, generator=generator)).T.contiguous()


def compatible_momentum(
    momentum: Weights,
    student: Mapping[str, Tensor],
    previous: Mapping[str, Tensor] | None = None,
    *,
    decay: float,
    alpha: float = 0.0,
) -> Weights:
    """The compatible momentum update: M <- m M + (1 - m) [alpha theta_previous + (1 - alpha) theta] (CTP).

    Args:
        momentum: M, in float32 or wider; written in place and returned.
        student: theta, the weights in training.
        previous: the weights before this task; None in the first one, where `alpha` does not count.
        decay: m. The paper has 0.9, and 0.995 in the first task.
        alpha: part of the previous weights. The paper has 0.5.

    Raises:
        MmclError: names or shapes differ, or a number is not within 0..1.

    >>> m, student, previous = ({"w": torch.tensor([x])} for x in (10.0, 0.0, 4.0))
    >>> compatible_momentum(m, student, previous, decay=0.5, alpha=0.5)
    {'w': tensor([6.])}
    """
    if not 0 <= alpha <= 1:
        raise MmclError(f"alpha must be within 0..1, got {alpha}")
    if previous is None or alpha == 0:
        return ema(momentum, student, decay=decay)
    mixed = {
        name: torch.lerp(value.to(momentum[name]), previous[name].to(momentum[name]), alpha)
        if value.is_floating_point() and name in momentum and name in previous
        else value
        for name, value in student.items()
    }
    return ema(momentum, mixed, decay=decay)


def _check(temperature: float, features: Mapping[str, Tensor], *queues: Tensor) -> None:
    if not temperature > 0:
        raise MmclError(f"temperature must be above 0, got {temperature}")
    first = next(iter(features.values()))
    for name, tensor in features.items():
        if tensor.ndim != 2 or 0 in tensor.shape or tensor.shape != first.shape:
            raise MmclError(f"{name} has shape {tuple(tensor.shape)}; all four are (B, D), and B and D above 0")
    for name, queue in zip(("image_queue", "text_queue"), queues, strict=True):
        if queue.ndim != 2 or queue.shape[0] != first.shape[1]:
            raise MmclError(f"{name} has shape {tuple(queue.shape)}, expected ({first.shape[1]}, Q)")
