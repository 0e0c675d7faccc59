"""Projections of a gradient that keep it from raising the loss on earlier tasks, to first order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mmcl.errors import MmclError
from mmcl.functional._precision import no_autocast, widen

_TOLERANCE = 1e-12
_NEAR, _FAR = 32, 120
"""Exponents of 2: magnitudes whose squares float32 holds, and those that it holds itself."""


def flatten(tensors: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """(P,) all values under `names`, one after another, in float32 or wider.

    >>> flatten({"a": torch.ones(2, 1), "b": torch.zeros(1)}, ["b", "a"]).tolist()
    [0.0, 1.0, 1.0]
    """
    return torch.cat([tensor.reshape(-1) for tensor in widen(*(tensors[name] for name in names))])


@torch.no_grad()
def agem_projection(gradient: Tensor, reference: Tensor) -> Tensor:
    """Averaged gradient episodic memory (Chaudhry et al., ICLR 2019): g - (g . r / r . r) r where g . r < 0, else g.

    Args:
        gradient: (P,) of the task's loss.
        reference: (P,) of the loss on the memory.

    Returns:
        (P,); its product with the reference is not negative. The gradient itself where a value is not finite.

    Raises:
        MmclError: the two are no vectors of one length.

    >>> agem_projection(torch.tensor([1.0, -1.0]), torch.tensor([0.0, 2.0])).tolist()
    [1.0, 0.0]
    """
    if gradient.dim() != 1 or gradient.shape != reference.shape:
        raise MmclError(f"expected two vectors of one length, got {tuple(gradient.shape)} and {tuple(reference.shape)}")
    own, other = widen(gradient, reference)
    (other,), _ = _in_range(other[None])
    with no_autocast(own):
        product, length = own @ other, other @ other
    if not product < 0 or not product.isfinite():
        return gradient
    projected: Tensor = own - product / length * other
    return projected.to(gradient.dtype)


@torch.no_grad()
def gem_projection(gradient: Tensor, memories: Tensor, *, margin: float = 0.0, eps: float = 0.0) -> Tensor:
    """Gradient episodic memory (Lopez-Paz & Ranzato, NeurIPS 2017): the nearest gradient that harms no memory.

    min |x - g|^2 subject to M x >= 0 has the solution x = g + M^T v, where v solves the dual problem over the memories,
    min 1/2 v^T (M M^T + eps I) v + (M g)^T v subject to v >= margin. That one is small and is solved exactly, by an
    active set. Where g harms no memory it is returned as it is, as in the published code.

    Args:
        gradient: (P,) g, of the task's loss.
        memories: (T, P) M, gradients of the loss on the memory of each earlier task.
        margin: least value of each v: above 0 the gradient leans towards the memories. The published code's default is
            0.5.
        eps: added to the diagonal of M M^T; the published code uses 1e-3.

    Returns:
        (P,). The gradient itself where a value is not finite, as in a step that a gradient scaler is going to skip.

    Raises:
        MmclError: shapes do not fit, or `margin` or `eps` is negative.

    >>> gem_projection(torch.tensor([-1.0, -1.0, 2.0]), torch.eye(3)[:2]).tolist()
    [0.0, 0.0, 2.0]
    """
    if gradient.dim() != 1 or memories.dim() != 2 or memories.shape[1:] != gradient.shape:
        raise MmclError(
            f"expected a (P,) gradient and (T, P) memories, got {tuple(gradient.shape)}, {tuple(memories.shape)}"
        )
    if margin < 0 or eps < 0:
        raise MmclError(f"margin and eps must be 0 or more, got {margin} and {eps}")
    own, others = widen(gradient, memories)
    others, sizes = _in_range(others)
    with no_autocast(own):
        products, gram = sizes * (others @ own).double(), sizes[:, None] * sizes * (others @ others.T).double()
        if not (products < 0).any() or not (products.isfinite().all() and gram.isfinite().all()):
            return gradient
        gram = gram + eps * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        # v = u + margin with u >= 0
        factors = margin + non_negative_minimum(gram, products + margin * gram.sum(1))
        return (own + (factors * sizes).to(own.dtype) @ others).to(gradient.dtype)


def _in_range(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows whose squares neither vanish nor overflow, and (T,) powers of two, in float64, that make the given ones.

    A memory that is all but solved has gradients of 1e-23, whose square float32 takes for 0.
    """
    exponents = torch.frexp(torch.linalg.vector_norm(rows, torch.inf, dim=1)).exponent.clamp(-_FAR, _FAR)
    exponents = exponents.where(exponents.abs() > _NEAR, 0)
    if exponents.any():
        rows = rows * torch.exp2(-exponents.to(rows))[:, None]
    return rows, torch.exp2(exponents.double())


def non_negative_minimum(matrix: Tensor, linear: Tensor) -> Tensor:
    """Where 1/2 u^T A u + b^T u is least over u >= 0, by the active set of Lawson & Hanson (1974).

    Args:
        matrix: (T, T) A, symmetric and positive semidefinite: a Gram matrix.
        linear: (T,) b, in the range of A, as it is where b = M g for A = M M^T.

    Returns:
        (T,) in float64. The optimality conditions hold to its rounding.

    >>> non_negative_minimum(torch.eye(2), torch.tensor([-3.0, 1.0])).tolist()
    [3.0, 0.0]
    """
    a, b = matrix.double().cpu(), linear.double().cpu()
    scale = a.diagonal().clamp(min=torch.finfo(a.dtype).tiny).sqrt()
    a, b = a / scale / scale[:, None], b / scale  # one length for all, so that one tolerance serves
    found = torch.zeros_like(b)
    free = torch.zeros(len(b), dtype=torch.bool)
    least = _TOLERANCE * float(b.abs().max()) if len(b) else 0.0
    for _ in range(3 * len(b)):
        descent = (-(a @ found) - b).masked_fill(free, -torch.inf)
        if not len(b) or descent.max() <= least:
            break
        free[descent.argmax()] = True
        while free.any():
            target = torch.zeros_like(b)
            target[free] = torch.linalg.lstsq(a[free][:, free], -b[free, None], driver="gelsd").solution[:, 0]
            if (target[free] > 0).all():
                found = target
                break
            falling = free & (target <= 0)
            steps = (found[falling] / (found[falling] - target[falling])).nan_to_num(0.0)
            found = found + steps.min() * (target - found)
            free &= found > _TOLERANCE * found.abs().max()
            found[~free] = 0.0
    return (found / scale).to(matrix.device)
