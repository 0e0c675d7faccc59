"""wav2vec 2.0 and HuBERT: equal to transformers, exact on several processes, and read back by transformers alone."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_speech
import torch
import torch.nn.functional as F
from transformers import HubertModel, Wav2Vec2Config, Wav2Vec2ForPreTraining

from mmcl import Strategy
from mmcl.errors import ConfigError, RunError
from mmcl.metrics.objective_probe import ObjectiveProbe
from mmcl.metrics.probes import build
from mmcl.modules.objectives import CrossEntropy
from mmcl.modules.speech_objectives import ContrastiveSpeech
from mmcl.modules.speech_pretraining import SpeechPretrainingModule
from mmcl.outputs import Outputs
from mmcl.stream import EvalSet, Source

HERE = Path(__file__).parent


@pytest.fixture
def wav2vec2(tmp_path):
    torch.manual_seed(0)
    return tiny_speech.wav2vec2(tmp_path).eval()


@pytest.fixture
def hubert(tmp_path):
    torch.manual_seed(0)
    return tiny_speech.hubert(tmp_path).eval()


def exported(module, folder, kind):
    """transformers' own model with the module's weights."""
    folder.mkdir()
    module.export(folder, "transformers")
    return kind.from_pretrained(folder).eval()


def flat_distractors(batch):
    rows, frames, _ = batch["distractors"].shape
    return batch["distractors"] + torch.arange(rows)[:, None, None] * frames


@pytest.mark.parametrize("stable", [False, True])
def test_wav2vec2_s_loss_is_that_of_transformers(tmp_path, stable):
    module = tiny_speech.wav2vec2(tmp_path, do_stable_layer_norm=stable).eval()
    batch = tiny_speech.batch_of(module)
    theirs = exported(module, tmp_path / "out", Wav2Vec2ForPreTraining)
    attention = torch.arange(batch["audio"].shape[1]) < batch["audio_lengths"][:, None]
    expected = theirs(
        batch["audio"],
        attention_mask=attention.long(),
        mask_time_indices=batch["masked"],
        sampled_negative_indices=flat_distractors(batch),
    )
    terms, count = module.loss(module(batch), batch), batch["masked"].sum()
    torch.testing.assert_close(terms["contrastive_loss"] * count, expected.contrastive_loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(sum(terms.values()) * count, expected.loss, rtol=1e-6, atol=0)
    assert batch["audio_lengths"].unique().numel() > 1


@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("make", [tiny_speech.wav2vec2, tiny_speech.hubert])
def test_a_row_does_not_depend_on_the_others(tmp_path, make, norm):
    module = make(tmp_path, feat_extract_norm=norm).eval()
    whole = tiny_speech.batch_of(module, count=3)
    together = module(whole)
    for row in range(3):
        length, frames = int(whole["audio_lengths"][row]), int(whole["masked_lengths"][row])
        alone = {k: v[row : row + 1] for k, v in whole.items() if torch.is_tensor(v)}
        alone |= {"audio": alone["audio"][:, :length]}
        alone |= {k: alone[k][:, :frames] for k in ("masked", "distractors", "targets") if k in alone}
        torch.testing.assert_close(module(alone).tokens[0], together.tokens[row, :frames], rtol=0, atol=1e-5)
        assert together.valid[row].tolist() == [i < frames for i in range(whole["masked"].shape[1])]


def test_group_norm_is_transformers_own_where_nothing_is_padded(tmp_path):
    module = tiny_speech.wav2vec2(tmp_path, feat_extract_norm="group").eval()
    theirs = exported(module, tmp_path / "out", Wav2Vec2ForPreTraining)
    audio = torch.randn(2, 900)
    expected = theirs.wav2vec2(audio).last_hidden_state
    ours = module({"audio": audio, "audio_lengths": torch.tensor([900, 900])}).tokens
    torch.testing.assert_close(ours, expected, rtol=0, atol=2e-6)


def test_hubert_is_transformers_model_and_the_papers_formula(hubert, tmp_path):
    batch = tiny_speech.batch_of(hubert)
    theirs = exported(hubert, tmp_path / "out", HubertModel)
    attention = torch.arange(batch["audio"].shape[1]) < batch["audio_lengths"][:, None]
    hidden = theirs(batch["audio"], attention_mask=attention.long(), mask_time_indices=batch["masked"])
    outputs = hubert(batch)
    kept = outputs.valid
    torch.testing.assert_close(outputs.tokens[kept], hidden.last_hidden_state[kept], rtol=0, atol=2e-6)
    losses = []
    for row, frame in batch["masked"].nonzero().tolist():
        projected = hubert.network.project(hidden.last_hidden_state[row, frame])
        cosines = F.cosine_similarity(projected[None], hubert.network.codewords) / 0.1
        losses.append(-cosines.log_softmax(0)[batch["targets"][row, frame]])
    [loss] = hubert.loss(outputs, batch).values()
    torch.testing.assert_close(loss, torch.stack(losses).mean(), rtol=1e-5, atol=0)
    assert (batch["targets"] == -100).eq(~batch["masked"]).all()


@pytest.mark.parametrize("make", [tiny_speech.wav2vec2, tiny_speech.hubert])
def test_trains_everything_and_lowers_its_loss(tmp_path, make):
    torch.manual_seed(0)
    module = make(tmp_path)
    batch = tiny_speech.batch_of(module, count=8)
    optimizer = module.build_optimizer(module.parameter_groups())
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = sum(module.loss(module(batch), batch).values())
        loss.backward()
        assert all(p.grad is not None for p in module.network.parameters())
        optimizer.param_groups[0]["lr"] = 5e-3
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-5:]) < 0.9 * losses[0]


def test_frozen_features_stay_frozen_in_every_task(tmp_path):
    file = tiny_speech.write_config(tmp_path, Wav2Vec2Config(**tiny_speech.COMMON))
    module = SpeechPretrainingModule(str(file), random_init=True, freeze_features=True)
    module.grow(None)
    frozen = {n for n, p in module.network.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, _ in module.network.named_parameters() if "feature_extractor" in n}


def test_codewords_are_fresh_until_they_were_trained(tmp_path, wav2vec2, hubert):
    batch = tiny_speech.batch_of(hubert)
    assert hubert.fresh_head and not wav2vec2.fresh_head  # wav2vec 2.0 has no logits over columns
    assert hubert(batch).known is None
    hubert.grow(None)
    assert not hubert(batch).known.any() and len(hubert(batch).known) == 8
    hubert.grow(None)
    assert hubert(batch).known is None
    (tmp_path / "out").mkdir()
    hubert.export(tmp_path / "out", "transformers")
    again = SpeechPretrainingModule(str(tmp_path / "out"), code_width=8)
    again.grow(None)
    assert not again.fresh_head and again(batch).known is None
    (tmp_path / "out" / "pretraining_head.safetensors").unlink()  # a HubertModel as others publish it
    assert SpeechPretrainingModule(str(tmp_path / "out"), code_width=8).fresh_head


@pytest.mark.parametrize("make", [tiny_speech.wav2vec2, tiny_speech.hubert])
def test_the_factor_scales_the_gradients_of_the_convolutions_only(tmp_path, make):
    module = make(tmp_path, feat_extract_norm="group")
    assert module.feature_grad_mult == 0.1
    batch = tiny_speech.batch_of(module)
    losses, gradients = {}, {}
    for factor in (1.0, 0.25):
        module.feature_grad_mult = factor
        module.network.zero_grad()
        torch.manual_seed(0)  # of Gumbel noise and dropout
        losses[factor] = sum(module.loss(module(batch), batch).values())
        losses[factor].backward()
        gradients[factor] = {n: p.grad.clone() for n, p in module.network.named_parameters()}
    assert losses[1.0] == losses[0.25]
    for name, whole in gradients[1.0].items():
        expected = 0.25 * whole if ".feature_extractor." in name else whole  # a power of 2 is exact
        torch.testing.assert_close(gradients[0.25][name], expected, rtol=1e-6, atol=1e-9, msg=name)
        assert whole.any() or ".feature_extractor." not in name


@pytest.mark.parametrize("norm, factor", [("group", 0.1), ("layer", 1.0)])
def test_the_factor_is_that_of_the_published_models_unless_set(tmp_path, norm, factor):
    file = tiny_speech.write_config(tmp_path, Wav2Vec2Config(**(tiny_speech.COMMON | {"feat_extract_norm": norm})))
    assert SpeechPretrainingModule(str(file), random_init=True).feature_grad_mult == factor
    set_by_hand = SpeechPretrainingModule(str(file), random_init=True, feature_grad_mult=0.5)
    assert set_by_hand.feature_grad_mult == 0.5


@pytest.mark.slow
def test_losses_and_gradients_are_equal_on_two_processes(tmp_path):
    sys.path.insert(0, str(HERE))
    from speech_ranks import CASES

    script = str(HERE / "speech_ranks.py")
    for world in (1, 2):
        folder = tmp_path / str(world)
        folder.mkdir()
        processes = [
            subprocess.Popen([sys.executable, script, str(folder), str(rank), str(world)]) for rank in range(world)
        ]
        assert [p.wait(120) for p in processes] == [0] * world
    expected, *found = (torch.load(tmp_path / f) for f in ("1/rank0.pt", "2/rank0.pt", "2/rank1.pt"))
    for case in CASES:
        assert len(expected[case]) > 20
        for ours in found:
            assert ours[case].keys() == expected[case].keys()
            for name, value in expected[case].items():
                torch.testing.assert_close(ours[case][name], value, rtol=1e-4, atol=2e-6, msg=f"{case} {name}")


class Watch(Strategy):
    """Notes the step that the temperature of the codes is taken from."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def losses(self, context):
        self.seen.append((self.module.global_step, context.step))
        return {}


