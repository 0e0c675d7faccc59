"""Prompt pools: queries, keys, selection, assembled prompts and prefixes of attention."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcl.functional._precision import no_autocast, widen

QueryKind = Literal["cls", "mean", "max", "mean_max"]
EPS = 1e-12
NO_LENGTH = 1e-8
"""Squared length below which a direction is none."""


def prompt_query(patches: Tensor, cls: Tensor | None = None, *, kind: QueryKind = "cls") -> Tensor:
    """What is compared with the keys of a pool (Wang et al., CVPR 2022: L2P).

    Args:
        patches: (B, N, C) patch embeddings, before positions.
        cls: (B, C) pooled features of the network without prompts, for ``cls``.
        kind: ``cls``; ``mean`` or ``max`` over patches; ``mean_max``, max + 2 mean.

    Returns:
        (B, C).

    Raises:
        ValueError: an unknown kind, or ``cls`` without its features.

    Example:
        >>> prompt_query(torch.tensor([[[1.0], [3.0]]]), kind="mean_max")
        tensor([[7.]])
    """
    if kind == "cls":
        if cls is None:
            raise ValueError("a query of kind 'cls' needs the pooled features")
        return cls
    if kind == "mean":
        return patches.mean(1)
    if kind == "max":
        return patches.amax(1)
    if kind == "mean_max":
        return patches.amax(1) + 2 * patches.mean(1)
    raise ValueError(f"kind '{kind}' of a query is unknown; known: cls, mean, max, mean_max")


def unit_rows(rows: Tensor) -> Tensor:
    """Rows v / sqrt(max(|v|^2, 1e-12)) over the last axis, as L2P and DualPrompt normalise."""
    (rows,) = widen(rows)
    return rows * rows.square().sum(-1, keepdim=True).clamp(min=EPS).rsqrt()


def key_similarities(query: Tensor, keys: Tensor) -> Tensor:
    """(B, P) cosines of queries (B, C) with keys (P, C)."""
    query, keys = widen(query, keys)
    with no_autocast(query):
        return unit_rows(query) @ unit_rows(keys).T


def select_prompts(query: Tensor, keys: Tensor, top_k: int, *, frequency: Tensor | None = None) -> Tensor:
    """The keys nearest to each query by cosine.

    Args:
        query: (B, C).
        keys: (P, C).
        top_k: how many.
        frequency: (P,) how often each prompt was used before; distances 1 - cos are multiplied by it, so that rare
            prompts are preferred (L2P, section 4.2).

    Returns:
        (B, top_k) numbers of keys, the nearest first; of equals the first.

    Raises:
        ValueError: `top_k` is not within 1..P.

    Example:
        >>> select_prompts(torch.tensor([[1.0, 0.1]]), torch.eye(2), 2)
        tensor([[0, 1]])
    """
    if not 1 <= top_k <= len(keys):
        raise ValueError(f"top_k is {top_k}; the pool has {len(keys)} keys")
    score = key_similarities(query, keys)
    if frequency is not None:
        score = (score - 1) * frequency.to(score)
    return score.argsort(dim=1, descending=True, stable=True)[:, :top_k]


def vote_prompts(indices: Tensor, pool_size: int) -> Tensor:
    """The prompts that most rows of a batch chose, for every row.

    Rows then depend on the rest of their batch; in a test whose batches hold one task each, this gives the task away.

    Args:
        indices: (B, k) of `select_prompts`.
        pool_size: P.

    Returns:
        (B, k), the most frequent first; of equals the smaller number.

    Example:
        >>> vote_prompts(torch.tensor([[0], [2], [2]]), 3)
        tensor([[2],
                [2],
                [2]])
    """
    counts = torch.bincount(indices.flatten(), minlength=pool_size)
    order = counts.argsort(descending=True, stable=True)
    return order[: indices.shape[1]].expand_as(indices)


def key_pull_loss(
    query: Tensor, selected_keys: Tensor, *, distance: bool = False, reduction: Literal["mean", "sum"] = "mean"
) -> Tensor:
    """Minus the cosines of queries with their selected keys, summed over the keys of a row.

    Args:
        query: (B, C).
        selected_keys: (B, k, C), or (B, C) for one key each.
        distance: 1 - cos in place of -cos, as the CODA-Prompt repository's DualPrompt has it: another value, the same
            gradient.
        reduction: over rows; that repository sums.

    Returns:
        Scalar.

    Example:
        >>> key_pull_loss(torch.tensor([[2.0, 0.0]]), torch.eye(2)[None])
        tensor(-1.)
    """
    query, selected_keys = widen(query, selected_keys)
    keys = selected_keys[:, None] if selected_keys.dim() == 2 else selected_keys
    similarity = (unit_rows(query)[:, None] * unit_rows(keys)).sum(-1)
    rows = (1 - similarity if distance else -similarity).sum(1)
    return rows.mean() if reduction == "mean" else rows.sum()


def gather_prompts(pool: Tensor, indices: Tensor) -> Tensor:
    """(B, k L, C): prompts of a pool (P, L, C) by their numbers (B, k), one after another in that order."""
    return pool[indices].flatten(1, 2)


def gather_prefixes(pool: Tensor, indices: Tensor) -> Tensor:
    """Prefixes of every layer by their numbers.

    Axes are permuted before they are joined. The PyTorch port of DualPrompt reshapes (layers, 2, B, k, L, ...) to
    (layers, B, 2, k L, ...) as it lies in memory, which mixes keys with values and samples wherever B > 1.

    Args:
        pool: (layers, 2, P, L, ...): of keys and of values.
        indices: (B, k).

    Returns:
        (layers, B, 2, k L, ...).
    """
    return pool[:, :, indices].movedim(2, 1).flatten(3, 4)


def coda_weights(query: Tensor, attention: Tensor, keys: Tensor) -> Tensor:
    """(B, M) cosines of attended queries q * A_m with keys K_m; they may be negative and are no distribution."""
    query, attention, keys = widen(query, attention, keys)
    with no_autocast(query):
        attended = F.normalize(query[:, None] * attention, dim=-1, eps=EPS)
        return torch.einsum("bmc,mc->bm", attended, F.normalize(keys, dim=-1, eps=EPS))


def coda_prompt(query: Tensor, attention: Tensor, keys: Tensor, prompts: Tensor) -> Tensor:
    """Prompts assembled out of components: sum_m cos(q * A_m, K_m) P_m (Smith et al., CVPR 2023: CODA-Prompt).

    Args:
        query: (B, C).
        attention: (M, C).
        keys: (M, C).
        prompts: (M, L, D).

    Returns:
        (B, L, D); `split_prefix` makes keys and values of it.

    Example:
        >>> one = torch.ones(1, 1)
        >>> coda_prompt(one, one, -one, torch.ones(1, 2, 1)).flatten()
        tensor([-1., -1.])
    """
    weights = coda_weights(query, attention, keys)
    with no_autocast(weights):
        return torch.einsum("bm,mld->bld", weights, prompts.to(weights.dtype))


def split_prefix(prompt: Tensor) -> tuple[Tensor, Tensor]:
    """The halves of (B, L, D) prompts: prefixes of keys and of values. An odd row goes to the values."""
    half = prompt.shape[1] // 2
    return prompt[:, :half], prompt[:, half:]


def orthogonality_penalty(rows: Tensor) -> Tensor:
    """The mean of (R R^T - I)^2 over all entries, as CODA-Prompt has it: the mean, so more rows are held less.

    Args:
        rows: (M, ...); further axes are flattened.

    Returns:
        Scalar.

    Example:
        >>> orthogonality_penalty(2 * torch.eye(2))
        tensor(4.5000)
    """
    (rows,) = widen(rows.flatten(1))
    with no_autocast(rows):
        return (rows @ rows.T - torch.eye(len(rows), dtype=rows.dtype, device=rows.device)).square().mean()


def gram_schmidt(previous: Tensor, drawn: Tensor) -> Tensor:
    """New rows of length 1, orthogonal to one another and, as far as they are that among themselves, to earlier rows.

    The classical process: u_k = v_k - sum_{j<k} (<v_k, u_j> / <u_j, u_j>) u_j over the earlier rows as they are and the
    new ones, which are divided by their lengths at the end.

    Args:
        previous: (N, ...) rows that stay as they are; none: (0, ...).
        drawn: (M, ...) at random.

    Returns:
        (M, ...).

    Raises:
        ValueError: a row has no direction of its own: there are more rows than dimensions.

    Example:
        >>> gram_schmidt(torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, 4.0]]))
        tensor([[0., 1.]])
    """
    shape = drawn.shape
    found, (new,) = [*widen(previous.flatten(1))[0]], widen(drawn.flatten(1))
    for vector in new:
        rest = vector
        for row in found:
            rest = rest - (vector @ row) / (row @ row) * row
        if rest @ rest < NO_LENGTH:
            raise ValueError(f"row {len(found)} lies in the span of the others; take fewer rows or more dimensions")
        found.append(rest)
    rows = torch.stack(found[len(previous) :])
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return (rows / lengths).reshape(shape)


def domain_distances(features: Tensor, centers: Tensor) -> Tensor:
    """L1 distance to the nearest centre of each domain (Wang et al., NeurIPS 2022: S-Prompts, as coded).

    Args:
        features: (B, D), normalised like those that the centres are of.
        centers: (domains, K, D).

    Returns:
        (domains, B); the domain of a row is its argmin.
    """
    features, centers = widen(features, centers)
    return torch.stack([torch.cdist(features, own, p=1).amin(1) for own in centers])


def prefix_attention(
    q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, prefix_v: Tensor, *, dropout: float = 0.0
) -> Tensor:
    """Attention over keys and values with prefixes in front; queries and the length of the output stay.

    softmax(q [prefix_k; k]^T / sqrt(C)) [prefix_v; v] for each head.

    Args:
        q: (B, H, N, C), as are k and v: after projection and split into heads.
        k: keys.
        v: values.
        prefix_k: (B, H, L, C), or (B, L, H C) before the split into heads.
        prefix_v: likewise.
        dropout: probability that a weight is dropped.

    Returns:
        (B, H, N, C).

    Raises:
        ValueError: a prefix does not fit.

    Example:
        >>> x = torch.zeros(1, 1, 1, 2)
        >>> prefix_attention(x, x, x, x, torch.ones(1, 1, 1, 2)).flatten()
        tensor([0.5000, 0.5000])
    """
    prefixes = [_heads(prefix, k) for prefix in (prefix_k, prefix_v)]
    if prefixes[0].shape[2] != prefixes[1].shape[2]:
        raise ValueError(f"prefixes of {prefixes[0].shape[2]} keys and {prefixes[1].shape[2]} values")
    keys, values = (torch.cat([p.to(x.dtype), x], dim=2) for p, x in zip(prefixes, (k, v), strict=True))
    found: Tensor = F.scaled_dot_product_attention(q, keys, values, dropout_p=dropout)
    return found


def _heads(prefix: Tensor, like: Tensor) -> Tensor:
    rows, heads, _, size = like.shape
    if prefix.dim() == 3 and (prefix.shape[0], prefix.shape[2]) == (rows, heads * size):
        return prefix.reshape(rows, -1, heads, size).transpose(1, 2)
    if prefix.dim() == 4 and (prefix.shape[0], prefix.shape[1], prefix.shape[3]) == (rows, heads, size):
        return prefix
    raise ValueError(
        f"a prefix of shape {tuple(prefix.shape)} for keys of shape {tuple(like.shape)}; "
        f"it must be ({rows}, {heads}, L, {size}) or ({rows}, L, {heads * size})"
    )


def language_guidance_loss(rows: Tensor, positives: Tensor, negatives: Tensor | None = None) -> Tensor:
    """Mean of 1 - cos(x, own text) + cos(x, an earlier task's text) (Khan et al., ICCV 2023: LGCL).

    Args:
        rows: (B, D).
        positives: (B, D) features of each row's own text.
        negatives: (B, D) features of texts of earlier tasks; None in the first task.

    Returns:
        Scalar.
    """
    rows, positives = widen(rows, positives)
    loss = 1 - F.cosine_similarity(rows, positives, dim=-1)
    if negatives is not None:
        loss = loss + F.cosine_similarity(rows, negatives.to(rows.dtype), dim=-1)
    return loss.mean()
