"""A classifier trained again on features drawn from each class's Gaussian.

>>> means, spread = torch.eye(2) * 4, torch.eye(2).repeat(2, 1, 1) * 0.01
>>> weight, bias, losses = align_classifier(
...     torch.zeros(2, 2), None, means, spread, torch.tensor([0, 1]), generator=torch.Generator().manual_seed(0))
>>> losses.shape, (weight @ means.T).argmax(0)
(torch.Size([5, 2]), tensor([0, 1]))
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcl.errors import MmclError
from mmcl.functional._precision import no_autocast, wider_dtype

NORM_EPS = 1e-7


def alignment_loss(logits: Tensor, targets: Tensor, heads: Sequence[Tensor], *, temperature: float | None) -> Tensor:
    """Cross-entropy of logits divided by their mean norm over the tasks' heads (SLCA; Zhang et al., ICCV 2023).

    Args:
        logits: (N, C) of all classes seen.
        targets: (N,).
        heads: for each task the columns of its head.
        temperature: tau; None is plain cross-entropy.

    >>> alignment_loss(torch.tensor([[3.0, 4.0]]), torch.tensor([1]), [torch.tensor([0, 1])], temperature=None)
    tensor(0.3133)
    """
    if temperature is None:
        return F.cross_entropy(logits, targets)
    norms = torch.stack([logits[:, columns].norm(dim=1) + NORM_EPS for columns in heads], dim=1)
    return F.cross_entropy(logits / norms.mean(dim=1, keepdim=True) / temperature, targets)


def align_classifier(
    weight: Tensor,
    bias: Tensor | None,
    means: Tensor,
    covariances: Tensor,
    tasks: Tensor,
    *,
    labels: Tensor | None = None,
    epochs: int = 5,
    samples: int = 256,
    temperature: float | None = 0.1,
    lr: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    orders: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """SLCA's classifier alignment (Zhang et al., ICCV 2023): train all heads on drawn features of all classes.

    In every epoch each Gaussian gives `samples` features s mu + chol(Sigma) eps with s = 0.9 + 0.1 (t + 1) / (T + 1),
    t its task and T the newest; shuffled, they are gone through in batches of `samples`. SGD with cosine annealing over
    the epochs.

    Args:
        weight: (C, D) rows of all classes seen; not written.
        bias: (C,), or None for a head without.
        means: (G, D) of the Gaussians.
        covariances: (G, D, D), positive definite.
        tasks: (G,) the task that each Gaussian was measured in, from 0.
        labels: (G,) their classes; None: Gaussian i is class i. A class is of the head of its first Gaussian's task.
        epochs: the published repository has 5.
        samples: of each Gaussian, and of a batch.
        temperature: tau of `alignment_loss`; None leaves out the normalisation.
        lr: of SGD, at the start.
        momentum: of SGD.
        weight_decay: of SGD.
        generator: draws noise and orders, on the CPU.
        noise: (epochs, G, samples, D), in place of the generator's.
        orders: (epochs, G x samples) permutations, in place of the generator's.

    Returns:
        The new weight and bias, and (epochs, G) losses of the batches.

    Raises:
        MmclError: a covariance that is not positive definite, or neither generator nor noise and orders.
    """
    if generator is None and (noise is None or orders is None):
        raise MmclError("align_classifier draws at random: give a generator, or noise and orders")
    owners = torch.arange(len(means), device=weight.device) if labels is None else labels.to(weight.device)
    gaussians = _gaussians(means, covariances, tasks)
    draw = partial(_drawn, gaussians, owners, samples, generator, noise, orders)
    heads = _heads(owners, tasks)
    given = [weight] if bias is None else [weight, bias]
    with torch.inference_mode(False), torch.enable_grad(), no_autocast(weight):
        trained = [value.detach().to(wider_dtype(weight), copy=True).requires_grad_() for value in given]
        optimizer = torch.optim.SGD(trained, lr=lr, momentum=momentum, weight_decay=weight_decay)
        losses = [_epoch(trained, optimizer, draw(epoch), heads, temperature) for epoch in _annealed(optimizer, epochs)]
    aligned = [value.detach() for value in trained]
    return aligned[0], aligned[1] if bias is not None else None, torch.stack(losses)


def _annealed(optimizer: torch.optim.SGD, epochs: int) -> Iterator[int]:
    """Epoch after epoch, with the rate on a cosine from its value to 0."""
    (group,) = optimizer.param_groups
    lr = group["lr"]
    for epoch in range(epochs):
        group["lr"] = lr * (1 + math.cos(math.pi * epoch / epochs)) / 2
        yield epoch


def _epoch(
    trained: Sequence[Tensor],
    optimizer: torch.optim.SGD,
    batches: Iterable[tuple[Tensor, Tensor]],
    heads: Sequence[Tensor],
    temperature: float | None,
) -> Tensor:
    """Losses of one pass over drawn features."""
    losses = []
    for features, targets in batches:
        logits = F.linear(features.to(trained[0].dtype), *trained)
        loss = alignment_loss(logits, targets, heads, temperature=temperature)
        for value, gradient in zip(trained, torch.autograd.grad(loss, trained), strict=True):
            value.grad = gradient
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def _gaussians(means: Tensor, covariances: Tensor, tasks: Tensor) -> tuple[Tensor, Tensor]:
    """(G, D) centres s mu and (G, D, D) Cholesky factors, in float64."""
    factors: Tensor
    factors, wrong = torch.linalg.cholesky_ex(covariances.double())
    if bool(wrong.any()):
        raise MmclError(f"covariance {int(wrong.nonzero()[0])} is not positive definite; measure it with more jitter")
    scales = 0.9 + 0.1 * (tasks.to(means.device).double() + 1) / (tasks.max() + 1)
    return scales[:, None] * means.double(), factors


def _heads(owners: Tensor, tasks: Tensor) -> list[Tensor]:
    """For each task the classes that it was the first to have."""
    first: dict[int, int] = {}
    for owner, task in zip(owners.tolist(), tasks.tolist(), strict=True):
        first[owner] = min(task, first.get(owner, task))
    groups: dict[int, list[int]] = {}
    for owner in sorted(first):
        groups.setdefault(first[owner], []).append(owner)
    return [torch.tensor(groups[task], device=owners.device) for task in sorted(groups)]


def _drawn(
    gaussians: tuple[Tensor, Tensor],
    owners: Tensor,
    samples: int,
    generator: torch.Generator | None,
    noise: Tensor | None,
    orders: Tensor | None,
    epoch: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of `samples` features and their classes, of all Gaussians, shuffled."""
    found = []
    for i, (centre, factor) in enumerate(zip(*gaussians, strict=True)):
        eps = torch.randn(samples, len(centre), generator=generator) if noise is None else noise[epoch, i]
        found.append(centre + eps.to(factor) @ factor.T)
    features, targets = torch.cat(found), owners.repeat_interleave(samples)
    order = torch.randperm(len(targets), generator=generator) if orders is None else orders[epoch]
    for rows in torch.split(order.to(features.device), samples):
        yield features[rows], targets[rows]
