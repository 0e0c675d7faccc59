import numpy as np
import pytest
import torch
from PIL import Image

from mmcl.datamodules import StreamDataModule, write_shard
from mmcl.stream import Budget, EvalSet, Source, Stream, Task


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("MMCL_CACHE", str(tmp_path / "cache" / "mmcl"))


def picture(number):
    """A small picture that tells its number."""
    pixels = np.full((4, 4, 3), number % 256, np.uint8)
    pixels[0, 0] = number // 256
    return Image.fromarray(pixels)


@pytest.fixture
def make_samples():
    def make(count, first=0, classes=4, prefix="s"):
        return [
            {
                "__key__": f"{prefix}{i:05d}",
                "png": picture(i),
                "txt": f"caption {i}",
                "cls": i % classes,
            }
            for i in range(first, first + count)
        ]

    return make


@pytest.fixture
def make_source(tmp_path, make_samples):
    """A source over fresh shards of the given sizes; samples are numbered through."""

    def make(sizes=(10,), name="train", prefix="s", **options):
        paths, first = [], 0
        for shard, size in enumerate(sizes):
            path = tmp_path / f"{name}-{prefix}-{shard:03d}.tar"
            write_shard(path, make_samples(size, first, prefix=prefix))
            paths.append(str(path))
            first += size
        return Source(paths, name=name, **options)

    return make


def transform(sample, augment):
    """Pictures to tensors, with random numbers where augmented; texts to two numbers."""
    row = dict(sample)
    if "image" in row:
        image = torch.from_numpy(np.array(row["image"])).permute(2, 0, 1).float()
        row["image"] = image + torch.rand(3, 1, 1) if augment else image
        row["noise"] = float(np.random.rand())
    if "text" in row:
        tokens = [torch.tensor([len(t), int(t.split()[-1])]) for t in np.atleast_1d(row["text"]).tolist()]
        row["text"] = tokens[0] if isinstance(row["text"], str) else torch.stack(tokens)
    return row


@pytest.fixture
def make_data():
    """A bound data module over one task (and evaluation sets and sources, if given)."""

    def make(train, batch_size=8, steps=10, seed=0, rank=0, world_size=1, accumulate=1, budget=None, **options):
        names = options.pop("class_names", None)
        evals = [EvalSet(f"e{i}", s, class_names=names) for i, s in enumerate(options.pop("evals", []))]
        sources = options.pop("sources", {})
        train = [train] if isinstance(train, Source) else train
        task = Task("t", train, budget or Budget(steps=steps), class_names=names)
        data = StreamDataModule(Stream("s", [task], evals, sources), batch_size=batch_size, **options)
        data.bind(transform, seed=seed, rank=rank, world_size=world_size, accumulate=accumulate)
        return data

    return make


@pytest.fixture
def draw_batches():
    """The batches of a data module's only task."""

    def draw(data, extra=(), steps=10, first_step=0, positions=None, segment=0):
        loader = data.train_loader(
            data.stream.tasks[0],
            extra,
            positions=positions or {},
            segment=segment,
            first_step=first_step,
            steps=steps,
        )
        batches = list(loader)
        assert len(batches) == len(loader)
        return batches

    return draw


@pytest.fixture
def same():
    """Whether two batches are equal to the last bit."""

    def equal(a, b):
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
        return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b

    return equal