def test_the_temperature_follows_the_steps_of_the_run(tmp_path):
    import cases

    watch = Watch()
    cases.run("wav2vec2", tmp_path / "shards", tmp_path / "run", [watch])
    assert watch.seen == [(i, i) for i in range(12)]


# -- what is refused -------------------------------------------------------------------------------------------------


def test_refuses_what_cannot_be_pretrained(tmp_path):
    from transformers import BertConfig

    cases = [
        (BertConfig(hidden_size=12, num_attention_heads=2), "of type 'bert'"),
        (Wav2Vec2Config(**(tiny_speech.COMMON | {"mask_time_prob": 0.0})), "no vector for masked frames"),
        (Wav2Vec2Config(**tiny_speech.COMMON, add_adapter=True), "merges frames"),
    ]
    for config, message in cases:
        with pytest.raises(ConfigError, match=message):
            SpeechPretrainingModule(str(tiny_speech.write_config(tmp_path, config)), random_init=True)


def test_refuses_numbers_and_codebooks_that_do_not_fit(tmp_path, hubert):
    wav2vec = str(tiny_speech.write_config(tmp_path, Wav2Vec2Config(**tiny_speech.COMMON)))
    for given, message in [
        ({"mask": 0.0}, "mask is 0.0"),
        ({"mask_span": 0}, "mask_span is 0"),
        ({"distractors": 0}, "distractors is 0"),
        ({"max_seconds": -1.0}, "max_seconds"),
        ({"feature_grad_mult": 0.0}, r"feature_grad_mult is 0\.0; .*freeze_features"),
        ({"feature_grad_mult": 1.5}, r"feature_grad_mult is 1\.5; it must be within \(0, 1\]$"),
        ({"checkpoint": "a.safetensors"}, "only one of"),
    ]:
        with pytest.raises(ConfigError, match=message):
            SpeechPretrainingModule(wav2vec, random_init=True, **given)
    config = str(tmp_path / "hubert.json")
    with pytest.raises(ConfigError, match="needs a `codebook`"):
        SpeechPretrainingModule(config, random_init=True)
    with pytest.raises(ConfigError, match=r"\(2000, 32, 32\), the model's are \(16000, 32, 32\)"):
        SpeechPretrainingModule(config, random_init=True, codebook=str(tmp_path / "codebook.npz"))


