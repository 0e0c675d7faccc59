"""CLAP: features and loss equal to transformers', trained and measured through the pair that the module names."""

import subprocess
import sys

import numpy as np
import pytest
import tiny_speech
import torch
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

from mmcl.errors import ConfigError, SampleError
from mmcl.metrics.probes import build
from mmcl.modules.audio_text import AudioTextContrastive, AudioTextModule
from mmcl.modules.contrastive_losses import ClassTextCrossEntropy, Contrastive
from mmcl.outputs import Audio, Outputs
from mmcl.stream import Budget, EvalSet, Source, Task

NAMES = list(tiny_speech.SOUNDS)
TONES = Task("t", [Source(["a.tar"])], Budget(steps=1), class_names=NAMES, templates=["a tone that will {}"])


@pytest.fixture
def module(tmp_path):
    torch.manual_seed(0)
    return tiny_speech.audio_text(tmp_path).eval()


def short(kind, count):
    """Recordings within a second, which the extractor does not crop at random."""
    return [Audio(audio.samples[:1900], audio.rate) for audio in tiny_speech.sounds(kind, count)]


def rows(module, count=4, **more):
    found = []
    for i, audio in enumerate(tiny_speech.sounds("fall", count)):
        row = module.transform({"audio": audio, "text": f"tone number {i} will fall"}, False)
        found.append({**row, **{k: v[i] for k, v in more.items()}, "__key__": str(i), "__index__": i})
    return module.collate(found)


def test_features_and_loss_are_those_of_transformers(module, tmp_path):
    with torch.no_grad():
        module.network.logit_scale_t.fill_(1.5)  # the two temperatures are trained apart
        module.network.logit_scale_a.fill_(2.5)
    batch = rows(module)
    (tmp_path / "out").mkdir()
    module.export(tmp_path / "out", "transformers")
    theirs = ClapModel.from_pretrained(tmp_path / "out").eval()
    mask = (batch["text"] != 1).long()
    expected = theirs(batch["text"], batch["audio"], batch["audio_longer"], attention_mask=mask, return_loss=True)
    outputs = module(batch)
    for name, value in {"audio": expected.audio_embeds, "text": expected.text_embeds}.items():
        ours = torch.nn.functional.normalize(outputs.features[name], dim=-1)
        torch.testing.assert_close(ours, value, rtol=0, atol=1e-6)
    # transformers transposes the logits of the sounds, so that both its terms look for the sound of a caption.
    each = torch.arange(4)
    by_caption = torch.nn.functional.cross_entropy(expected.logits_per_text, each)
    by_sound = torch.nn.functional.cross_entropy(expected.logits_per_audio, each)
    [loss] = module.loss(outputs, batch).values()
    torch.testing.assert_close(loss, (by_caption + by_sound) / 2, rtol=1e-6, atol=0)


def test_with_one_temperature_it_is_the_shared_contrastive_loss(module):
    batch = rows(module)
    outputs = module(batch)
    own, shared = AudioTextContrastive(), Contrastive("clip", ("audio", "text"))
    [a], [b] = (objective.terms(outputs, batch).values() for objective in (own, shared))
    torch.testing.assert_close(a, b, rtol=1e-6, atol=0)
    outputs.features = {k: torch.cat([v, torch.randn(2, 12)]) for k, v in outputs.features.items()}
    [padded] = own.terms(outputs, {"valid": torch.arange(6) < 4}).values()
    torch.testing.assert_close(padded, a, rtol=1e-6, atol=0)


def test_recordings_become_the_extractor_s_pictures(module, tmp_path):
    extractor = ClapFeatureExtractor.from_pretrained(tmp_path)
    [audio] = short("rise", 1)
    expected = extractor(audio.samples, sampling_rate=2000, return_tensors="pt")
    row = module.transform({"audio": audio, "text": ["tone", "a tone"], "labels": 3}, False)
    torch.testing.assert_close(row["audio"], expected.input_features[0].float(), rtol=0, atol=0)
    assert row["text"].shape == (2, 10) and row["labels"] == 3
    with pytest.raises(SampleError, match="no recording"):
        module.transform({"audio": None}, False)


def test_several_captions_count_by_their_first(module):
    found = [{**module.transform({"audio": a, "text": ["tone", "rise"]}, False), "__key__": "k"}
             for a in tiny_speech.sounds("rise", 3)]  # fmt: skip
    batch = module.collate(found)
    assert batch["text"].shape[0] == 6
    assert torch.equal(module.objective.prepare(batch)["text"], batch["text"][::2])


