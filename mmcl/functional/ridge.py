"""Classifiers in closed form: random expansions of features, and ridge regression on what adds up over tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcl.errors import MmclError
from mmcl.functional._precision import no_autocast, widen

RIDGES: tuple[float, ...] = tuple(10.0**power for power in range(-8, 9))
"""The strengths that RanPAC chooses among."""
ROWS = 1024
"""Rows that are expanded at a time, so that an expansion of all samples never exists."""
SPENT = 1e-6
"""Share of the degrees of freedom below which a strength is no candidate of cross-validation: nothing is left over."""


class RidgeFit(NamedTuple):
    """A ridge classifier with the sums that it was solved from.

    Attributes:
        weight: (C, M) float64; rows of classes without a sample are 0.
        gram: (M, M) float64, sum of h h^T over all samples so far.
        cross: (M, C) float64, sum of h y^T with one-hot y.
        ridge: the strength.
        losses: (len(ridges),) mean squared error on the held-out part for each strength; None where it was given.
    """

    weight: Tensor
    gram: Tensor
    cross: Tensor
    ridge: float
    losses: Tensor | None


def random_expansion(features: Tensor, projection: Tensor | None, *, keep: int | None = None) -> Tensor:
    """H = ReLU(x W) (RanPAC; McDonnell et al., NeurIPS 2023), or the largest entries of x W alone (Fly-CL).

    Args:
        features: (N, D).
        projection: (D, M), fixed random numbers; None leaves the features as they are.
        keep: entries of each row that stay, the largest ones with their sign; the others become 0. None: ReLU.

    Returns:
        (N, M) in float32 or the inputs' wider type.

    >>> random_expansion(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0, -1.0], [0.0, 1.0, 0.0]]))
    tensor([[1., 2., 0.]])
    >>> random_expansion(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0, -1.0], [0.0, 1.0, 0.0]]), keep=1)
    tensor([[0., 2., 0.]])
    """
    if projection is None:
        (hidden,) = widen(features)
        return hidden if keep is None else top_activations(hidden, keep)
    x, weight = widen(features, projection)
    with no_autocast(x):
        hidden = x @ weight
    return hidden.relu() if keep is None else top_activations(hidden, keep)


def top_activations(hidden: Tensor, keep: int) -> Tensor:
    """The `keep` largest entries of each row of (N, M), 0 elsewhere: winners take all.

    >>> top_activations(torch.tensor([[3.0, -1.0, 2.0]]), 2)
    tensor([[3., 0., 2.]])
    """
    if not 1 <= keep <= hidden.shape[-1]:
        raise MmclError(f"keep is {keep}; it must be within 1..{hidden.shape[-1]}, the width of the expansion")
    found = hidden.topk(keep, dim=-1)
    return torch.zeros_like(hidden).scatter_(-1, found.indices, found.values)


def sparse_projection(features: int, width: int, connections: int, *, generator: torch.Generator) -> Tensor:
    """(features, width) random matrix whose columns each see `connections` features, with standard normal weights.

    >>> found = sparse_projection(8, 5, 3, generator=torch.Generator().manual_seed(0))
    >>> (found != 0).sum(0)
    tensor([3, 3, 3, 3, 3])
    """
    if not 1 <= connections <= features:
        raise MmclError(f"connections is {connections}; it must be within 1..{features}, the width of the features")
    seen = torch.rand(width, features, generator=generator).topk(connections, dim=1).indices
    weights = torch.randn(width, connections, generator=generator)
    return torch.zeros(width, features).scatter_(1, seen, weights).T.contiguous()


def add_gram(
    gram: Tensor, cross: Tensor, features: Tensor, labels: Tensor, projection: Tensor | None, *, keep: int | None = None
) -> None:
    """G <- G + H^T H and Q <- Q + H^T Y, in place, some rows at a time.

    Args:
        gram: (M, M), float64.
        cross: (M, C), float64.
        features: (N, D).
        labels: (N,) columns of `cross`.
        projection: see `random_expansion`.
        keep: likewise.
    """
    with no_autocast(gram):
        for rows, own in zip(torch.split(features, ROWS), torch.split(labels, ROWS), strict=True):
            hidden = random_expansion(rows, projection, keep=keep).to(gram.dtype)
            gram.addmm_(hidden.T, hidden)
            cross.addmm_(hidden.T, F.one_hot(own.long(), cross.shape[1]).to(cross.dtype))


def solve_ridge(gram: Tensor, cross: Tensor, ridge: float) -> Tensor:
    """(C, M) weights W = ((G + ridge I)^-1 Q)^T.

    >>> solve_ridge(torch.eye(2), torch.tensor([[2.0], [4.0]]), 1.0)
    tensor([[1., 2.]])
    """
    system = gram.clone()
    system.diagonal().add_(ridge)
    with no_autocast(gram):
        solved: Tensor = torch.linalg.solve(system, cross)
    return solved.T.contiguous()


def random_projection_ridge(
    features: Tensor,
    labels: Tensor,
    projection: Tensor | None = None,
    *,
    num_classes: int | None = None,
    gram: Tensor | None = None,
    cross: Tensor | None = None,
    ridge: float | None = None,
    ridges: Sequence[float] = RIDGES,
    fit_share: float = 0.8,
    keep: int | None = None,
) -> RidgeFit:
    """One task of RanPAC (McDonnell et al., NeurIPS 2023): random features, sums over all tasks, ridge regression.

    The strength is the one with the smallest mean squared error on the last part of this task's samples, after a fit
    on the first part; the first of equals. The classifier is then solved from the sums of all samples so far.

    Args:
        features: (N, D) of this task, in an order in which the last part looks like the first.
        labels: (N,) classes, from 0.
        projection: (D, M) fixed random numbers; None takes the features themselves.
        num_classes: C; None takes what labels and `cross` need.
        gram: sum of the tasks before; None in the first.
        cross: likewise; columns of new classes are appended.
        ridge: the strength, where it is not chosen.
        ridges: candidates.
        fit_share: the first part.
        keep: see `random_expansion`.

    Raises:
        MmclError: shapes that do not fit, or too few samples to hold some out.

    >>> x, y = torch.eye(2).repeat(5, 1), torch.arange(2).repeat(5)
    >>> fit = random_projection_ridge(x, y)
    >>> fit.ridge, fit.weight.round(decimals=3).tolist()
    (1e-08, [[1.0, 0.0], [0.0, 1.0]])
    """
    if features.ndim != 2 or labels.shape != features.shape[:1] or not len(labels):
        raise MmclError(f"features {tuple(features.shape)} and labels {tuple(labels.shape)} do not match")
    width = features.shape[1] if projection is None else projection.shape[1]
    before = 0 if cross is None else cross.shape[1]
    classes = max(int(labels.max()) + 1, before) if num_classes is None else num_classes
    if classes <= int(labels.max()) or classes < before:
        raise MmclError(f"num_classes is {classes}, with labels up to {int(labels.max())} and {before} known classes")
    (total, own), losses = (features.new_zeros(width, n, dtype=torch.float64) for n in (width, classes)), None
    if ridge is None:
        held = int(len(features) * fit_share)
        if not 0 < held < len(features):
            raise MmclError(f"{len(features)} samples are too few to hold some out for the choice of the ridge")
        add_gram(total, own, features[:held], labels[:held], projection, keep=keep)
        features, labels = features[held:], labels[held:]
        found = [_error(solve_ridge(total, own, value), features, labels, projection, keep) for value in ridges]
        losses = torch.stack(found)
        ridge = float(ridges[int(losses.argmin())])
    add_gram(total, own, features, labels, projection, keep=keep)
    if gram is not None and cross is not None:
        total += gram
        own[:, :before] += cross
    return RidgeFit(solve_ridge(total, own, ridge), total, own, ridge, losses)


def _error(weight: Tensor, features: Tensor, labels: Tensor, projection: Tensor | None, keep: int | None) -> Tensor:
    total = weight.new_zeros(())
    for rows, own in zip(torch.split(features, ROWS), torch.split(labels, ROWS), strict=True):
        hidden = random_expansion(rows, projection, keep=keep).to(weight.dtype)
        with no_autocast(hidden):
            total += (hidden @ weight.T - F.one_hot(own.long(), len(weight))).square().sum()
    return total / (len(features) * len(weight))


def ridge_logits(
    features: Tensor, weight: Tensor, projection: Tensor | None = None, *, cosine: bool = False, keep: int | None = None
) -> Tensor:
    """(N, C) scores h W^T.

    Args:
        features: (N, D).
        weight: (C, M).
        projection: see `random_expansion`.
        cosine: of normalised h and rows of W, which can change the best class; RanPAC's own repository does not.
        keep: see `random_expansion`.
    """
    hidden, rows = widen(random_expansion(features, projection, keep=keep), weight)
    if cosine:
        hidden, rows = F.normalize(hidden, dim=1), F.normalize(rows, dim=1)
    with no_autocast(hidden):
        return hidden @ rows.T


def cross_validated_ridge(
    gram: Tensor, cross: Tensor, count: int, *, ridges: Sequence[float] = RIDGES
) -> tuple[float, Tensor]:
    """The strength with the smallest generalised cross-validation error (Golub, Heath and Wahba, 1979).

    GCV = (|Y - H W^T|^2 / n) / (1 - tr(S) / n)^2 with the smoother S = H (G + ridge I)^-1 H^T, all of it out of the
    eigenvalues of G: no sample is held out or looked at again.

    Args:
        gram: (M, M) sum of h h^T.
        cross: (M, C) sum of h y^T with one-hot y.
        count: n, samples in the sums; each has one class, so that |Y|^2 is n.
        ridges: candidates.

    Returns:
        The strength, and the error of each candidate; infinite where the fit has used up its degrees of freedom.

    >>> h = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.2, 0.8]], dtype=torch.float64)
    >>> y = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    >>> cross_validated_ridge(h.T @ h, h.T @ y, 4, ridges=(1e-2, 1.0))[0]
    0.01
    """
    with no_autocast(gram):
        values, vectors = torch.linalg.eigh(gram)
        values = values.clamp(min=0)
        energy = (vectors.T @ cross).square().sum(dim=1)
    found = []
    for ridge in ridges:
        shrunk = values / (values + ridge)
        residual = (count - (energy * (values + 2 * ridge) / (values + ridge).square()).sum()).clamp(min=0)
        left = 1 - shrunk.sum() / count
        found.append(residual / count / left.square() if left > SPENT else torch.full_like(left, torch.inf))
    errors = torch.stack(found)
    if not bool(errors.isfinite().any()):
        raise MmclError(f"{count} samples are too few for a ridge by cross-validation; give larger `ridges`")
    return float(ridges[int(errors.argmin())]), errors
