"""Documents as blocks: nothing lost, nothing twice, made once, equal for any order of reading."""

from __future__ import annotations

import json
import math
import multiprocessing
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_text
import torch

from mmcl import Budget, EvalSet, Source, Stream, Task
from mmcl.datamodules import StreamDataModule, write_shard
from mmcl.datamodules.packed import DOCUMENTS, TOKENS, PackedReader
from mmcl.errors import ConfigError
from mmcl.modules.text_packing import TextPacking


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMCL_CACHE", str(tmp_path / "kept"))


def packing(block: int = 8) -> TextPacking:
    return TextPacking(tiny_text.tokenizer(), block, 1)


def write(path: Path, texts: list[str | list[str]], first: int = 0) -> str:
    rows = [
        {"__key__": f"d{first + i:02d}", **({"txt": t} if isinstance(t, str) else {"json": {"captions": t}})}
        for i, t in enumerate(texts)
    ]
    write_shard(path, rows)
    return str(path)


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    """Three shards; the second one's documents are shorter than a block together."""
    long = [" ".join(tiny_text.WORDS["weather"][i:]) for i in range(5)]
    return [
        write(tmp_path / "a.tar", [*long, "中 NE"]),
        write(tmp_path / "b.tar", ["a", "é"], 10),
        write(tmp_path / "c.tar", ["and then", ["one", "two words"], *long], 20),
    ]


def all_tokens(reader: PackedReader) -> list[dict[str, Any]]:
    return [reader.read(i) for i in range(len(reader))]


def test_every_token_but_the_first_is_predicted_once(shards: list[str]) -> None:
    reader = PackedReader(Source(shards), packing())
    texts = list(reader.texts())
    assert len(texts) == 16 and texts[9:11] == ["one", "two words"]
    tokens = [t for ids, _ in packing().encode(texts) for t in ids]
    sizes = [n for _, found in packing().encode(texts) for n in found]
    blocks = all_tokens(reader)
    assert [int(t) for block in blocks for t in block["tokens"][1:]] == tokens[1:]
    assert [int(n) for block in blocks for n in block["bytes"][1:]] == sizes[1:]
    assert all(a["tokens"][-1] == b["tokens"][0] for a, b in pairwise(blocks))
    assert [len(block["tokens"]) for block in blocks[:-1]] == [9] * (len(blocks) - 1)
    assert len(reader) == math.ceil((len(tokens) - 1) / 8)
    assert sum(sizes) == sum(len(text.encode()) for text in texts)


def test_blocks_know_where_they_begin(shards: list[str]) -> None:
    reader = PackedReader(Source(shards), packing())
    keys = [block["__key__"] for block in all_tokens(reader)]
    assert len(set(keys)) == len(keys) and keys[0] == "d00+0" and keys[1] == "d00+8"
    assert reader.where(1) == f"the block from token 8 of sample 'd00' in shard {shards[0]}"
    assert sum(reader.shard_sizes) == len(reader) and len(reader.shard_sizes) == 3
    begins = np.cumsum([0, *reader.shard_sizes])
    for shard, (begin, end) in zip(shards, pairwise(begins), strict=True):
        assert all(shard in reader.where(i) for i in range(begin, end))
    chosen = PackedReader(Source(shards, keys=["d20", "d03"]), packing())
    assert list(chosen.texts()) == [list(reader.texts())[3], "and then"]


