"""The corruption stream: fifteen sets in order, made once, the same bytes at every making."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from PIL import Image

from mmcl import Budget, EvalSet, Source, Stream, Task
from mmcl.benchmarks.corruptions import NAMES as ALL
from mmcl.benchmarks.corruptions import corrupted
from mmcl.benchmarks.corruptions import corruptions as make
from mmcl.datamodules import StreamDataModule
from mmcl.datamodules.reader import SourceReader
from mmcl.datamodules.write import write_shard
from mmcl.errors import ConfigError

NAMES = tuple(tiny.COLOURS)


def small(folder: Path) -> Stream:
    """Four classes of which the set uses three, in another order."""
    folder.mkdir(parents=True, exist_ok=True)
    write_shard(folder / "held.tar", tiny.pictures("dots", 12))
    source = Source([str(folder / "held.tar")], labels={0: 2, 1: 1, 3: 0})
    task = Task("task", [source], Budget(steps=1), evaluates="held", class_names=("grey", "green", "red"))
    held = EvalSet("held", source, class_names=("grey", "green", "red"))
    return Stream("small", [task], [held, EvalSet("pairs", Source([str(folder / "held.tar")]), "retrieval")])


def test_without_the_package_one_line_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "corrupt_tta", None)
    with pytest.raises(ConfigError, match="needs the package corrupt-tta"):
        make(small(tmp_path), folder=str(tmp_path))


def test_numbers_that_cannot_be_are_refused(tmp_path: Path) -> None:
    for given, words in (({"severity": 6}, "severity is 6"), ({"size": 1}, "size is 1")):
        with pytest.raises(ConfigError, match=words):
            make(small(tmp_path), **given)


class TestMade:
    """With the package there."""

    @pytest.fixture(autouse=True)
    def package(self) -> None:
        pytest.importorskip("corrupt_tta", reason="corrupt-tta is not installed: it makes the corrupted pictures")

    def test_fifteen_sets_in_the_standard_order(self, tmp_path: Path) -> None:
        stream = make(small(tmp_path), size=32, folder=str(tmp_path / "made"))
        names = [e.name.removeprefix("held-") for e in stream.evals]
        assert names[:4] == ["gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur"]
        assert names[-1] == "jpeg_compression" and len(set(names)) == 15
        assert stream.tasks[0].evaluates is None and "severity 5" in stream.protocol
        clean = SourceReader(small(tmp_path).evals[0].source)
        for evalset in stream.evals:
            reader = SourceReader(evalset.source)
            assert [reader.key(i) for i in range(len(reader))] == [clean.key(i) for i in range(len(clean))]
            assert reader.labels().tolist() == clean.labels().tolist()  # type: ignore[union-attr]
            assert evalset.class_names == ("grey", "green", "red") and evalset.group == "corruptions"
            for i in range(len(reader)):
                before = np.asarray(clean.read(i)["image"].resize((32, 32)), np.int64)
                after = np.asarray(reader.read(i)["image"], np.int64)
                assert after.shape == (32, 32, 3) and np.abs(after - before).mean() > 1, evalset.name
        StreamDataModule(stream, batch_size=3).check()

    def test_made_once_and_with_the_same_bytes(self, tmp_path: Path) -> None:
        first = make(small(tmp_path), names=ALL[:3], folder=str(tmp_path / "one"))
        (folder,) = (tmp_path / "one").iterdir()
        times = {p: p.stat().st_mtime_ns for p in folder.glob("*.tar")}
        again = make(small(tmp_path), names=ALL[:4], folder=str(tmp_path / "one"))
        assert {p: p.stat().st_mtime_ns for p in times} == times
        assert [e.name for e in again.evals][:3] == [e.name for e in first.evals]
        rows = json.loads((folder / "manifest.json").read_text())
        assert [row["name"] for row in rows["shards"]] == [f"{name}.tar" for name in ALL[:4]]
        assert rows["severity"] == 5 and rows["package"].startswith("corrupt-tta ")
        make(small(tmp_path), names=ALL[:3], folder=str(tmp_path / "two"))
        (other,) = (tmp_path / "two").iterdir()
        assert other.name == folder.name
        for name in ALL[:3]:
            assert (other / f"{name}.tar").read_bytes() == (folder / f"{name}.tar").read_bytes()

    def test_another_severity_or_other_pictures_are_another_folder(self, tmp_path: Path) -> None:
        home = tmp_path / "made"
        make(small(tmp_path), names=["contrast"], folder=str(home))
        make(small(tmp_path), names=["contrast"], severity=3, folder=str(home))
        stream = small(tmp_path)
        write_shard(tmp_path / "held.tar", tiny.pictures("dots", 12, seed=1))
        make(stream, names=["contrast"], folder=str(home))
        assert len(list(home.iterdir())) == 3

    def test_sets_and_names_that_are_not_there_are_refused(self, tmp_path: Path) -> None:
        cases: list[tuple[dict[str, Any], str]] = [
            ({"names": ["fogg"]}, "'fogg' is unknown; did you mean fog"),
            ({"sets": ["helt"]}, "no evaluation set 'helt' with classes; did you mean held"),
            ({"sets": ["pairs"]}, "no evaluation set 'pairs' with classes"),
        ]
        for given, words in cases:
            with pytest.raises(ConfigError, match=words):
                make(small(tmp_path), folder=str(tmp_path), **given)

    def test_samples_of_one_key_are_refused(self, tmp_path: Path) -> None:
        """They would be one sample in a shard, which is refused when it is read."""
        stream = small(tmp_path)
        write_shard(tmp_path / "more.tar", tiny.pictures("dots", 12, seed=1))
        held = replace(stream.evals[0], source=Source([str(tmp_path / name) for name in ("held.tar", "more.tar")]))
        with pytest.raises(ConfigError, match="evaluation set 'held' has two samples with the key 'dots-000'"):
            make(Stream("s", stream.tasks, [held]), names=["contrast"], folder=str(tmp_path / "made"))
        assert not list((tmp_path / "made").rglob("*.tar"))

    def test_the_global_generator_is_left_alone(self) -> None:
        pixels = np.asarray(Image.new("RGB", (32, 32), (90, 120, 30)))
        np.random.seed(4)
        wanted = np.random.rand()
        np.random.seed(4)
        one, two = (corrupted(pixels, "impulse_noise", 5, key) for key in ("a", "b"))
        assert np.random.rand() == wanted
        assert not np.array_equal(one, two)
        assert np.array_equal(one, corrupted(pixels, "impulse_noise", 5, "a"))
