"""How sources share batches, counted in the batches themselves."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from mmcl.replay import ReplayBuffer
from mmcl.stream import Budget, Task


def published(batch, shares):
    """FoMo-in-Flux's split over (pretraining, update, buffer): the floors, then one each in this order."""
    counts = {name: int(batch * share) for name, share in shares.items()}
    for name in list(shares)[: batch - sum(counts.values())]:
        counts[name] += 1
    return counts


@pytest.mark.parametrize(
    ("batch", "world", "accumulate"), [(512, 1, 1), (512, 2, 2), (12, 3, 2), (7, 1, 1), (100, 2, 1)]
)
def test_every_batch_has_the_published_split(make_data, make_source, draw_batches, batch, world, accumulate):
    own = make_source((batch, 40), "own", "u")
    extra = [make_source((30, 25), "pretraining", "p", share=0.33), make_source((41,), "buffer", "b", share=0.33)]
    parts = [
        draw_batches(make_data(own, batch_size=batch, rank=r, world_size=world, accumulate=accumulate), extra, steps=3)
        for r in range(world)
    ]
    expected = published(batch, {"p": 0.33, "u": 0.34, "b": 0.33})
    for step in range(3):
        slices = [part[step * accumulate + micro] for part in parts for micro in range(accumulate)]
        found = [Counter(key[0] for key in piece["__key__"]) for piece in slices]
        assert sum(found, Counter()) == expected
        for name, count in expected.items():
            assert all(abs(piece[name] - count / len(slices)) < 2 for piece in found)
    if batch == 512:
        assert expected == {"p": 169, "u": 175, "b": 168}


def test_replayed_samples_are_augmented_anew(make_data, make_source, draw_batches):
    """The memory holds names: each draw decodes and augments, as a function of the place alone."""
    earlier = Task("earlier", [make_source((20,), prefix="e")], Budget(steps=1))
    data = make_data(make_source((40,)), batch_size=8)
    buffer = ReplayBuffer(5, seed=1)
    buffer.add("earlier", data.task_samples(earlier))
    source = replace(buffer.source([earlier], "replay", share=0.5), task=None)
    batches = draw_batches(data, [source], steps=10)
    drawn = {}
    for batch in batches:
        for key, image in zip(batch["__key__"], batch["image"], strict=True):
            if key.startswith("e"):
                drawn.setdefault(key, []).append(image)
    assert len(drawn) == 5 and all(len(images) == 8 for images in drawn.values())
    for images in drawn.values():
        assert all(not torch.equal(a, b) for i, a in enumerate(images) for b in images[:i])
    (again,) = draw_batches(data, [source], steps=10, first_step=9)
    assert torch.equal(again["image"], batches[9]["image"])
