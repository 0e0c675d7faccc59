"""Shards with random damage: lint and training answer each of them in one line, and a manifest leaves none unseen."""

import hashlib
import json
import random

import pytest
import torch
from damage import COUNT, samples, write

from mmcl.datamodules import StreamDataModule
from mmcl.datamodules.lint import decode_chunk, examine
from mmcl.errors import ConfigError, RunError
from mmcl.stream import Budget, Source, Stream, Task


def damaged(data, seed):
    """One to three places overwritten, zeroed, cut out, doubled, or the end cut off."""
    chance = random.Random(seed)
    for _ in range(chance.randint(1, 3)):
        # Every other time on a block's border, where headers and contents begin.
        begin = chance.randrange(len(data) + 1)
        begin -= begin % 512 if chance.random() < 0.5 else 0
        end = begin + chance.choice([1, 8, 100, 512, 1024, 3000])
        piece = data[begin:end]
        new = chance.choice([b"", bytes(len(piece)), chance.randbytes(len(piece)), piece * 2, data[:begin][-512:]])
        data = data[:begin] + new + data[end:] if chance.random() < 0.9 else data[:begin]
    return data


def lint(path):
    found = examine(str(path))
    index = found.index
    rows = [(index.key(i), index.members(i)) for i in range(len(index))]
    return [*found.findings, *decode_chunk((str(path), rows))]


def train(path):
    source = Source([str(path)])
    data = StreamDataModule(Stream("s", [Task("t", [source], Budget(steps=3))]), batch_size=1, max_bad=1.0)
    data.bind(lambda sample, augment: {"text": torch.tensor(len(sample.get("text", "")))}, seed=0)
    data.check()
    list(data.train_loader(data.stream.tasks[0], positions={}, segment=0, first_step=0, steps=COUNT))


@pytest.mark.parametrize("first", range(0, 240, 40))
def test_random_damage(tmp_path, first):
    good = write(samples())(tmp_path).read_bytes()
    for seed in range(first, first + 40):
        data = damaged(good, seed)
        path = tmp_path / f"{seed}.tar"
        path.write_bytes(data)
        findings = lint(path)
        assert all("\n" not in f.text and f.text.isprintable() for f in findings), seed
        structure = [f for f in findings if f.is_fault and f.kind not in ("undecodable", "caption")]
        try:
            train(path)
        except (ConfigError, RunError) as error:
            assert "\n" not in str(error), seed
            assert structure or "member for" in str(error) or "empty caption" in str(error) or "in a row" in str(error)
        else:
            assert not structure, (seed, structure)
        told = {"name": path.name, "samples": COUNT, "bytes": len(good), "sha256": hashlib.sha256(good).hexdigest()}
        (tmp_path / "manifest.json").write_text(json.dumps({"shards": [told]}))
        if data != good:
            assert any(f.is_fault for f in lint(path)), seed
            path.with_name(f"{path.name}.index").unlink(missing_ok=True)
            with pytest.raises(ConfigError):
                train(path)
        (tmp_path / "manifest.json").unlink()
