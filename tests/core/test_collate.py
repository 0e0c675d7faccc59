"""Rows that are put into their batch's memory are stacked without a copy, and the batch is the same."""

import torch
from torch.utils.data import DataLoader, Dataset

from mmcl.collate import BatchMemory, collate


def samples(count, **changes):
    rows = []
    for i in range(count):
        row = {"__key__": f"s{i}", "image": torch.full((3, 4, 5), float(i)), "text": torch.tensor([i, i]), "labels": i}
        rows.append({**row, **{key: value(i) for key, value in changes.items()}})
    return rows


def put(rows):
    memory = BatchMemory(len(rows))
    for i, row in enumerate(rows):
        memory.put(i, row)
    return rows


def equal(a, b):
    return a.keys() == b.keys() and all(
        torch.equal(a[key], b[key]) if isinstance(a[key], torch.Tensor) else a[key] == b[key] for key in a
    )


def test_rows_in_place_are_not_copied():
    rows = put(samples(5))
    batch = collate(rows)
    assert equal(batch, collate(samples(5)))
    assert batch["image"].data_ptr() == rows[0]["image"].data_ptr()
    assert rows[0]["text"].data_ptr() != batch["text"].data_ptr()


def test_other_orders_and_parts_are_copied():
    rows, plain = put(samples(5)), samples(5)
    for order in ([1, 0, 2, 3, 4], [0, 1, 2, 3], [1, 2], [0, 0, 1, 2, 3]):
        batch = collate([rows[i] for i in order])
        assert equal(batch, collate([plain[i] for i in order]))
        assert batch["image"].data_ptr() != rows[order[0]]["image"].data_ptr()
    mixed = [*put(samples(2))[:1], plain[1]]
    assert equal(collate(mixed), collate(plain[:2]))


def test_pictures_of_other_shapes_and_types_stay_where_they_are():
    rows = samples(3, image=lambda i: torch.ones(3, 4, 5 + i))
    assert [row["image"].shape[2] for row in put(rows)] == [5, 6, 7]
    kinds = samples(2, image=lambda i: torch.ones(3, 4, 5, dtype=(torch.float32, torch.float64)[i]))
    assert [row["image"].dtype for row in put(kinds)] == [torch.float32, torch.float64]


def test_one_row_of_ones_own_is_copied():
    """A tensor that a transform keeps must not become the batch."""
    kept = torch.ones(3, 4, 5)
    collate(put(samples(1, image=lambda i: kept)))["image"].zero_()
    collate(samples(1, image=lambda i: kept))["image"].zero_()
    assert kept.min() == 1


class Batches(Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        batch = collate(put(samples(3 + index)))
        return {**batch, "shared": batch["image"].is_shared()}


def test_workers_write_to_shared_memory():
    loader = DataLoader(Batches(), batch_size=None, num_workers=1, multiprocessing_context="fork")
    for index, batch in enumerate(loader):
        assert batch.pop("shared")
        assert equal(batch, collate(samples(3 + index)))