def test_trains_everything_but_what_is_frozen(tmp_path):
    torch.manual_seed(0)
    whole = tiny_speech.audio_text(tmp_path / "a")
    sum(whole.loss(whole(rows(whole)), rows(whole)).values()).backward()
    assert [n for n, p in whole.network.named_parameters() if p.grad is None] == []
    part = tiny_speech.audio_text(tmp_path / "b", trainable=["audio"])
    part.grow(None)
    assert {n.partition("_")[0] for n, p in part.network.named_parameters() if p.requires_grad} == {"audio"}
    assert not part.train().network.text_model.training and part.network.audio_model.training


def idle(module, batch):
    """What would train but gets no gradient; DDP stops at the second step for it."""
    module.network.zero_grad()
    batch = module.objective.prepare(batch)
    sum(module.loss(module(batch), batch).values()).backward()
    return [n for n, p in module.network.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize("objective", [Contrastive("clip", ("audio", "text")), ClassTextCrossEntropy(0.0)])
def test_a_temperature_that_the_objective_does_not_use_stays(tmp_path, objective):
    module = tiny_speech.audio_text(tmp_path, objective=objective)
    objective.start(module, TONES)
    module.grow(TONES)
    assert idle(module, rows(module, labels=[0, 1, 1, 0])) == []
    assert module.network.logit_scale_a.requires_grad and not module.network.logit_scale_t.requires_grad
    module.objective = AudioTextContrastive()
    module.grow(TONES)
    assert idle(module, rows(module)) == [] and module.network.logit_scale_t.requires_grad


@pytest.fixture
def fused(tmp_path):
    """A CLAP that fuses crops of long recordings with the whole; transformers does it for 64 mel bins alone."""
    folder = tiny_speech.write_clap(tmp_path / "fused")
    config = ClapConfig.from_pretrained(folder)
    config.audio_config.enable_fusion = True
    config.audio_config.num_mel_bins = config.audio_config.spec_size = 64
    config.save_pretrained(folder)
    extractor = ClapFeatureExtractor.from_pretrained(folder).to_dict()
    extractor |= {"feature_size": 64, "fft_window_size": 512, "truncation": "fusion"}
    ClapFeatureExtractor(**extractor).save_pretrained(folder)
    torch.manual_seed(0)
    return AudioTextModule(str(folder), random_init=True, context=10, lr=1e-3)


def noise(samples, seed=0):
    return Audio(np.random.default_rng(seed).standard_normal(samples).astype(np.float32), 2000)


def test_only_recordings_beyond_the_window_are_longer(fused, module):
    both = [noise(1900), noise(2300, seed=1)]
    theirs = fused.extractor([audio.samples for audio in both], sampling_rate=2000, return_tensors="pt")
    assert theirs["is_longer"].tolist() == [[False], [True]]
    batch = rows_of(fused, both)
    assert torch.equal(batch["audio_longer"], theirs["is_longer"])
    torch.testing.assert_close(batch["audio"][0], theirs["input_features"][0].float())
    lone = rows_of(fused, [noise(1900), noise(2000), noise(2010)])  # the last has no frame more than the window
    assert not lone["audio_longer"].any()
    assert rows_of(module, both)["audio_longer"].tolist() == [[False], [True]]
    alone, together = fused.eval()(rows_of(fused, both[:1])), fused(batch)
    torch.testing.assert_close(alone.features["audio"][0], together.features["audio"][0], rtol=0, atol=1e-6)
    flagged = fused({**batch, "audio_longer": torch.tensor([[True], [True]])})
    assert not torch.allclose(flagged.features["audio"][0], together.features["audio"][0], atol=1e-3)


def test_fusion_trains_with_any_number_of_long_recordings(fused):
    before = {k: v.clone() for k, v in fused.network.state_dict().items() if "fusion_model" in k and "running" in k}
    for lengths in ([1900, 1500], [1900, 2300], [2300, 2400]):
        found = [fused.transform({"audio": noise(n, seed=n), "text": "tone"}, True) for n in lengths]
        assert idle(fused.train(), fused.collate([{**row, "__key__": "k"} for row in found])) == []
        long = max(lengths) > 2000
        assert bool(fused.network.audio_model.audio_encoder.patch_embed.mel_conv2d.weight.grad.any()) == long
    assert before and all(torch.equal(fused.network.state_dict()[k], v) for k, v in before.items())


def test_logit_scales_stay_below_100(module):
    with torch.no_grad():
        module.network.logit_scale_a.fill_(9)
        module.network.logit_scale_t.fill_(9)
    module.after_step()
    assert float(module(rows(module)).logit_scale.detach()) == pytest.approx(100)
    assert float(module.network.logit_scale_t.detach().exp()) == pytest.approx(100)


def test_learns_classes_by_their_texts(module):
    objective = ClassTextCrossEntropy(0.0)
    objective.start(module, TONES)
    batch = objective.prepare(rows(module, labels=[0, 1, 1, 0]))
    outputs = module(batch)
    assert outputs.logits.shape == (4, 2)
    [loss] = objective.terms(outputs, batch).values()
    expected = torch.nn.functional.cross_entropy(outputs.logits, torch.tensor([0, 1, 1, 0]))
    torch.testing.assert_close(loss, expected)


def test_probes_look_at_sounds(module):
    kinds = {"retrieval": None, "zero_shot": NAMES}
    for kind, classes in kinds.items():
        probe = build(EvalSet("a", Source(["a.tar"]), kind, classes, options={"k": 2} if classes else {}), module)
        probe.start(module)
        features = {"audio": torch.eye(12)[:4], "text": torch.eye(12)[:4]}
        if classes:
            features["audio"] = probe.classifier[[0, 1, 1, 0]]
        probe.update({**rows(module), "labels": torch.tensor([0, 1, 1, 0])}, Outputs(features))
        assert probe.compute(lambda x: x, lambda x: x).value == 1
        assert kind == "zero_shot" or "audio-text" in probe.protocol


def test_sites_lie_in_both_towers(module):
    sites = module.sites("linear")
    assert {s.tower for s in sites} == {"audio", "text"}
    assert {"query", "key", "value", "out", "mlp_in", "mlp_out"} <= {s.role for s in sites if s.tower == "text"}


def test_refuses_what_it_cannot_serve(tmp_path, module):
    tiny_speech.wav2vec2(tmp_path / "other")
    with pytest.raises(ConfigError, match="of type 'wav2vec2', not clap"):
        AudioTextModule(str(tmp_path / "other" / "wav2vec2.json"))
    with pytest.raises(ConfigError, match=r"context is 40; the text tower of .* takes 3 to 14"):
        tiny_speech.audio_text(tmp_path, context=40)
    with pytest.raises(ConfigError, match="trainable part 'image'"):
        tiny_speech.audio_text(tmp_path, trainable=["image"])
    assert module.needed() == module.needed("retrieval") == {"audio", "text"}
    assert module.needed("zero_shot") == {"audio", "labels"}


def test_parts_of_another_model_are_refused(tmp_path):
    folder = tiny_speech.write_clap(tmp_path / "own")
    whole = ClapConfig.from_pretrained(folder).to_dict()
    for part, changes, message in (
        ("text_config", {"vocab_size": 20}, "has 20 embeddings, but its tokenizer .* tokens; it is another model's"),
        ("text_config", {"pad_token_id": 0}, "pads with token 0, but its tokenizer with 1"),
        ("audio_config", {"num_mel_bins": 64}, "hears 64 mel bins, but its feature extractor gives 16"),
        ("audio_config", {"enable_fusion": True}, "has enable_fusion True, but its feature extractor rand_trunc"),
    ):
        ClapConfig(**{**whole, part: {**whole[part], **changes}}).save_pretrained(folder)
        with pytest.raises(ConfigError, match=message):
            AudioTextModule(str(folder), random_init=True, context=10)


ALONE = """
import sys, torch, transformers
folder, out = sys.argv[1:]
processor = transformers.ClapProcessor.from_pretrained(folder)
model = transformers.ClapModel.from_pretrained(folder).eval()
given = torch.load(folder + "/../given.pt")
inputs = processor(text=given["texts"], audio=[a.numpy() for a in given["audio"]], sampling_rate=2000,
                   return_tensors="pt", padding=True)
torch.save(model(**inputs).logits_per_audio, out)
assert "mmcl" not in sys.modules
"""


@pytest.mark.slow
def test_transformers_alone_reads_what_is_exported(module, tmp_path):
    texts = ["tone number 1", "a tone that will fall"]
    tones = short("fall", 3)
    torch.save({"texts": texts, "audio": [torch.from_numpy(a.samples) for a in tones]}, tmp_path / "given.pt")
    (tmp_path / "out").mkdir()
    module.export(tmp_path / "out", "transformers")
    subprocess.run([sys.executable, "-c", ALONE, tmp_path / "out", tmp_path / "found.pt"], check=True)
    batch = rows_of(module, tones) | {"class_text": module.tokenize(texts)}
    torch.testing.assert_close(torch.load(tmp_path / "found.pt"), module(batch).logits, rtol=0, atol=1e-5)
    again = AudioTextModule(str(tmp_path / "out"), context=10).eval()
    torch.testing.assert_close(again(batch).logits, module(batch).logits, rtol=0, atol=0)


def rows_of(module, recordings):
    return module.collate([{**module.transform({"audio": a}, False), "__key__": "k"} for a in recordings])
