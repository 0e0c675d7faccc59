"""Prototypes, random projections and classifier alignment against the parity arrays and against plain definitions."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmcl.errors import MmclError
from mmcl.functional import (
    align_classifier,
    class_gaussians,
    class_means,
    class_sums,
    cosine_face_loss,
    cross_validated_ridge,
    nearest_mean_logits,
    random_expansion,
    random_projection_ridge,
    ridge_logits,
    shifted_means,
    sparse_projection,
    subspace_logits,
    synthesized_means,
)
from mmcl.functional import prototypes as module
from mmcl.functional.alignment import alignment_loss

PARITY = Path(__file__).parents[1] / "parity"
TASKS = range(3)


def arrays(name: str) -> dict[str, Tensor]:
    with np.load(PARITY / name) as data:
        return {key: torch.from_numpy(data[key].copy()) for key in data.files}


def close(actual: Tensor, expected: Tensor, rtol: float = 1e-9) -> None:
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=1e-12)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- class means ----------------------------------------------------------------------------------------------------


def test_nearest_mean_parity() -> None:
    a = arrays("nmc/three_tasks.npz")
    means = torch.empty(0, 6, dtype=torch.float64)
    for t in TASKS:
        means = torch.cat([means, class_means(a[f"task{t}.x"], a[f"task{t}.y"])])
        close(means, a[f"task{t}.prototypes"])
        close(nearest_mean_logits(a["x_test"], means), a[f"task{t}.logits"])


def test_sums_add_up_to_means_over_parts() -> None:
    x, y = draw(20, 3).float(), torch.arange(20) % 3
    halves = [class_sums(x[part], y[part], 4) for part in (slice(7), slice(7, 20))]
    sums, counts = halves[0][0] + halves[1][0], halves[0][1] + halves[1][1]
    assert counts.tolist() == [7, 7, 6, 0] and sums.dtype == torch.float64
    torch.testing.assert_close((sums[:3] / counts[:3, None]).float(), class_means(x, y))
    assert class_means(x, y, classes=[2, 0]).shape == (2, 3)
    with pytest.raises(MmclError, match="class 3 has no samples"):
        class_means(x, y, classes=[3])
    with pytest.raises(MmclError, match=r"features \(20, 3\) and labels \(7,\) do not match"):
        class_means(x, y[:7])


def test_a_mean_of_many_half_precision_rows_is_exact() -> None:
    x = torch.full((4096, 1), 1.0, dtype=torch.bfloat16)
    assert class_means(x, torch.zeros(4096, dtype=torch.int64)).item() == 1.0


# -- RanPAC ---------------------------------------------------------------------------------------------------------


def test_random_projection_parity() -> None:
    a = arrays("ranpac/three_tasks.npz")
    assert module.random_projection_ridge is random_projection_ridge
    classes, gram, cross = int(a["n_classes"]), None, None
    for t in TASKS:
        fit = random_projection_ridge(
            a[f"task{t}.x"], a[f"task{t}.y"], a["W_rand"], num_classes=classes, gram=gram, cross=cross
        )
        gram, cross = fit.gram, fit.cross
        close(gram, a[f"task{t}.G"])
        close(cross, a[f"task{t}.Q"])
        assert fit.losses is not None
        close(fit.losses, a[f"task{t}.ridge_losses"], rtol=1e-8)  # the smallest ridge is ill-conditioned
        assert fit.ridge == float(a[f"task{t}.ridge"])
        seen = 2 * t + 2
        close(fit.weight[:seen], a[f"task{t}.W"])
        assert not fit.weight[seen:].any()
        close(ridge_logits(a["x_test"], fit.weight[:seen], a["W_rand"]), a[f"task{t}.logits_linear"])


def test_a_port_s_cosine_head_changes_answers() -> None:
    """One port normalises features and weights at the prediction, RanPAC's own code does not; the option is there."""
    a = arrays("ranpac/three_tasks.npz")
    for t in TASKS:
        found = ridge_logits(a["x_test"], a[f"task{t}.W"], a["W_rand"], cosine=True)
        close(found, a[f"task{t}.logits_cosine"])
    plain = ridge_logits(a["x_test"], a["task2.W"], a["W_rand"])
    assert int((plain.argmax(1) != a["task2.logits_cosine"].argmax(1)).sum()) == 3


