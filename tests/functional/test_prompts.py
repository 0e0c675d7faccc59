"""Prompt pools against the parity arrays, with gradients; layouts, votes, orthogonal starts and errors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mmcl.functional import (
    coda_prompt,
    key_pull_loss,
    orthogonality_penalty,
    prefix_attention,
    select_prompts,
)
from mmcl.functional.prompts import (
    coda_weights,
    domain_distances,
    gather_prefixes,
    gather_prompts,
    gram_schmidt,
    key_similarities,
    language_guidance_loss,
    prompt_query,
    split_prefix,
    unit_rows,
    vote_prompts,
)
from mmcl.functional.selection import k_means

PARITY = Path(__file__).parents[1] / "parity"


def arrays(name: str) -> dict[str, Tensor]:
    with np.load(PARITY / name) as data:
        return {key: torch.from_numpy(np.array(data[key])) for key in data.files}


def close(actual: Tensor | None, expected: Tensor) -> None:
    assert actual is not None
    torch.testing.assert_close(actual.detach(), expected, rtol=1e-9, atol=1e-12)


def leaves(a: dict[str, Tensor], *names: str) -> list[Tensor]:
    return [a[name].clone().requires_grad_() for name in names]


# -- L2P --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pool_per_sample", "pool_masked_task1", "pool_key_mean"])
def test_pools_of_l2p(name: str) -> None:
    a = arrays(f"l2p/{name}.npz")
    prompt, patches, key = leaves(a, "prompt", "x_embed", "prompt_key")
    mean_key = "cls_features" not in a
    cls = None if mean_key else a["cls_features"].clone().requires_grad_()
    kinds = ("mean", "max", "mean_max") if mean_key else ("cls",)
    fits = [k for k in kinds if torch.allclose(unit_rows(prompt_query(patches, cls, kind=k)), a["x_embed_norm"])]  # type: ignore[arg-type]
    assert len(fits) == 1, "the query is one of the kinds"
    query = prompt_query(patches, cls, kind=fits[0])  # type: ignore[arg-type]
    close(key_similarities(query, key), a["similarity"])
    close(unit_rows(key), a["prompt_norm"])
    indices = a["prompt_mask"] if "prompt_mask" in a else select_prompts(query, key, int(a["top_k"]))
    assert torch.equal(indices, a["prompt_idx"])
    close(unit_rows(key[indices]), a["selected_key"])
    pull = key_pull_loss(query, key[indices])
    close(-pull, a["reduce_sim"])
    prompted = torch.cat([gather_prompts(prompt, indices), patches], dim=1)
    close(prompted, a["prompted_embedding"])
    loss = (prompted * a["cotangent"]).sum() + a["coeff"] * pull
    close(loss, a["loss"])
    loss.backward()
    for leaf, wanted in ((prompt, "grad_prompt"), (patches, "grad_x_embed"), (key, "grad_prompt_key")):
        close(leaf.grad, a[wanted])
    if cls is not None:
        close(cls.grad, a["grad_cls_features"])


def test_keys_may_be_means_of_prompts() -> None:
    """Then the pull trains the prompts."""
    a = arrays("l2p/pool_key_mean.npz")
    (prompt,) = leaves(a, "prompt")
    query = a["x_embed"].mean(1)
    key_pull_loss(query, prompt.mean(1)[a["prompt_idx"]]).backward()
    assert prompt.grad is not None and prompt.grad.abs().sum() > 0


def test_queries() -> None:
    patches, cls = torch.randn(2, 3, 4), torch.randn(2, 4)
    assert prompt_query(patches, cls) is cls
    close(prompt_query(patches, kind="mean"), patches.mean(1))
    close(prompt_query(patches, kind="max"), patches.max(1).values)
    close(prompt_query(patches, kind="mean_max"), patches.max(1).values + 2 * patches.mean(1))
    with pytest.raises(ValueError, match="needs the pooled features"):
        prompt_query(patches)
    with pytest.raises(ValueError, match="kind 'sum' of a query is unknown"):
        prompt_query(patches, cls, kind="sum")  # type: ignore[arg-type]


def test_selection_is_by_cosine_and_equal_keys_come_in_order() -> None:
    keys = torch.tensor([[1.0, 0.0], [5.0, 5.0], [1.0, 0.0], [-1.0, 0.0]])
    assert select_prompts(torch.tensor([[2.0, 0.0]]), keys, 4).tolist() == [[0, 2, 1, 3]]
    for top_k in (0, 5):
        with pytest.raises(ValueError, match="the pool has 4 keys"):
            select_prompts(torch.ones(1, 2), keys, top_k)


def test_rare_prompts_are_preferred() -> None:
    keys = torch.tensor([[1.0, 0.1], [1.0, 0.5]])
    query = torch.tensor([[1.0, 0.0]])
    assert select_prompts(query, keys, 1).item() == 0
    assert select_prompts(query, keys, 1, frequency=torch.tensor([0.99, 0.01])).item() == 1


def test_votes() -> None:
    indices = torch.tensor([[0, 3], [3, 1], [1, 2]])
    assert vote_prompts(indices, 5).tolist() == [[1, 3]] * 3  # both twice: the smaller number first


def test_the_pull_in_other_forms() -> None:
    query, keys = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    cosines = torch.cosine_similarity(query, keys)
    close(key_pull_loss(query, keys), -cosines.mean())
    torch.testing.assert_close(key_pull_loss(query, keys, distance=True, reduction="sum"), (1 - cosines).sum())
    half = key_pull_loss(query.bfloat16(), keys.bfloat16())
    assert half.dtype == torch.float32


# -- DualPrompt -------------------------------------------------------------------------------------------------------


def test_experts_of_dualprompt() -> None:
    a = arrays("dualprompt/eprompt_prefix_top1.npz")
    query, key = leaves(a, "cls_features", "prompt_key")
    close(key_similarities(query, key), a["similarity"])
    indices = select_prompts(query, key, int(a["top_k"]))
    assert torch.equal(indices, a["prompt_idx"])
    loss = a["coeff"] * key_pull_loss(query, key[indices])
    close(loss, a["key_loss"])
    loss.backward()
    close(key.grad, a["grad_prompt_key"])
    close(query.grad, a["grad_cls_features"])
    close(gather_prefixes(a["prompt"], indices), a["batched_prompt_intended"])


def test_the_port_mixes_keys_with_values() -> None:
    """Its layout is a reshape where a permutation belongs; with one sample in the batch both are the same."""
    a = arrays("dualprompt/eprompt_prefix_top1.npz")
    gathered = a["prompt"][:, :, a["prompt_idx"]]  # (layers, 2, B, k, L, H, C)
    layers, _, rows, k, length, heads, size = gathered.shape
    reshaped = gathered.reshape(layers, rows, 2, k * length, heads, size)
    close(reshaped, a["batched_prompt_ported_code"])
    assert not torch.allclose(reshaped, gather_prefixes(a["prompt"], a["prompt_idx"]))
    one = a["prompt_idx"][:1]
    alone = a["prompt"][:, :, one].reshape(layers, 1, 2, k * length, heads, size)
    close(gather_prefixes(a["prompt"], one), alone)


def attention(a: dict[str, Tensor], x: Tensor, prefix: tuple[Tensor, Tensor] | None, weights: list[Tensor]) -> Tensor:
    heads = int(a["num_heads"])
    qkv_weight, qkv_bias, proj_weight, proj_bias = weights
    packed = torch.nn.functional.linear(x, qkv_weight, qkv_bias).chunk(3, dim=-1)
    q, k, v = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in packed)
    none = x.new_zeros(len(x), 0, x.shape[2])
    y = prefix_attention(q, k, v, *(prefix or (none, none)))
    return torch.nn.functional.linear(y.transpose(1, 2).flatten(2), proj_weight, proj_bias)


WEIGHTS = ("qkv.weight", "qkv.bias", "proj.weight", "proj.bias")


@pytest.mark.parametrize("layout", ["heads", "joined"])
def test_attention_with_a_prefix(layout: str) -> None:
    a = arrays("dualprompt/prefix_attention_a.npz")
    x, prompt, *weights = leaves(a, "x", "prompt", *(f"param.{name}" for name in WEIGHTS))
    keys, values = prompt[:, 0], prompt[:, 1]  # (B, L, H, C)
    if layout == "heads":
        prefix = keys.transpose(1, 2), values.transpose(1, 2)
    else:
        prefix = keys.flatten(2), values.flatten(2)
    y = attention(a, x, prefix, weights)
    close(y, a["y"])
    close(attention(a, x, None, weights), a["y_without_prompt"])
    (y * a["cotangent"]).sum().backward()
    close(x.grad, a["grad_x"])
    close(prompt.grad, a["grad_prompt"])
    for name, weight in zip(WEIGHTS, weights, strict=True):
        close(weight.grad, a[f"grad.{name}"])


def test_prefixes_that_do_not_fit() -> None:
    q = torch.zeros(2, 3, 4, 5)
    for shape in ((2, 6, 3, 5), (1, 3, 6, 5), (2, 6, 14), (3, 6, 5)):
        with pytest.raises(ValueError, match="a prefix of shape"):
            prefix_attention(q, q, q, torch.zeros(shape), torch.zeros(shape))
    with pytest.raises(ValueError, match="prefixes of 1 keys and 2 values"):
        prefix_attention(q, q, q, torch.zeros(2, 1, 15), torch.zeros(2, 2, 15))


# -- CODA-Prompt ------------------------------------------------------------------------------------------------------


def test_assembled_prompts() -> None:
    a = arrays("coda_prompt/assemble_task0_train.npz")
    query, keys, attend, prompts = leaves(a, "query", "e_k", "e_a", "e_p")
    used = (int(a["task"]) + 1) * len(keys) // int(a["n_tasks"])
    close(coda_weights(query, attend[:used], keys[:used]), a["weights"])
    prefix_k, prefix_v = split_prefix(coda_prompt(query, attend[:used], keys[:used], prompts[:used]))
    close(prefix_k, a["ek"])
    close(prefix_v, a["ev"])
    ortho = a["mu"] * sum(orthogonality_penalty(rows[:used]) for rows in (keys, attend, prompts))
    close(ortho, a["ortho_loss"])
    loss = (prefix_k * a["cotangent_k"]).sum() + (prefix_v * a["cotangent_v"]).sum() + ortho
    close(loss, a["objective"])
    loss.backward()
    for leaf, name in ((query, "query"), (keys, "e_k"), (attend, "e_a"), (prompts, "e_p")):
        close(leaf.grad, a[f"grad_{name}"])


def test_orthogonality() -> None:
    a = arrays("coda_prompt/ortho_penalty.npz")
    (rows,) = leaves(a, "t")
    loss = orthogonality_penalty(rows)
    close(loss, a["loss"])
    loss.backward()
    close(rows.grad, a["grad"])


def test_attention_with_assembled_prefixes() -> None:
    a = arrays("coda_prompt/prefix_attention.npz")
    x, pk, pv, *weights = leaves(a, "x", "pk", "pv", *(f"param.{name}" for name in WEIGHTS))
    y = attention(a, x, (pk, pv), weights)
    close(y, a["y"])
    (y * a["cotangent"]).sum().backward()
    for leaf, name in ((x, "grad_x"), (pk, "grad_pk"), (pv, "grad_pv")):
        close(leaf.grad, a[name])
    for name, weight in zip(WEIGHTS, weights, strict=True):
        close(weight.grad, a[f"grad.{name}"])


def test_gram_schmidt() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(5, 3, 4, generator=generator, dtype=torch.float64)
    first = gram_schmidt(drawn[:0], drawn[:3])
    assert first.shape == (3, 3, 4)
    then = gram_schmidt(3 * first, drawn[3:])  # earlier rows of any length
    rows = torch.cat([first, then]).flatten(1)
    close(rows @ rows.T, torch.eye(5, dtype=torch.float64))
    trained = first + 0.3 * torch.randn(first.shape, generator=generator, dtype=torch.float64)
    after = gram_schmidt(trained, drawn[3:]).flatten(1)
    assert (after @ trained.flatten(1).T).abs().max() > 1e-3, "earlier rows that are no longer orthogonal"
    torch.testing.assert_close(after.norm(dim=1), torch.ones(2, dtype=torch.float64))


def test_gram_schmidt_is_the_classical_process() -> None:
    """Each projection is taken of the drawn row, not of what is left of it: with earlier rows that are not orthogonal
    the two differ."""
    earlier = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]], dtype=torch.float64)
    drawn = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    rest = drawn[0] - earlier[0] * 1.0 - earlier[1] * 1.5
    close(gram_schmidt(earlier, drawn)[0], rest / rest.norm())


def test_more_rows_than_dimensions_are_refused() -> None:
    with pytest.raises(ValueError, match="row 2 lies in the span of the others"):
        gram_schmidt(torch.zeros(0, 2), torch.randn(3, 2, generator=torch.Generator().manual_seed(0)))


# -- S-Prompts, LGCL --------------------------------------------------------------------------------------------------


def test_domains_of_s_prompts() -> None:
    a = arrays("s_prompts/domain_selection.npz")
    distances = domain_distances(a["features"], a["centers"])
    close(distances, a["distance_per_domain"])
    assert torch.equal(distances.argmin(0), a["selected"])


def test_k_means_finds_the_groups() -> None:
    generator = torch.Generator().manual_seed(0)
    middles = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    rows = torch.cat([m + 0.1 * torch.randn(20, 2, generator=generator) for m in middles])
    centres = k_means(rows, 3, generator)
    assert torch.cdist(middles.double(), centres).amin(1).max() < 0.2
    assert k_means(rows[:2], 4, generator).tolist() == rows[[0, 1, 1, 1]].double().tolist()


def test_language_guidance() -> None:
    rows = torch.tensor([[1.0, 0.0]])
    assert language_guidance_loss(rows, rows).item() == pytest.approx(0)
    assert language_guidance_loss(rows, -rows, rows).item() == pytest.approx(3)
    assert language_guidance_loss(rows, rows, torch.zeros(1, 2)).item() == pytest.approx(0)
