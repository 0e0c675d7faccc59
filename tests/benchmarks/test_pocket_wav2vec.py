"""The pocket stream of speech pretraining: its tasks, its columns, its model."""

import json
from pathlib import Path

import pytest
import transformers

from mmcl import assets
from mmcl.benchmarks.pocket_wav2vec import MODEL, PRETRAINING, STEPS, pocket_wav2vec
from mmcl.datamodules import StreamDataModule, write_shard
from mmcl.errors import ConfigError
from mmcl.modules import hf_source
from mmcl.modules.speech_network import frame_count, window_of


@pytest.fixture
def fetched(tmp_path, monkeypatch):
    """The asset's folder with a recording of each shard."""
    monkeypatch.setenv("MMCL_CACHE", str(tmp_path))
    folder = tmp_path / "assets" / "asterisk"
    folder.mkdir(parents=True)
    asset = assets.find("asterisk")
    (folder / assets.RECORD).write_text(json.dumps(asset.record()))
    for language in ("en", "es", "fr"):
        for split in ("train", "test"):
            write_shard(folder / f"{language}-{split}.tar", [{"__key__": f"{language}/hello", "wav": b"RIFF"}])
    return folder


def test_each_language_trains_its_own_column(fetched):
    stream = pocket_wav2vec()
    assert [t.name for t in stream.tasks] == stream.trained_columns() == stream.columns() == ["en", "es", "fr"]
    assert [t.budget.steps for t in stream.tasks] == [PRETRAINING, STEPS, STEPS]
    for task, column in zip(stream.tasks, stream.evals, strict=True):
        assert [Path(s.shards[0]).name for s in task.train] == [f"{task.name}-train.tar"]
        assert Path(column.source.shards[0]).name == f"{task.name}-test.tar"
        assert column.probe == "objective" and task.train[0].augment and not column.source.augment
    data = StreamDataModule(stream, batch_size=1)
    data.bind(lambda sample, augment: sample, seed=0)
    assert data.count(stream.tasks[0].train[0]) == 1


def test_languages_left_out_are_held_out(fetched):
    stream = pocket_wav2vec(["es"], steps=3)
    assert [(e.name, e.group) for e in stream.evals] == [("en", "held_out"), ("es", "task"), ("fr", "held_out")]
    assert stream.tasks[0].budget.steps == 3
    with pytest.raises(ConfigError, match="no language 'eng'"):
        pocket_wav2vec(["eng"])


def test_says_how_to_fetch_the_data(tmp_path, monkeypatch):
    monkeypatch.setenv("MMCL_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match="mmcl data get asterisk"):
        pocket_wav2vec()


def test_the_model_is_small_and_hears_8_khz_at_50_frames_a_second():
    source = hf_source.find(MODEL)
    assert source.part(transformers.AutoFeatureExtractor, "feature extractor").sampling_rate == 8000
    assert window_of(source.config) == (240, 160)
    assert frame_count(8000, source.config) == 49
    network = source.build(transformers.Wav2Vec2ForPreTraining)
    assert 2e6 < sum(p.numel() for p in network.parameters()) < 4e6