def test_tokens_are_made_once(shards: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = all_tokens(PackedReader(Source(shards), packing()))
    monkeypatch.setattr(TextPacking, "encode", lambda *_: pytest.fail("made again"))
    again = all_tokens(PackedReader(Source(list(shards), name="other"), packing()))
    assert all(np.array_equal(a["tokens"], b["tokens"]) for a, b in zip(first, again, strict=True))
    assert len(PackedReader(Source(shards), packing(block=3))) > len(first), "blocks are cut when they are read"
    with pytest.raises(pytest.fail.Exception, match="made again"):
        PackedReader(Source(shards, keys=["d00"]), packing())
    with pytest.raises(pytest.fail.Exception, match="made again"):
        PackedReader(Source(shards), TextPacking(tiny_text.tokenizer(), 8, 2))
    (kept,) = (p for p in (tmp_path / "kept" / "tokens").iterdir() if p.is_dir())
    (kept / TOKENS).write_bytes((kept / TOKENS).read_bytes()[:-8])
    with pytest.raises(pytest.fail.Exception, match="made again"):
        PackedReader(Source(shards), packing())
    assert sorted(p.name for p in kept.parent.iterdir() if p.is_dir()) == []


def _open(shards: list[str], results: Any) -> None:
    results.put(sum(int(block["tokens"].sum()) for block in all_tokens(PackedReader(Source(shards), packing()))))


def test_processes_make_them_together(shards: list[str], tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    workers = [context.Process(target=_open, args=(shards, results)) for _ in range(4)]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert len(set(found)) == 1
    (kept,) = (p for p in (tmp_path / "kept" / "tokens").iterdir() if p.is_dir())
    assert {p.name for p in kept.iterdir()} == {TOKENS, DOCUMENTS}


def test_a_changed_document_makes_new_tokens(tmp_path: Path) -> None:
    one = PackedReader(Source([write(tmp_path / "x.tar", ["the sun"])]), packing())
    other = PackedReader(Source([write(tmp_path / "y.tar", ["the fun"])]), packing())
    assert not np.array_equal(one.read(0)["tokens"], other.read(0)["tokens"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"  \n", "sample 'bad' in shard .*x.tar has an empty caption"),
        (b"caf\xe9", "sample 'bad' in shard .*x.tar: its text cannot be decoded"),
    ],
)
def test_documents_that_cannot_be_read_are_refused(tmp_path: Path, text: bytes, message: str) -> None:
    write_shard(tmp_path / "x.tar", [{"__key__": "good", "txt": "rain"}, {"__key__": "bad", "txt": text}])
    with pytest.raises(ConfigError, match=message) as refused:
        PackedReader(Source([str(tmp_path / "x.tar")]), packing())
    assert "\n" not in str(refused.value)


def test_nothing_but_the_texts_is_decoded(tmp_path: Path) -> None:
    """Pictures beside documents cost no time, and a damaged one is none of a language model's business."""
    rows = [{"__key__": f"d{i}", "png": b"\x89PNG, no more of it", "txt": "one two"} for i in range(3)]
    write_shard(tmp_path / "a.tar", rows)
    assert list(PackedReader(Source([str(tmp_path / "a.tar")]), packing()).texts()) == ["one two"] * 3


def test_half_a_character_is_refused(tmp_path: Path) -> None:
    content = json.dumps({"caption": "\ud83d"}).encode()
    write_shard(tmp_path / "x.tar", [{"__key__": "bad", "json": content}])
    with pytest.raises(ConfigError, match=r"sample 'bad' .* half a character"):
        PackedReader(Source([str(tmp_path / "x.tar")]), packing())
    assert not [p for p in (tmp_path / "kept" / "tokens").iterdir() if p.is_dir()]


def test_other_samples_are_refused(tmp_path: Path) -> None:
    write_shard(tmp_path / "x.tar", [{"__key__": "a", "cls": 1}])
    with pytest.raises(ConfigError, match="its samples have no text"):
        PackedReader(Source([str(tmp_path / "x.tar")]), packing())


def test_a_cache_that_cannot_be_written(shards: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MMCL_CACHE", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"its tokens cannot be kept in .*set MMCL_CACHE"):
        PackedReader(Source(shards), packing())


# -- in batches --------------------------------------------------------------------------------------------------------


def data_of(stream: Stream, batch_size: int = 4, **place: Any) -> StreamDataModule:
    module = tiny_text.causal(block=8)
    data = StreamDataModule(stream, batch_size=batch_size, eval_batch_size=3, workers=place.pop("workers", 0))
    data.bind(module.transform, seed=0, sample_tokens=8, collate=module.collate, packing=module.packing, **place)
    return data


def replayed(shards: list[str]) -> Stream:
    task = Task(
        "t",
        [Source(shards[:1], name="own")],
        Budget(tokens=8 * 4 * 8),
        mix=[Source(shards[2:], name="replay", share=0.25)],
    )
    return Stream("s", [task], [EvalSet("e", Source(shards), "perplexity")])


def test_blocks_are_mixed_by_their_shares(shards: list[str]) -> None:
    stream = replayed(shards)
    data = data_of(stream)
    data.check()
    plan = data.plan(stream.tasks[0], stream.tasks[0].mix)
    assert plan.steps == 8 and plan.counts == {"replay": 1} and plan.own_per_batch == 3
    (task,) = stream.tasks
    batches = list(data.train_loader(task, task.mix, positions={}, segment=0, first_step=0, steps=8))
    for batch in batches:
        assert batch["input_ids"].shape == batch["targets"].shape == batch["target_bytes"].shape == (4, 8)
        replay = [key for key in batch["__key__"] if key.startswith("d2")]
        assert len(replay) == 1
    own = [key for batch in batches for key in batch["__key__"] if not key.startswith("d2")]
    count = data.count(task.train[0])
    assert len(set(own[:count])) == count == len(PackedReader(Source(shards[:1]), packing())), "each once an epoch"


@pytest.mark.parametrize("workers", [0, 2])
def test_an_evaluation_sees_every_token_on_any_number_of_ranks(shards: list[str], workers: int) -> None:
    stream = replayed(shards)
    found = []
    for world in (1, 2):
        rows = []
        for rank in range(world):
            loader = data_of(stream, rank=rank, world_size=world, workers=workers).eval_loader(stream.evals[0].source)
            for batch in loader:
                targets = batch["targets"][batch["valid"]]
                rows.append((int((targets >= 0).sum()), int(batch["target_bytes"][batch["valid"]].sum())))
        found.append(tuple(map(sum, zip(*rows, strict=True))))
    texts = list(PackedReader(Source(shards), packing()).texts())
    encoded = packing().encode(texts)
    tokens, size = sum(len(ids) for ids, _ in encoded), sum(sum(sizes) for _, sizes in encoded)
    assert found == [(tokens - 1, size - encoded[0][1][0])] * 2


def test_masks_of_an_evaluation_are_fixed_and_of_an_epoch_are_not(shards: list[str]) -> None:
    module = tiny_text.masked(block=16)
    source = Source(shards, augment=False)
    stream = Stream("s", [Task("t", [source], Budget(steps=9))], [EvalSet("e", source, "perplexity")])

    def bound(seed: int, size: int) -> StreamDataModule:
        data = StreamDataModule(stream, batch_size=4, eval_batch_size=size)
        data.bind(module.transform, seed=seed, collate=module.collate, packing=module.packing)
        return data

    found = [
        torch.cat([batch["input_ids"][batch["valid"]] for batch in bound(seed, size).eval_loader(source)])
        for seed, size in ((0, 3), (7, 5))
    ]
    assert torch.equal(*found)
    seen: dict[str, list[torch.Tensor]] = {}
    for batch in bound(0, 3).train_loader(stream.tasks[0], positions={}, segment=0, first_step=0, steps=9):
        for key, ids in zip(batch["__key__"], batch["input_ids"], strict=True):
            seen.setdefault(key, []).append(ids)
    twice = [rows for rows in seen.values() if len(rows) > 1]
    assert twice and any(not torch.equal(*rows[:2]) for rows in twice)


def test_class_names_have_no_place(shards: list[str]) -> None:
    stream = Stream("s", [Task("t", [Source(shards)], Budget(steps=1), class_names=["a"])])
    with pytest.raises(ConfigError, match="task 't': `class_names` are given, but blocks of text have no classes"):
        data_of(stream).check()
