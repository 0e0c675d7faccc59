"""MTIL, FoMo-in-Flux and P9D over folders as `mmcl shards write` leaves them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import tiny

from mmcl.benchmarks.folders import joined
from mmcl.benchmarks.fomo_in_flux import fomo_in_flux
from mmcl.benchmarks.mtil import mtil
from mmcl.benchmarks.p9d import INDUSTRIES, p9d
from mmcl.cli import main
from mmcl.datamodules import StreamDataModule
from mmcl.datamodules.write import write_shard
from mmcl.errors import ConfigError
from mmcl.modules import CLIPModule
from mmcl.stream import Source

MTIL: dict[str, Any] = json.loads((Path(__file__).parents[2] / "benchmarks" / "mtil.json").read_text(encoding="utf-8"))


def folder(path: Path, classes: int, count: int = 8) -> None:
    """A data set of coloured squares with captions and labels."""
    path.mkdir(parents=True)
    for split in ("train", "test"):
        samples = [{**s, "cls": i % classes} for i, s in enumerate(tiny.pictures("dots", count, seed=len(path.name)))]
        write_shard(path / f"{split}-000000.tar", samples)
    (path / "classes.txt").write_text("".join(f"class {i}\n" for i in range(classes)), encoding="utf-8-sig")


def test_mtil_has_its_orders_templates_and_rates(tmp_path: Path) -> None:
    for name, known in MTIL["datasets"].items():
        folder(tmp_path / name, known["classes"], count=4)
    first, second = mtil(str(tmp_path)), mtil(str(tmp_path), order="II", steps=7)
    assert [t.name for t in first.tasks] == MTIL["orders"]["I"] == first.trained_columns() == first.columns()
    assert [t.name for t in second.tasks] == MTIL["orders"]["II"]
    assert {t.name for t in first.tasks if t.lr_scale == 5.0} == {"aircraft", "mnist"}
    assert all(t.budget.steps == 1000 for t in first.tasks) and all(t.budget.steps == 7 for t in second.tasks)
    assert sum(len(t.class_names or ()) for t in first.tasks) == 1201
    assert [len(t.templates) for t in first.tasks] == [2, 34, 18, 8, 3, 1, 1, 1, 1, 9, 2]
    assert sorted(MTIL["orders"]["II"]) == sorted(MTIL["orders"]["I"])
    (tmp_path / "dtd" / "manifest.json").write_text(json.dumps({"splits": {"test": {"samples": 4}}}))
    assert "dtd 4 for 1880" in mtil(str(tmp_path)).protocol


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mtil: there is no folder .*aircraft; write the shards with"):
        mtil(str(tmp_path))
    for name in MTIL["datasets"]:
        folder(tmp_path / name, 3, count=4)
    with pytest.raises(ConfigError, match=r"classes.txt has 3 names; the benchmark has 100 classes"):
        mtil(str(tmp_path))
    with pytest.raises(ConfigError, match="order 'III' is unknown"):
        mtil(str(tmp_path), order="III")  # type: ignore[arg-type]
    (tmp_path / "food").mkdir()
    with pytest.raises(ConfigError, match=r"p9d: .*food holds no train-\*.tar"):
        p9d(str(tmp_path), ["food"])


def test_joined_sources_are_joined_with_all_their_parts() -> None:
    a, b, c = (Source([f"{name}.tar"], name=name) for name in "abc")
    for sources in ([joined("ab", [a, b]), c], [a, joined("bc", [b, c])]):
        whole = joined("whole", sources, share=0.5)
        assert [list(part.shards) for part in whole.all] == [["a.tar"], ["b.tar"], ["c.tar"]]
        assert (whole.name, whole.share) == ("whole", 0.5)


def test_p9d_measures_domains_and_growing_pools(tmp_path: Path) -> None:
    for name in INDUSTRIES:
        folder(tmp_path / name, 2)
    stream = p9d(str(tmp_path))
    assert [t.name for t in stream.tasks] == list(INDUSTRIES)
    assert stream.columns() == [*INDUSTRIES, *(f"so-far-{i}" for i in range(2, 10))]
    assert len(stream.evals[-1].source.all) == 9
    assert [t.name for t in p9d(str(tmp_path), reverse=True).tasks] == list(reversed(INDUSTRIES))
    with pytest.raises(ConfigError, match="`domains` is empty"):
        p9d(str(tmp_path), [])


def test_mtil_runs_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The preset with a small model and small data sets: eleven tasks, eleven columns, ZSCL's reference set."""
    for name, known in MTIL["datasets"].items():
        folder(tmp_path / "data" / "mtil" / name, known["classes"], count=4)
    folder(tmp_path / "data" / "reference", 2)
    monkeypatch.chdir(tmp_path)
    small = ["--model.model", f"local-dir:{tiny.write_model(tmp_path / 'model')}", "--model.pretrained", "null"]
    small += ["--model.random_init", "true", "--data.batch_size", "4", "--data.stream.init_args.steps", "1"]
    quiet = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    assert main(["fit", "--config", "mtil/zscl", *small, *quiet]) == 0
    results = tiny.results(tmp_path / "runs" / "mtil" / "zscl")
    assert results["matrix"]["columns"] == MTIL["orders"]["I"]
    assert [t["steps"] for t in results["tasks"]] == [1] * 11
    assert set(results["matrix"]["counts"]) == {4}