# -- the probe -------------------------------------------------------------------------------------------------------


def measured(module, size):
    """The probe's result over 7 recordings in batches of a size."""
    whole = tiny_speech.batch_of(module, count=7)
    whole["valid"] = torch.arange(7) < 6
    probe = build(EvalSet("a", Source(["a.tar"]), "objective"), module)
    probe.start(module)
    for begin in range(0, 7, size):
        batch = {k: v[begin : begin + size] for k, v in whole.items()}
        with torch.no_grad():
            probe.update(batch, module(batch))
    return probe.compute(lambda x: x, lambda x: x), whole


@pytest.mark.parametrize("case", ["wav2vec2", "hubert"])
def test_the_objective_does_not_depend_on_the_batches(request, case):
    module = request.getfixturevalue(case)
    (one, whole), (other, _) = measured(module, 7), measured(module, 2)
    assert one.count == other.count == int(whole["masked"][:6].sum())
    for name, value in one.metrics.items():
        assert other.metrics[name] == pytest.approx(value, rel=1e-6)
    with torch.no_grad():
        loss = sum(module.loss(module(whole), whole).values())
    assert one.value == pytest.approx(float(loss), rel=1e-5)  # all in one batch: the training loss itself


def test_accuracy_and_perplexity_of_wav2vec2(wav2vec2):
    logits = torch.tensor([[[2.0, 1.0], [1.0, 2.0], [5.0, -torch.inf], [9.0, 1.0]]])
    usage = F.one_hot(torch.tensor([[[0], [1], [1], [2]]]), 4).float()
    extra = {
        "contrastive_logits": logits,
        "counted": torch.tensor([[True, True, True, False]]),
        "code_usage": usage,
    }
    scores = wav2vec2.objective.scores(wav2vec2.objective.sums(Outputs(extra=extra), {}))
    assert scores["contrastive_accuracy"] == pytest.approx(1 / 3)  # no distractor to be told from: not right
    assert scores["code_perplexity"] == pytest.approx(3 / 2 ** (2 / 3))
    told = F.cross_entropy(logits[0, :2], torch.zeros(2, dtype=torch.long), reduction="sum")
    expected = (told + math.log(2)) / 3  # without a distractor: a guess between two
    assert scores["contrastive_loss"] == pytest.approx(float(expected))
    assert scores["objective"] == pytest.approx(float(expected) + 0.1 * (4 - scores["code_perplexity"]) / 4)


