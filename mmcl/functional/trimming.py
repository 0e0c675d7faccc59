"""Which entries of task vectors stay in a merge, and how those that stay become one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mmcl.errors import MmclError
from mmcl.functional._precision import wider_dtype

Aggregation = Literal["mean", "sum", "max"]
AGGREGATIONS = ("mean", "sum", "max")
SAMPLED = 97
"""Every so many entries are looked at for the bounds of a threshold."""
CHUNK = 1 << 15
"""Entries that are merged at once, so that those of ten models stay in the processor's cache."""


def threshold(tensors: Sequence[Tensor], rank: int) -> Tensor:
    """The `rank`-th smallest magnitude among all entries, from 1; 0 where `rank` is 0, so that everything stays.

    Args:
        tensors: one vector in parts.
        rank: 0 to the number of entries.

    >>> threshold([torch.tensor([-3.0, 1.0]), torch.tensor([2.0])], 2)
    tensor(2.)
    """
    dtype = wider_dtype(*tensors)
    size = sum(t.numel() for t in tensors)
    if rank == 0 or size == 0:
        return torch.zeros((), dtype=dtype, device=tensors[0].device)
    if tensors[0].device.type != "cpu":
        return torch.cat([t.detach().reshape(-1).to(dtype) for t in tensors]).abs_().kthvalue(rank).values
    # numpy selects ten times as fast as torch; and what lies between two bounds is a small part of the whole.
    for low, high in (_bounds(tensors, rank / size, dtype), (0.0, np.inf)):
        below, between = 0, []
        for tensor in tensors:
            for piece in torch.split(tensor.detach().reshape(-1), CHUNK):
                values = np.abs(piece.to(dtype).numpy())
                below += int(np.count_nonzero(values < low))
                between.append(values[(values >= low) & (values <= high)])
        found, place = np.concatenate(between), rank - below
        if 1 <= place <= len(found):
            return torch.tensor(np.partition(found, place - 1)[place - 1], dtype=dtype)
    raise MmclError("a task vector holds values that are not numbers")


def _bounds(tensors: Sequence[Tensor], share: float, dtype: torch.dtype) -> tuple[float, float]:
    """Magnitudes between which that of a share of the entries almost surely lies, by every 97th entry."""
    sample = np.sort(np.abs(np.concatenate([t.detach().reshape(-1)[::SAMPLED].to(dtype).numpy() for t in tensors])))
    last = len(sample) - 1
    middle, width = int(share * last), 6 * math.isqrt(len(sample)) + 1
    return float(sample[max(middle - width, 0)]), float(sample[min(middle + width, last)])


class Pruned(Mapping[str, Tensor]):
    """A task vector that is pruned a tensor at a time, when that is asked for.

    Args:
        vector: a task vector; it may load its tensors when asked.
        prune: (name, tensor) -> what stays of it. It gives the same whenever it is asked.

    >>> dict(Pruned({"w": torch.tensor([1.0, -2.0])}, lambda name, value: value.clamp(min=0)))
    {'w': tensor([1., 0.])}
    """

    def __init__(self, vector: Mapping[str, Tensor], prune: Callable[[str, Tensor], Tensor]) -> None:
        self._vector, self._prune = vector, prune

    def __getitem__(self, name: str) -> Tensor:
        return self._prune(name, self._vector[name])

    def __contains__(self, name: object) -> bool:  # the base class would make the tensor
        return name in self._vector

    def __iter__(self) -> Iterator[str]:
        return iter(self._vector)

    def __len__(self) -> int:
        return len(self._vector)


def dare(vector: Mapping[str, Tensor], density: float, generator: torch.Generator) -> dict[str, Tensor]:
    """Drop entries at random and scale the others up by 1 / density (DARE; Yu et al., ICML 2024).

    Args:
        vector: a task vector.
        density: chance to stay, above 0 and at most 1.
        generator: on the CPU.

    >>> dare({"w": torch.ones(4)}, 0.5, torch.Generator().manual_seed(0))
    {'w': tensor([2., 0., 2., 2.])}
    """
    check_density("dare", density)
    found = {}
    for name, value in vector.items():
        value = value.to(wider_dtype(value))
        stays = torch.rand(value.shape, generator=generator) < density
        found[name] = value * stays.to(value.device) / density
    return found


def breadcrumbs(vector: Mapping[str, Tensor], density: float, *, outliers: float = 0.01) -> dict[str, Tensor]:
    """Of each tensor leave out the largest entries and keep the next ones (Davari & Belilovsky, ECCV 2024).

    With d entries sorted by magnitude, the int(d x outliers) largest and the smallest ones go; int(d x density) of
    those between stay.

    Args:
        vector: a task vector.
        density: part that stays.
        outliers: part at the top that goes. FoMo-in-Flux takes 1 %.

    >>> breadcrumbs({"w": torch.tensor([1.0, -2.0, 3.0, 9.0])}, 0.5, outliers=0.25)
    {'w': tensor([ 0., -2.,  3.,  0.])}
    """
    check_density("breadcrumbs", density)
    if not 0 <= outliers <= 1 - density:
        raise MmclError(f"breadcrumbs: outliers are {outliers}; they and the density {density} are parts of one whole")
    found = {}
    for name, value in vector.items():
        value = value.to(wider_dtype(value))
        flat = value.reshape(-1)
        order = flat.abs().argsort(descending=True, stable=True)
        first = int(len(flat) * outliers)
        stays = order[first : first + int(len(flat) * density)]
        found[name] = torch.zeros_like(flat).scatter_(0, stays, flat[stays]).view(value.shape)
    return found