@pytest.fixture
def fomo(tmp_path: Path) -> Path:
    for name, classes in (("birds", 3), ("cars", 2), ("held", 2)):
        folder(tmp_path / name, classes, count=12)
    sequence = ["birds+++class 2", "cars+++class 0", "birds+++class 0", "birds+++class 1", "cars+++class 1"]
    (tmp_path / "order.json").write_text(json.dumps(sequence))
    return tmp_path


def test_fomo_cuts_the_sequence_into_equal_tasks(fomo: Path) -> None:
    pretraining = [str(fomo / "held" / "train-000000.tar")]
    stream = fomo_in_flux(str(fomo / "order.json"), str(fomo), ["held"], tasks=2, steps=3, pretraining=pretraining)
    chosen = [{s.name: sorted(s.labels or {}) for s in t.train} for t in stream.tasks]
    assert chosen == [{"birds": [0, 2], "cars": [0]}, {"birds": [1], "cars": [1]}]
    assert [[(s.name, s.share) for s in t.mix] for t in stream.tasks] == [
        [("pretraining", 0.495)],
        [("pretraining", 0.33), ("earlier", 0.33)],
    ]
    assert [(e.name, e.group) for e in stream.evals] == [
        ("birds", "adaptation"),
        ("cars", "adaptation"),
        ("held", "held_out"),
    ]
    module = CLIPModule(f"local-dir:{tiny.write_model(fomo / 'model')}", random_init=True)
    data = StreamDataModule(stream, batch_size=12)
    data.bind(module.transform, seed=0, rank=0, world_size=1, accumulate=1, collate=module.collate)
    data.check()
    plans = [data.plan(task, task.mix) for task in stream.tasks]
    assert plans[0].counts == {"pretraining": 5} and plans[0].own_per_batch == 7
    # 0.33, 0.34 and 0.33 of 12 rounded down, then the remainder one by one
    assert plans[1].counts == {"pretraining": 4, "earlier": 3} and plans[1].own_per_batch == 5


def test_a_sequence_of_the_published_length_is_read_at_once(tmp_path: Path) -> None:
    """All but the last pair of its 18,381 are different."""
    pairs = [f"set {i % 41}+++class {i}" for i in range(18_380)]
    (tmp_path / "order.json").write_text(json.dumps([*pairs, pairs[-1]]))
    began = time.process_time()
    with pytest.raises(ConfigError, match=r"has set 11\+\+\+class 18379 twice"):
        fomo_in_flux(str(tmp_path / "order.json"), str(tmp_path))
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "is empty"),
        ('["birds"]', r'no list of "dataset\+\+\+class"'),
        ('["birds+++class 0", "birds+++class 0"]', r"has birds\+\+\+class 0 twice"),
        ('["birds+++class 9"]', "'birds' has no class 'class 9'"),
        ("{", "cannot be read"),
    ],
)
def test_sequences_that_cannot_be_are_refused(fomo: Path, content: str, words: str) -> None:
    (fomo / "order.json").write_text(content)
    with pytest.raises(ConfigError, match=words):
        fomo_in_flux(str(fomo / "order.json"), str(fomo), tasks=1)
