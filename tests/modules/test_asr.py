from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_asr
import torch
import transformers
from tiny_asr import ES, TEXTS, batch_of
from transformers import WhisperFeatureExtractor

from mmcl.datamodules import StreamDataModule
from mmcl.datamodules.write import write_shard
from mmcl.errors import ConfigError, RunError, SampleError
from mmcl.modules.asr import ASRModule
from mmcl.modules.log_mel import LogMel
from mmcl.outputs import SKIP, Audio
from mmcl.stream import Budget, EvalSet, Source, Stream, Task


@pytest.fixture(scope="module")
def seq2seq() -> ASRModule:
    return tiny_asr.module("whisper").eval()


# -- features ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bins", "seconds"), [(80, 30), (80, 5), (128, 4)])
def test_log_mel_equals_transformers(bins: int, seconds: int) -> None:
    waveform = np.random.default_rng(0).standard_normal(16_000 * 3).astype(np.float32) * np.linspace(0, 1, 48_000)
    theirs = WhisperFeatureExtractor(feature_size=bins, chunk_length=seconds)
    wanted = theirs(waveform, sampling_rate=16_000, return_tensors="np").input_features[0]
    heard = LogMel(bins, seconds)(torch.from_numpy(waveform).float())
    assert heard.shape == (bins, 100 * seconds)
    assert np.abs(heard.numpy() - wanted).max() < 1e-4


def test_log_mel_cuts_what_is_longer() -> None:
    mel = LogMel(8, 1)
    waveform = torch.randn(20_000)
    assert torch.equal(mel(waveform), mel(waveform[:16_000]))
    assert (mel.heard(1), mel.heard(321), mel.heard(20_000)) == (1, 2, 50)


# -- the sequence loss ---------------------------------------------------------------------------------------------


def test_sequence_loss_equals_transformers(seq2seq: ASRModule) -> None:
    batch = batch_of(seq2seq, TEXTS)
    network: Any = seq2seq.network
    theirs = network(
        input_features=batch["input_features"], decoder_input_ids=batch["input_ids"], labels=batch["targets"]
    )
    outputs = seq2seq(batch)
    ours = seq2seq.loss(outputs, batch)["cross_entropy_loss"]
    assert ours.item() == pytest.approx(theirs.loss.item(), abs=1e-6)
    assert outputs.valid is not None and outputs.targets is not None and outputs.tokens is not None
    assert outputs.valid.sum() == sum(len(f" {t}".encode()) + 1 for t in TEXTS)
    assert torch.equal(outputs.valid, batch["targets"] != -100)
    assert outputs.tokens.shape[:2] == outputs.valid.shape


def test_padding_rows_take_no_part(seq2seq: ASRModule) -> None:
    batch = batch_of(seq2seq, TEXTS)
    marked = batch | {"valid": torch.tensor([True, True, False])}
    fewer = batch_of(seq2seq, TEXTS[:2])
    one, other = (seq2seq.loss(seq2seq(b), b)["cross_entropy_loss"].item() for b in (marked, fewer))
    assert one == pytest.approx(other, abs=1e-6)


@pytest.mark.parametrize("multilingual", [False, True])
def test_greedy_generation_equals_transformers(tmp_path: Path, multilingual: bool) -> None:
    folder = tiny_asr.whisper(tmp_path, multilingual=multilingual)
    torch.manual_seed(1)
    module = ASRModule(f"local-dir:{folder}", random_init=True, language="es").eval()
    batch = batch_of(module, TEXTS)
    network: Any = module.network
    assert batch["prompt"].shape[1] == (4 if multilingual else 2)
    said = module.generate(batch, max_new_tokens=12).texts
    alone = [
        module.generate({k: batch[k][i : i + 1] for k in ("input_features", "prompt")}, max_new_tokens=12).texts
        for i in range(len(TEXTS))
    ]
    assert alone == [[text] for text in said or []]
    network.generation_config = transformers.GenerationConfig(
        decoder_start_token_id=network.config.decoder_start_token_id,
        eos_token_id=network.config.eos_token_id,
        pad_token_id=network.config.pad_token_id,
        suppress_tokens=network.config.suppress_tokens,
        begin_suppress_tokens=network.config.begin_suppress_tokens,
    )
    theirs = transformers.GenerationMixin.generate(
        network,
        input_features=batch["input_features"],
        decoder_input_ids=batch["prompt"],
        max_new_tokens=12,
        do_sample=False,
    )
    tokenizer = module.recogniser.tokenizer  # type: ignore[attr-defined]
    prompt = batch["prompt"].shape[1]
    assert said == [tokenizer.decode(r[prompt:], skip_special_tokens=True).strip() for r in theirs.tolist()]


