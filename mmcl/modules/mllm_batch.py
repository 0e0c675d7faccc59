"""Rows of conversations to batches, and batches to what a network of transformers is called with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmcl.collate import collate
from mmcl.modules.mllm_pictures import GRIDS, KEYS, SPANS, TILES
from mmcl.modules.objectives import IGNORED
from mmcl.outputs import Batch


def collate_rows(rows: Sequence[dict[str, Any]], padding: int) -> Batch:
    """Rows with and without pictures -> one batch.

    Tokens are filled up at their end. Pictures of all rows stand one after another in ``pixel_values`` (N, ...);
    ``pixel_counts`` (B,) says how many of the N each row has. ``answer_start`` is the first position of the batch that
    predicts an answer.
    """
    plain = [{key: value for key, value in row.items() if key not in KEYS} for row in rows]
    batch = collate(plain, {"input_ids": padding, "targets": IGNORED})
    del batch["targets_lengths"]
    for key in KEYS:
        found = [row[key] for row in rows if key in row]
        if found:
            batch[key] = torch.cat(found)
    batch["pixel_counts"] = torch.tensor([len(row["pixel_values"]) if "pixel_values" in row else 0 for row in rows])
    batch["answer_start"] = answer_start(batch["targets"])
    return batch


def answer_start(targets: Tensor) -> int:
    """The first column of (B, L) targets in which any row predicts something; 0 where none does."""
    columns = (targets != IGNORED).any(dim=0).nonzero()
    return int(columns[0]) if len(columns) else 0


def shifted(prompt: Sequence[int], answer: Sequence[int]) -> tuple[Tensor, Tensor]:
    """``input_ids`` (L,) of a prompt with its answer, and ``targets`` (L,): position i predicts token i + 1."""
    ids = torch.tensor([*prompt, *answer])
    targets = torch.full_like(ids, IGNORED)
    targets[max(len(prompt) - 1, 0) : -1] = ids[max(len(prompt), 1) :]
    return ids, targets


def pictures(batch: Batch, kind: str, image_token: int, input_ids: Tensor) -> dict[str, Tensor]:
    """Keyword arguments of the network for the pictures of a batch.

    Args:
        batch: with what `collate_rows` gave.
        kind: ``model_type`` of the architecture.
        image_token: id of the placeholder.
        input_ids: (B, L) that the network will read.
    """
    given: dict[str, Tensor] = {key: batch[key] for key in KEYS if key in batch}
    if kind in TILES:
        given = {key: _by_row(value, batch["pixel_counts"]) for key, value in given.items()}
    if kind in GRIDS and given:
        given["mm_token_type_ids"] = (input_ids == image_token).int()
    if kind in SPANS and given:
        given["token_type_ids"] = (input_ids == image_token).long()
    return given


def _by_row(values: Tensor, counts: Tensor) -> Tensor:
    """(N, ...) -> (B, most, ...), filled up with zeros: the network drops tiles that are all 0."""
    split = torch.split(values, counts.tolist())
    padded = values.new_zeros((len(split), max(map(len, split)), *values.shape[1:]))
    for row, own in zip(padded, split, strict=True):
        row[: len(own)] = own
    return padded


def prompts(batch: Batch, padding: int) -> tuple[Tensor, Tensor]:
    """``input_ids`` and ``attention_mask`` (B, P) of the prompts alone, filled up at their start."""
    lengths: list[int] = batch["prompt_length"].tolist()
    longest = max(lengths)
    ids = batch["input_ids"].new_full((len(lengths), longest), padding)
    seen = torch.zeros_like(ids)
    for i, length in enumerate(lengths):
        ids[i, longest - length :] = batch["input_ids"][i, :length]
        seen[i, longest - length :] = 1
    return ids, seen


def with_answers(batch: Batch, answers: Sequence[Sequence[int]], padding: int) -> Batch:
    """The batch with other answers, given as token ids, after the same prompts."""
    device = batch["input_ids"].device
    lengths: list[int] = batch["prompt_length"].tolist()
    rows: list[Mapping[str, Tensor]] = []
    for ids, length, answer in zip(batch["input_ids"].tolist(), lengths, answers, strict=True):
        tokens, targets = shifted(ids[:length], answer)
        rows.append({"input_ids": tokens, "targets": targets})
    found = collate([{"__key__": "", **row} for row in rows], {"input_ids": padding, "targets": IGNORED})
    own = {key: found[key].to(device) for key in ("input_ids", "input_ids_lengths", "targets")}
    kept = {key: value for key, value in batch.items() if key in (*KEYS, "pixel_counts", "prompt_length")}
    return {**kept, **own, "answer_start": answer_start(found["targets"])}