def test_without_a_projection_it_is_ridge_regression() -> None:
    x, y = draw(30, 4), torch.arange(30) % 3
    fit = random_projection_ridge(x, y, ridge=1.0)
    targets = F.one_hot(y).double()
    expected = torch.linalg.inv(x.T @ x + torch.eye(4)) @ x.T @ targets
    close(fit.weight, expected.T)
    assert fit.losses is None and fit.ridge == 1.0
    close(ridge_logits(x, fit.weight), x @ expected)


def test_tasks_one_after_another_are_all_samples_at_once() -> None:
    x, y, w = draw(40, 5), torch.arange(40) % 4, draw(5, 12, seed=1)
    first, second = y < 2, y >= 2
    one = random_projection_ridge(x[first], y[first], w, ridge=0.1)
    two = random_projection_ridge(x[second], y[second], w, ridge=0.1, gram=one.gram, cross=one.cross)
    whole = random_projection_ridge(x, y, w, ridge=0.1)
    close(two.weight, whole.weight)
    assert one.weight.shape == (2, 12) and two.cross.shape == (12, 4)
    with pytest.raises(MmclError, match="num_classes is 3, with labels up to 3"):
        random_projection_ridge(x, y, w, num_classes=3)
    with pytest.raises(MmclError, match="1 samples are too few to hold some out"):
        random_projection_ridge(x[:1], y[:1], w)


def test_the_gram_of_float32_features_is_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, w = draw(40, 5).float(), torch.arange(40) % 4, draw(5, 12, seed=1).float()
    fit = random_projection_ridge(x, y, w)
    assert fit.gram.dtype == fit.weight.dtype == torch.float64
    hidden = (x @ w).relu().double()
    close(fit.gram, hidden.T @ hidden)
    monkeypatch.setattr("mmcl.functional.ridge.ROWS", 7)  # some rows at a time
    cut = random_projection_ridge(x, y, w)
    close(cut.gram, fit.gram, rtol=1e-6)  # the expansion itself is float32
    assert cut.ridge == fit.ridge
    with torch.autocast("cpu", torch.bfloat16):
        same = random_projection_ridge(x, y, w)
        logits = ridge_logits(x, same.weight.float(), w)
    assert torch.equal(same.weight, cut.weight) and logits.dtype == torch.float32
    assert torch.equal(logits, ridge_logits(x, same.weight.float(), w))


# -- Fly-CL ---------------------------------------------------------------------------------------------------------


def test_a_sparse_expansion_keeps_its_largest_entries() -> None:
    w = sparse_projection(10, 50, 4, generator=torch.Generator().manual_seed(3))
    assert w.shape == (10, 50) and (w != 0).sum(0).unique().tolist() == [4]
    assert torch.equal(w, sparse_projection(10, 50, 4, generator=torch.Generator().manual_seed(3)))
    x = draw(6, 10).float()
    h = random_expansion(x, w, keep=7)
    assert (h != 0).sum(1).tolist() == [7] * 6
    plain = x @ w
    for row, whole in zip(h, plain, strict=True):
        torch.testing.assert_close(row[row != 0].sort().values, whole.sort().values[-7:])
    for wrong in (0, 51):
        with pytest.raises(MmclError, match=f"keep is {wrong}"):
            random_expansion(x, w, keep=wrong)
    with pytest.raises(MmclError, match="connections is 11"):
        sparse_projection(10, 50, 11, generator=torch.Generator())


def test_cross_validation_is_the_definition() -> None:
    h, y = draw(30, 6), torch.arange(30) % 3
    targets = F.one_hot(y).double()
    ridge, errors = cross_validated_ridge(h.T @ h, h.T @ targets, 30)
    for i, value in enumerate(10.0**power for power in range(-8, 9)):
        smoother = h @ torch.linalg.inv(h.T @ h + value * torch.eye(6)) @ h.T
        expected = ((targets - smoother @ targets).square().sum() / 30) / (1 - smoother.trace() / 30) ** 2
        close(errors[i], expected, rtol=1e-6)
    assert ridge == 10.0 ** (int(errors.argmin()) - 8)
    wide = draw(4, 9)  # as many degrees of freedom as samples: small ridges are no candidates
    _, errors = cross_validated_ridge(wide.T @ wide, wide.T @ F.one_hot(torch.arange(4) % 2).double(), 4)
    assert errors[0].isinf() and errors[-1].isfinite()
    with pytest.raises(MmclError, match="4 samples are too few for a ridge"):
        cross_validated_ridge(wide.T @ wide, wide.T @ torch.ones(4, 1).double(), 4, ridges=(1e-12,))