def test_language_of_a_sample_its_task_and_the_module(tmp_path: Path) -> None:
    module = ASRModule(f"local-dir:{tiny_asr.whisper(tmp_path, multilingual=True)}", random_init=True)
    module.check(Stream("s", [ES]))
    token = module.recogniser.tokenizer.convert_tokens_to_ids  # type: ignore[attr-defined]
    sample: dict[str, Any] = {"audio": tiny_asr.sung("no"), "text": "no"}
    for more, language in (({}, "en"), ({"domain": 0}, "es"), ({"domain": 0, "language": {"language": "en"}}, "en")):
        assert module.transform(sample | more, False)["prompt"][1] == token(f"<|{language}|>")
    with pytest.raises(ConfigError, match=r"task 'fr'.*no token <\|fr\|>"):
        module.check(Stream("s", [Task("fr", [Source(["a.tar"])], Budget(steps=1), language="fr")]))


# -- the window ----------------------------------------------------------------------------------------------------


def test_a_shorter_window_keeps_the_leading_positions(tmp_path: Path) -> None:
    folder = tiny_asr.whisper(tmp_path, seconds=3)
    torch.manual_seed(0)
    whole = ASRModule(f"local-dir:{folder}", random_init=True)
    whole.export(folder, "transformers")
    short: Any = ASRModule(f"local-dir:{folder}", max_seconds=1)
    assert batch_of(short, ["no"])["input_features"].shape[-1] == 100
    table: Any = whole.network
    kept = short.network.model.encoder.embed_positions.weight
    assert torch.equal(kept, table.model.encoder.embed_positions.weight[:50])
    assert not kept.requires_grad
    assert short.build_network().state_dict().keys() == short.network.state_dict().keys()
    (tmp_path / "short").mkdir()
    short.export(tmp_path / "short", "transformers")
    again: Any = ASRModule(f"local-dir:{tmp_path / 'short'}")
    batch = batch_of(short, ["no"])
    assert torch.equal(short.eval()(batch).logits, again.eval()(batch).logits)
    for bad in (0, 4):
        with pytest.raises(ConfigError, match="can be 1 to 3 seconds"):
            ASRModule(f"local-dir:{folder}", max_seconds=bad)


# -- what cannot be used -------------------------------------------------------------------------------------------


def reason(module: ASRModule, text: str, audio: Audio | None = None) -> str:
    row = module.transform({"audio": audio or tiny_asr.sung(text), "text": text}, False)
    assert row["text"] == text
    return str(row[SKIP])


def test_rows_that_cannot_be_trained_on_say_why(seq2seq: ASRModule) -> None:
    ctc, wave = tiny_asr.module("whisper", kind="ctc"), tiny_asr.module("wav2vec2", max_seconds=1)
    short = tiny_asr.sung("no")
    for module in (ctc, wave):
        assert "needs 20 frames, but the recording has" in reason(module, "no no no no no no no", short)
        assert reason(module, "¿Añó?") == "its transcript has characters outside the alphabet: 'ñ' 'ó'"
        assert reason(module, "?!", short) == "its transcript has no symbol of the alphabet"
    long = tiny_asr.sung("a" * 30)
    assert reason(seq2seq, "a", long) == reason(ctc, "a", long) == "the recording is 2.4 s long, the window 2 s"
    assert reason(wave, "a", long) == "the recording is 2.4 s long, more than max_seconds 1"
    assert reason(seq2seq, " ", short) == "its transcript is empty"
    assert reason(seq2seq, "no " * 20, short) == "its transcript has 60 tokens, the decoder takes 46"
    dropping = tiny_asr.module("wav2vec2", unknown="drop")
    assert SKIP not in dropping.transform({"audio": tiny_asr.sung("año"), "text": "año"}, False)
    with pytest.raises(SampleError, match="it has 2 transcripts"):
        ctc.transform({"audio": short, "text": ["a", "b"]}, False)
    with pytest.raises(SampleError, match=r"0\.00 s long, shorter than"):
        wave.transform({"audio": Audio(short.samples[:20], 8_000), "text": "a"}, False)


BAD = {
    "silence": (tiny_asr.wav(Audio(np.zeros(800, np.float32), 8_000)), "silent"),
    "nothing": (tiny_asr.wav(Audio(np.zeros(0, np.float32), 8_000)), "no samples"),
    "broken": (tiny_asr.wav(Audio(np.array([0.1, np.nan] * 400, np.float32), 8_000), subtype="FLOAT"), "not finite"),
    "rate": (tiny_asr.wav(tiny_asr.sung("no"), rate=7), "7 samples a second"),
    "letters": (b"no recording at all", "not a recording"),
}


