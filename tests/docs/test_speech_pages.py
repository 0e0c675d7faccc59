"""The configs and the code on the pages about speech run as they stand there, on small data."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import tiny
import tiny_speech
import transformers

from mmcl.cli import main
from mmcl.datamodules import write_shard

DOCS = Path(__file__).resolve().parents[2] / "docs"


def block(page: str, language: str) -> str:
    [found] = re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), flags=re.S)
    return str(found)


def write(folder: Path, names: list[str], extension: str, **more: object) -> None:
    """A shard of two recordings under each name."""
    for number, name in enumerate(names):
        tones = tiny_speech.sounds("rise", 2, seed=number)
        rows = [{"__key__": f"{name}-{i}", extension: tiny_speech.wav(a), **more} for i, a in enumerate(tones)]
        write_shard(folder / f"{name}.tar", rows)


def fit(text: str) -> dict[str, object]:
    Path("page.yaml").write_text(text)
    assert main(["fit", "--config", "page.yaml", "--trainer.enable_progress_bar", "false"]) == 0
    return tiny.results(Path("runs/page"))


def test_pretraining(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "models" / "my-wav2vec2"
    model.mkdir(parents=True)
    tiny_speech.wav2vec2(tmp_path).export(model, "transformers")
    write(tmp_path, [f"calls-{i:03d}" for i in range(32)] + ["calls-test"], "wav")
    write(tmp_path, ["upstream-test"], "flac")
    content = block("speech-pretraining.md", "yaml").replace("20000", "2").replace("lr:", "mask_span: 4\n    lr:")
    results = fit(content)
    assert "code_perplexity" in json.dumps(results)
    assert main(["export", "runs/page", "--to", "exported", "--format", "transformers"]) == 0
    transformers.Wav2Vec2ForCTC.from_pretrained("exported")

    exec(block("speech-pretraining.md", "python").replace("clusters=100", "clusters=5"), {})
    assert (tmp_path / "codebook.npz").is_file()


def test_sounds_and_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "models" / "my-clap"
    tiny_speech.write_clap(model)
    tiny_speech.audio_text(model).export(model, "transformers")
    write(
        tmp_path, [f"birds-{i:02d}" for i in range(8)] + ["birds-test"], "flac", json={"captions": ["a tone", "rise"]}
    )
    write(tmp_path, ["alarms-test"], "flac", cls=1)
    content = block("audio-text.md", "yaml").replace("batch_size: 64", "batch_size: 8")
    results = fit(content.replace("lr:", "context: 10\n    lr:"))
    assert results["matrix"]["counts"] == [6, 2]
    assert main(["export", "runs/page", "--to", "exported", "--format", "transformers"]) == 0
    transformers.ClapModel.from_pretrained("exported")