def layer_scaling(vector: Mapping[str, Tensor], *, alpha: float = 0.5, beta: float = 0.5) -> dict[str, Tensor]:
    """Scale a task vector by depth, so that early layers stay closer to the base (LiNeS; Wang et al., ICLR 2025).

    Block l of L is scaled by alpha + beta x l / (L - 1). The block is the first number in a name, L the count of those
    behind one prefix; what is in no block keeps alpha + beta.

    Args:
        vector: a task vector.
        alpha: scale of the first block.
        beta: how much the last one has beyond it. FoMo-in-Flux takes 0.5 for both.

    >>> layer_scaling({"blocks.0.w": torch.ones(1), "blocks.1.w": torch.ones(1)})
    {'blocks.0.w': tensor([0.5000]), 'blocks.1.w': tensor([1.])}
    """
    places = {name: _block(name) for name in vector}
    depths: dict[str, int] = {}
    for prefix, block in (place for place in places.values() if place is not None):
        depths[prefix] = max(depths.get(prefix, 0), block)
    found = {}
    for name, value in vector.items():
        place = places[name]
        share = 1.0 if place is None else place[1] / max(depths[place[0]], 1)
        found[name] = value.to(wider_dtype(value)) * (alpha + beta * share)
    return found


def _block(name: str) -> tuple[str, int] | None:
    """(what is before the first number of a dotted name, the number)."""
    parts = name.split(".")
    at = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return None if at is None else (".".join(parts[:at]), int(parts[at]))


def check_density(what: str, density: float) -> None:
    """Refuse a density outside (0, 1]."""
    if not 0 < density <= 1:
        raise MmclError(f"{what}: density is {density}; it must be above 0 and at most 1")


def elect_and_merge(
    merged: dict[str, Tensor],
    names: Sequence[str],
    vectors: Sequence[Mapping[str, Tensor]],
    levels: Sequence[Tensor],
    scale: float,
    aggregation: Aggregation,
) -> dict[str, Tensor]:
    """The second half of `mmcl.functional.merging.ties`: add scale x the elected entries to `merged`, in place.

    Args:
        merged: the base, contiguous.
        names: tensors to merge.
        vectors: task vectors, not yet trimmed.
        levels: smallest magnitude that stays in each of them.
        scale: of what is added.
        aggregation: of the entries that agree in their sign.
    """
    if aggregation not in AGGREGATIONS:
        raise MmclError(f"ties: aggregation {aggregation!r} is none of {', '.join(AGGREGATIONS)}")
    balance = 0.0  # the sum of all elected signs
    even: list[tuple[Tensor, Tensor, Tensor]] = []  # entries that stayed and whose sum is 0: where they belong, theirs
    with torch.no_grad():
        for name in names:
            flat = merged[name].view(-1)
            parts = [vector[name].detach().reshape(-1) for vector in vectors]
            under = [torch.nextafter(x.to(flat), flat.new_zeros(())).item() for x in levels]
            space = flat.new_empty((len(vectors), min(CHUNK, max(len(flat), 1))))
            for start in range(0, len(flat), CHUNK):
                piece = flat[start : start + CHUNK]
                rows = space[:, : len(piece)]
                for row, part, below in zip(rows, parts, under, strict=True):
                    # Not above `below` becomes 0, in one pass; a mask takes four.
                    torch.ops.aten.hardshrink.out(part[start : start + CHUNK].to(piece), below, out=row)
                signs = rows.sum(dim=0).sign_()
                balance += float(signs.sum(dtype=torch.float64))
                where = torch.nonzero((signs == 0) & (rows.amax(dim=0) > 0))[:, 0]
                if len(where):
                    even.append((piece, where, rows[:, where]))
                piece.add_(_agreeing(rows, signs, aggregation), alpha=scale)
        majority = float(np.sign(balance))
        for piece, where, rows in even:
            piece[where] += scale * _agreeing(rows, torch.full_like(rows[0], majority), aggregation)
    return merged


def _agreeing(rows: Tensor, signs: Tensor, aggregation: Aggregation) -> Tensor:
    """(K, N) trimmed entries -> (N,) those of the elected sign, aggregated. `rows` is used up."""
    rows.mul_(signs).clamp_(min=0)
    if aggregation == "max":
        return rows.amax(dim=0).mul_(signs)
    total = rows.sum(dim=0)
    if aggregation == "mean":
        total.div_(rows.sign_().sum(dim=0).clamp_(min=1))  # counted in floats, which is faster than by a mask
    return total.mul_(signs)