def test_refuses_objectives_that_cannot_be_measured_and_sets_without_targets(wav2vec2):
    wav2vec2.objective = CrossEntropy()
    with pytest.raises(ConfigError, match="CrossEntropy cannot be taken over a set"):
        build(EvalSet("a", Source(["a.tar"]), "objective"), wav2vec2)
    probe = ObjectiveProbe(ContrastiveSpeech())
    probe.start(wav2vec2)
    with pytest.raises(RunError, match="no sample of the evaluation set has a target"):
        probe.compute(lambda x: x, lambda x: x)


# -- export ----------------------------------------------------------------------------------------------------------

ALONE = """
import sys, torch, transformers
folder, kind, out = sys.argv[1:]
heard = transformers.AutoFeatureExtractor.from_pretrained(folder)
model = getattr(transformers, kind).from_pretrained(folder).eval()
audio = torch.load(folder + "/../audio.pt")
values = heard(audio.numpy(), sampling_rate=heard.sampling_rate, return_tensors="pt").input_values
body = getattr(model, "wav2vec2", model)
torch.save(body(values).last_hidden_state, out)
assert "mmcl" not in sys.modules
"""


@pytest.mark.slow
@pytest.mark.parametrize("case, kind", [("wav2vec2", "Wav2Vec2ForPreTraining"), ("hubert", "HubertModel")])
def test_transformers_alone_reads_what_is_exported(request, tmp_path, case, kind):
    module = request.getfixturevalue(case)
    site = module.sites("linear")[0]
    delta = torch.nn.Linear(1, 1)
    delta.forward = lambda: torch.full(site.shape, 0.05)
    site.attach(delta)  # effective weights are written, adapters included
    [audio] = tiny_speech.sounds("rise", 1)
    torch.save(torch.from_numpy(audio.samples), tmp_path / "audio.pt")
    (tmp_path / "out").mkdir()
    module.export(tmp_path / "out", "transformers")
    subprocess.run([sys.executable, "-c", ALONE, tmp_path / "out", kind, tmp_path / "heard.pt"], check=True)
    row = module.transform({"audio": audio}, False)
    ours = module({"audio": row["audio"][None], "audio_lengths": torch.tensor([len(row["audio"])])}).tokens
    torch.testing.assert_close(torch.load(tmp_path / "heard.pt"), ours, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", ["wav2vec2", "hubert"])
def test_an_exported_folder_is_where_training_goes_on(request, tmp_path, case):
    module = request.getfixturevalue(case)
    for format in module.formats:
        (tmp_path / format).mkdir()
        module.export(tmp_path / format, format)
    again = SpeechPretrainingModule(f"local-dir:{tmp_path / 'transformers'}", code_width=8, mask_span=4).eval()
    batch = tiny_speech.batch_of(module)
    expected, found = module(batch), again(batch)
    torch.testing.assert_close(found.tokens, expected.tokens, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-5)
    assert again.samples.rate == module.samples.rate
    file = tmp_path / "safetensors" / "model.safetensors"
    settings = {"checkpoint": str(file), "code_width": 8, "rate": 2000}
    if case == "hubert":
        settings["codebook"] = str(tmp_path / "codebook.npz")
    third = SpeechPretrainingModule(str(tmp_path / f"{case}.json"), **settings).eval()
    torch.testing.assert_close(third(batch).tokens, expected.tokens, rtol=0, atol=0)
