"""How sources share a training batch, and what a share will give."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mmcl.errors import MmclError
from mmcl.functional._precision import wider_dtype

_ROUNDING = 1e-9
"""0.29 * 100 is 28.999999999999996: a product this close below an integer is that integer."""


def mixture_counts(batch_size: int, shares: Sequence[float]) -> list[int]:
    """Split a batch over pools: ``floor(batch_size * share)`` each, the remainder one by one in the pools' order.

    The rule of FoMo-in-Flux (Roth et al., NeurIPS 2024). A pool with share 0 receives nothing.

    Args:
        batch_size: samples to split.
        shares: share of each pool, in the order in which the remainder is given; they sum to 1.

    Returns:
        Samples of each pool; they sum to `batch_size`.

    Raises:
        ValueError: `batch_size` or a share is negative, or the shares do not sum to 1.

    Example:
        >>> mixture_counts(512, [0.33, 0.34, 0.33])
        [169, 175, 168]
    """
    if batch_size < 0:
        raise ValueError(f"batch_size {batch_size} is negative")
    if any(share < 0 for share in shares):
        raise ValueError(f"a share is negative: {list(shares)}")
    if abs(math.fsum(shares) - 1.0) > 1e-6:
        raise ValueError(f"shares {list(shares)} sum to {math.fsum(shares):g}; they must sum to 1")
    counts = [math.floor(batch_size * share + _ROUNDING) for share in shares]
    takers = [i for i, share in enumerate(shares) if share > 0]
    remainder = batch_size - sum(counts)
    for i in range(remainder):
        counts[takers[i % len(takers)]] += 1
    return counts


Numbers = Tensor | Sequence[float]


def velocities(losses: Numbers, initial: Numbers, targets: Numbers) -> Tensor:
    """How far each domain still has to go: V_i = clip((l_i - l*_i) / (l0_i - l*_i), 0, 1) (Velocitune, ACL 2025).

    A domain that began at its target, or below, has nowhere to go: V is 0 there.

    Args:
        losses: (N,) l, the current loss of each domain.
        initial: (N,) l0, the loss before training.
        targets: (N,) l*, the loss that is hoped for.

    Returns:
        (N,) in float64, or the tensors' wider type.

    Raises:
        MmclError: the lengths differ.

    >>> velocities([2.0, 3.0, 1.0], [3.0, 3.0, 1.0], [1.0, 2.0, 1.5])
    tensor([0.5000, 1.0000, 0.0000], dtype=torch.float64)
    """
    current, start, goal = _same_length(losses=losses, initial=initial, targets=targets)
    room = start - goal
    share = (current - goal) / torch.where(room > 0, room, torch.ones_like(room))
    return torch.where(room > 0, share.clamp(0, 1), torch.zeros_like(share))


def velocity_weights(weights: Numbers, losses: Numbers, initial: Numbers, targets: Numbers) -> Tensor:
    """New weights of the domains, in favour of the slow ones: w_i <- w_i exp(V_i) / sum_j w_j exp(V_j) (Velocitune).

    Args:
        weights: (N,) the weights so far; the first are equal.
        losses: (N,) current loss of each domain.
        initial: (N,) loss before training.
        targets: (N,) loss that is hoped for; see `velocities`.

    Returns:
        (N,) weights that sum to 1, in float64, or the tensors' wider type.

    Raises:
        MmclError: the lengths differ, or a weight is negative or all are 0.

    >>> velocity_weights([0.5, 0.5], [3.0, 1.0], [3.0, 3.0], [1.0, 1.0])
    tensor([0.7311, 0.2689], dtype=torch.float64)
    """
    old, speed = _same_length(weights=weights, velocities=velocities(losses, initial, targets))
    if bool((old < 0).any()) or not bool(old.sum() > 0):
        raise MmclError(f"velocity_weights: weights {old.tolist()} must be 0 or more, and not all 0")
    grown = old * speed.exp()
    return grown / grown.sum()


def dcpt_law(
    parameters: float,
    tokens: float,
    share: float,
    *,
    E: float,
    A: float,
    B: float,
    C: float,
    alpha: float,
    beta: float,
    gamma: float,
    eta: float,
    epsilon: float = 0.0,
    F: float = 0.0,
    K: float = 1.0,
    mu: float = 1.0,
) -> float:
    """Loss on one corpus of a mixture: E + A / N^alpha + B r^eta / D^beta + C / (r + eps)^gamma (D-CPT law, 2024).

    The law across domains adds F / K^mu, K the learnability of the domain at hand.

    Args:
        parameters: N, of the model.
        tokens: D, that it is trained on.
        share: r, the part of the tokens that is of the corpus whose loss is asked for.
        E: loss that nothing removes.
        A: of the model's size.
        B: of the tokens.
        C: of the share.
        alpha: exponent of N.
        beta: exponent of D.
        gamma: exponent of the share.
        eta: how the share enters the tokens' part.
        epsilon: keeps the last part finite at share 0.
        F: of the domain; 0 leaves its part out.
        K: the domain's learnability, above 0.
        mu: exponent of K.

    Raises:
        MmclError: N, D or K is not above 0, or r + epsilon is not.

    >>> fitted = dict(E=1.0, A=10.0, B=10.0, C=0.5, alpha=0.5, beta=0.5, gamma=1.0, eta=1.0)
    >>> dcpt_law(100.0, 400.0, 0.5, **fitted)
    3.25
    """
    if parameters <= 0 or tokens <= 0 or K <= 0 or share < 0 or share + epsilon <= 0:
        raise MmclError(
            f"dcpt_law: {parameters} parameters, {tokens} tokens and K {K} must be above 0, share {share} 0 or more, "
            f"and it plus epsilon {epsilon} above 0"
        )
    size, data, rest = A / parameters**alpha, B * share**eta / tokens**beta, C / (share + epsilon) ** gamma
    return float(E + size + data + rest + F / K**mu)


def cmr_law(tokens: float, *, b0: float, b1: float, s: float) -> float:
    """The largest share of a domain that keeps the general loss within bounds (CMR, 2024): b0 + b1 T^s, within 0..1.

    Args:
        tokens: T, of continued pretraining.
        b0: where it tends to, with s below 0.
        b1: factor.
        s: exponent.

    Raises:
        MmclError: `tokens` is not above 0.

    >>> cmr_law(16.0, b0=0.4, b1=-0.8, s=-0.5)
    0.2
    """
    if tokens <= 0:
        raise MmclError(f"cmr_law: {tokens} tokens; there must be some")
    return float(min(max(b0 + b1 * tokens**s, 0.0), 1.0))


def _same_length(**numbers: Numbers) -> list[Tensor]:
    """Vectors of one length and one type on one device."""
    given = [
        torch.as_tensor(x) if isinstance(x, Tensor) else torch.tensor(list(x), dtype=torch.float64)
        for x in numbers.values()
    ]
    told = ", ".join(f"{len(x) if x.ndim else 0} {name}" for name, x in zip(numbers, given, strict=True))
    if any(x.ndim != 1 or len(x) != len(given[0]) for x in given):
        raise MmclError(f"expected one number for each domain, got {told}")
    dtype = wider_dtype(*given)
    return [x.detach().to(given[0].device, dtype) for x in given]