# -- SLCA -----------------------------------------------------------------------------------------------------------


def test_class_gaussian_parity() -> None:
    a = arrays("slca/class_statistics.npz")
    features = [a[f"features.class{c}"] for c in range(4)]
    x, y = torch.cat(features), torch.cat([torch.full((len(f),), c) for c, f in enumerate(features)])
    for t, count in enumerate((2, 4)):
        means, covariances = class_gaussians(x, y, classes=range(count))
        close(means, a[f"task{t}.means"])
        close(covariances, a[f"task{t}.covs"])


def test_a_class_of_one_sample_can_be_drawn_from() -> None:
    means, covariances = class_gaussians(draw(1, 3), torch.zeros(1, dtype=torch.int64))
    close(covariances[0], 1e-4 * torch.eye(3, dtype=torch.float64))
    assert torch.linalg.cholesky(covariances).isfinite().all() and means.shape == (1, 3)


def reference_alignment(
    heads: list[torch.nn.Linear], means: Tensor, covariances: Tensor, noise: Tensor, orders: Tensor, tau: float | None
) -> list[list[float]]:
    """The published loop, head by head, with torch's own scheduler and distribution."""
    sizes = [head.out_features for head in heads]
    owner = [t for t, size in enumerate(sizes) for _ in range(size)]
    epochs, count, samples, _ = noise.shape
    parameters = [p for head in heads for p in head.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    losses: list[list[float]] = []
    for epoch in range(epochs):
        drawn = []
        for c in range(count):
            scale = 0.9 + 0.1 * (owner[c] + 1) / len(heads)
            drawn.append(scale * means[c] + noise[epoch, c] @ torch.linalg.cholesky(covariances[c]).T)
        x, y = torch.cat(drawn)[orders[epoch]], torch.arange(count).repeat_interleave(samples)[orders[epoch]]
        losses.append([])
        for i in range(count):
            part = slice(i * samples, (i + 1) * samples)
            each = [head(x[part]) for head in heads]
            logits = torch.cat(each, dim=1)
            if tau is not None:
                norm = torch.stack([o.norm(dim=1) + 1e-7 for o in each], dim=1).mean(dim=1, keepdim=True)
                logits = logits / norm / tau
            loss = F.cross_entropy(logits, y[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
        scheduler.step()
    return losses


@pytest.mark.parametrize("tau", [0.1, None])
def test_alignment_is_the_published_loop(tau: float | None) -> None:
    torch.manual_seed(0)
    heads = [torch.nn.Linear(4, size).double() for size in (2, 3)]
    weight, bias = (torch.cat([getattr(h, name).detach().clone() for h in heads]) for name in ("weight", "bias"))
    means, spread = draw(5, 4), draw(5, 4, 4, seed=1)
    covariances = spread @ spread.transpose(1, 2) + 0.1 * torch.eye(4, dtype=torch.float64)
    noise = draw(3, 5, 16, 4, seed=2)
    orders = torch.stack([torch.randperm(80, generator=torch.Generator().manual_seed(e)) for e in range(3)])
    tasks = torch.tensor([0, 0, 1, 1, 1])
    given = weight.clone()
    aligned, moved, losses = align_classifier(
        weight, bias, means, covariances, tasks, epochs=3, samples=16, temperature=tau, noise=noise, orders=orders
    )
    expected = reference_alignment(heads, means, covariances, noise, orders, tau)
    close(losses, torch.tensor(expected, dtype=torch.float64))
    close(aligned, torch.cat([h.weight.detach() for h in heads]))
    assert moved is not None and torch.equal(weight, given)
    close(moved, torch.cat([h.bias.detach() for h in heads]))


def test_alignment_draws_by_its_generator_and_names_what_it_cannot_draw_from() -> None:
    means, covariances = draw(2, 3), torch.eye(3, dtype=torch.float64).repeat(2, 1, 1)
    weight, tasks = draw(2, 3, seed=5), torch.tensor([0, 1])

    def run(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return align_classifier(weight, None, means, covariances, tasks, epochs=2, samples=8, generator=generator)[
                0
            ]

    assert torch.equal(run(0), run(0)) and not torch.equal(run(0), run(1))
    assert run(0).dtype == torch.float64 and not run(0).requires_grad
    with pytest.raises(MmclError, match="give a generator"):
        align_classifier(weight, None, means, covariances, tasks)
    covariances[1, 0, 0] = -1
    with pytest.raises(MmclError, match="covariance 1 is not positive definite"):
        run(0)


def test_a_class_seen_in_two_tasks_has_two_gaussians_and_one_row() -> None:
    means, covariances = 4 * torch.eye(3).double(), 0.1 * torch.eye(3, dtype=torch.float64).repeat(3, 1, 1)
    weight, _, _ = align_classifier(
        torch.zeros(2, 3).double(), None, means, covariances, torch.tensor([0, 0, 1]),
        labels=torch.tensor([0, 1, 0]), samples=64, epochs=4, generator=torch.Generator().manual_seed(0), lr=0.5,
    )  # fmt: skip
    assert (weight @ means.T).argmax(0).tolist() == [0, 1, 0]


def test_the_normalised_loss_does_not_know_the_scale_of_the_logits() -> None:
    logits, targets = draw(6, 4), torch.arange(6) % 4
    heads = [torch.tensor([0, 1]), torch.tensor([2, 3])]
    one = alignment_loss(logits, targets, heads, temperature=0.1)
    close(alignment_loss(1000 * logits, targets, heads, temperature=0.1), one, rtol=1e-5)


# -- EASE and SSIAT -------------------------------------------------------------------------------------------------


def test_synthesized_means_mix_by_the_softmax_of_cosines() -> None:
    old, new, there = draw(2, 3), draw(4, 3, seed=1), draw(4, 5, seed=2)
    found = synthesized_means(old, new, there)
    for i in range(2):
        cosines = torch.stack([F.cosine_similarity(old[i], row, dim=0) for row in new])
        expected = sum(share * row for share, row in zip(cosines.softmax(0), there, strict=True))
        close(found[i], torch.as_tensor(expected))


def test_subspace_logits_weigh_the_others_little() -> None:
    x, means, own = draw(3, 3, 4), draw(4, 3, 4, seed=1), torch.tensor([0, 0, 1, 2])
    found = subspace_logits(x, means, own, alpha=0.3)
    for n in range(3):
        for c in range(4):
            each = [F.cosine_similarity(x[n, t], means[c, t], dim=0) for t in range(3)]
            others = sum(value for t, value in enumerate(each) if t != own[c])
            close(found[n, c], each[own[c]] + 0.3 / 2 * others)
    single = subspace_logits(x[:, :1], means[:, :1], torch.zeros(4, dtype=torch.int64))
    close(single, nearest_mean_logits(x[:, 0], means[:, 0]))


def test_means_move_with_the_features_near_them() -> None:
    means, before, after = draw(2, 3), draw(10, 3, seed=1), draw(10, 3, seed=2)
    found = shifted_means(means, before, after, sigma=1.5)
    for c in range(2):
        weights = torch.stack([(-(row - means[c]).square().sum() / (2 * 1.5**2)).exp() for row in before])
        close(found[c], means[c] + (weights[:, None] * (after - before)).sum(0) / weights.sum())
    far = shifted_means(means + 1e4, before, after)
    assert far.isfinite().all()


def test_the_cosine_loss_has_scale_and_margin() -> None:
    cosines, targets = draw(5, 3).clamp(-1, 1), torch.arange(5) % 3
    close(cosine_face_loss(cosines, targets), F.cross_entropy(20 * cosines, targets))
    with_margin = cosine_face_loss(cosines, targets, margin=0.2)
    lowered = cosines - 0.2 * F.one_hot(targets, 3).double()
    close(with_margin, F.cross_entropy(20 * lowered, targets))