@pytest.mark.parametrize("kind", [*BAD, "long", "unknown"])
def test_bad_samples_are_replaced_in_training_and_named(kind: str, tmp_path: Path) -> None:
    module = tiny_asr.module("whisper", kind="ctc")
    good = list(tiny_asr.clips("en", 8, 1))
    text = {"long": "no " * 30, "unknown": "ñandú"}.get(kind, "no")
    content, expected = BAD.get(kind, (tiny_asr.wav(tiny_asr.sung("no")), {"long": "frames"}.get(kind, "'ñ' 'ú'")))
    write_shard(tmp_path / "a.tar", [*good, {"__key__": "bad", "wav": content, "txt": text}])
    source = Source([str(tmp_path / "a.tar")])
    stream = Stream("s", [Task("en", [source], Budget(epochs=1))], [EvalSet("e", source, "error_rate")])
    for most, stops in ((1.0, False), (0.0, True)):
        data = StreamDataModule(stream, batch_size=3, eval_batch_size=9, max_bad=most)
        data.bind(module.transform, seed=0, collate=module.collate)
        data.check()
        loader = data.train_loader(stream.tasks[0], positions={}, segment=0, first_step=0, steps=3)
        if stops:
            with pytest.raises(RunError, match=expected):
                list(loader)
        else:
            assert "bad" not in {key for batch in loader for key in batch["__key__"]}
    if kind in ("long", "unknown"):  # what can be heard is measured all the same
        [batch] = data.eval_loader(source)
        assert "bad" in batch["__key__"] and len(module.generate(batch).texts or []) == 9
    else:
        with pytest.raises(RunError, match=expected):
            list(data.eval_loader(source))


def test_wrong_settings_are_refused(tmp_path: Path) -> None:
    wave, whisper = tiny_asr.wave(tmp_path / "a"), tiny_asr.whisper(tmp_path / "b")
    for settings, message in (
        ({"model": f"local-dir:{wave}", "kind": "seq2seq"}, "has no decoder"),
        ({"model": f"local-dir:{whisper}", "trainable": ["tower"]}, "trainable part 'tower'"),
        ({"model": f"local-dir:{whisper}", "kind": "rnnt"}, "kind 'rnnt' is unknown"),
        ({"model": f"local-dir:{wave}", "language": "xx"}, "no alphabet"),
    ):
        with pytest.raises(ConfigError, match=message):
            ASRModule(random_init=True, **settings)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="option 'beams'"):
        tiny_asr.module("wav2vec2").generate({}, beams=3)
    with pytest.raises(ConfigError, match="task 'x': language 'xx' has no alphabet"):
        other = Task("x", [Source(["a.tar"])], Budget(steps=1), language="xx")
        tiny_asr.module("wav2vec2").check(Stream("s", [other]))


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = tiny_asr.whisper(tmp_path)
    config = transformers.WhisperConfig.from_pretrained(folder)
    config.vocab_size = 100
    config.save_pretrained(folder)
    with pytest.raises(ConfigError, match="has 100 tokens, but its tokenizer 262; it is another model's"):
        ASRModule(f"local-dir:{folder}", random_init=True)


def test_a_feature_extractor_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = tiny_asr.whisper(tmp_path)
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)
    with pytest.raises(ConfigError, match="hears 8 mel bins, but its feature extractor gives 80"):
        ASRModule(f"local-dir:{folder}", random_init=True)


# -- places and parts ----------------------------------------------------------------------------------------------


def test_sites_leave_the_outputs_alone_and_the_heads_out(seq2seq: ASRModule) -> None:
    for module in (seq2seq, tiny_asr.module("whisper", kind="ctc"), tiny_asr.module("wav2vec2")):
        sites = module.sites("linear")
        assert {site.role for site in sites} >= {"query", "key", "value", "out"}
        assert not [site.name for site in sites if "head" in site.name or "proj_out" in site.name]
    assert {site.tower for site in seq2seq.sites("linear")} == {"audio", "text"}


@pytest.mark.parametrize("part", ["encoder", "head", "features"])
def test_only_what_was_asked_for_trains(part: str) -> None:
    module = tiny_asr.module("wav2vec2", trainable=[part])
    names = [n for n, p in module.network.named_parameters() if p.requires_grad]
    marks = {"encoder": "wav2vec2.encoder", "head": "lm_head", "features": "wav2vec2.feature_extractor"}
    assert any(n.startswith(marks[part]) for n in names)
    assert not any(n.startswith(m) for k, m in marks.items() if k != part for n in names)


def test_a_new_head_has_a_rate_of_its_own() -> None:
    module = tiny_asr.module("whisper", kind="ctc", head_lr_scale=100)
    scales = {n: g["lr_scale"] for g in module.parameter_groups() for n in g["param_names"]}
    assert {n for n, scale in scales.items() if scale == 100} == {"head.weight", "head.bias"}
    assert set(scales.values()) == {1.0, 100}
    with pytest.raises(ConfigError, match="head_lr_scale is 0"):
        tiny_asr.module("wav2vec2", head_lr_scale=0)
