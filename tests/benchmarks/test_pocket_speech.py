"""The speech streams over a small stand-in for the Asterisk asset, and the real one where it was fetched."""

from pathlib import Path

import pytest
import tiny_asr

from mmcl import assets
from mmcl.benchmarks import pocket_speech
from mmcl.benchmarks.pocket_speech import LONGEST
from mmcl.datamodules.write import write_shard
from mmcl.errors import ConfigError
from mmcl.stream import HELD_OUT

TEXTS = ["Go now.", "Press 1.", "see", "no " * 60, "we don't go", "go no"]


@pytest.fixture
def asterisk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for language in ("en", "es", "fr"):
        for split in ("train", "test"):
            samples = [{"__key__": f"{language}/{i}", "wav": pcm(text), "txt": text} for i, text in enumerate(TEXTS)]
            write_shard(tmp_path / f"{language}-{split}.tar", samples)
    monkeypatch.setattr(assets, "folder", lambda name: tmp_path)
    pocket_speech._clips.cache_clear()
    return tmp_path


def pcm(text: str) -> bytes:
    import io

    import soundfile

    audio, out = tiny_asr.sung(text), io.BytesIO()
    soundfile.write(out, audio.samples, audio.rate, format="WAV", subtype="PCM_16")
    return out.getvalue()


def test_english_is_held_out_and_the_others_are_trained(asterisk: Path) -> None:
    stream = pocket_speech.pocket_speech(steps=3)
    assert [t.name for t in stream.tasks] == ["es", "fr"] == [t.language for t in stream.tasks]
    assert [(e.name, e.group == HELD_OUT) for e in stream.evals] == [("en", True), ("es", False), ("fr", False)]
    assert stream.trained_columns() == ["es", "fr"]
    assert all(t.budget.steps == 3 for t in stream.tasks)
    assert [list(t.train[0].keys or ()) for t in stream.tasks] == [
        [f"{x}/{i}" for i in (0, 2, 4, 5)] for x in ("es", "fr")
    ]
    assert list(stream.evals[0].source.keys or ()) == ["en/0", "en/4", "en/5"]
    assert stream.evals[1].options["language"] == "es"


def test_ctc_trains_all_three(asterisk: Path) -> None:
    stream = pocket_speech.pocket_speech_ctc()
    assert stream.trained_columns() == ["en", "es", "fr"] == stream.columns()
    with pytest.raises(ConfigError, match="no speech in 'de'"):
        pocket_speech.pocket_speech_ctc(languages=["de"])


def test_real_data_where_they_were_fetched() -> None:
    try:
        assets.folder("asterisk")
    except ConfigError:
        pytest.skip("asset 'asterisk' is not here")
    pocket_speech._clips.cache_clear()
    stream = pocket_speech.pocket_speech()
    for evalset in stream.evals:
        assert 25 <= len(evalset.source.keys or ()) <= pocket_speech.CLIPS
    for task in stream.tasks:
        clips = {c.key: c for c in pocket_speech._clips(Path(task.train[0].shards[0]))}
        chosen = [clips[key] for key in task.train[0].keys or ()]
        assert len(chosen) > 300
        assert all(c.seconds <= LONGEST and not any(x.isdigit() for x in c.text) for c in chosen)
