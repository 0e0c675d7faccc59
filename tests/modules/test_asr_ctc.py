"""CTC recognisers: the loss, the alphabet, and a head that grows and is new until it was trained."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_asr
import torch
import torch.nn.functional as F
import transformers
from tiny_asr import EN, ES, TEXTS, batch_of

from mmcl.errors import ConfigError
from mmcl.modules.alphabets import LETTERS, Alphabet, letters_of
from mmcl.modules.asr import ASRModule
from mmcl.modules.ctc import CTC, frames_needed
from mmcl.outputs import SKIP, Outputs
from mmcl.strategies import Distillation
from mmcl.stream import Stream

# -- CTC -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["wav2vec2", "hubert"])
def test_ctc_equals_torch_and_transformers(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    folder = tiny_asr.wave(tmp_path, kind, norm="layer")
    module = ASRModule(f"local-dir:{folder}", random_init=True).eval()
    batch = batch_of(module, TEXTS)
    network: Any = module.network
    network.config.ctc_loss_reduction, network.config.pad_token_id = "mean", 0
    mask = torch.arange(batch["audio"].shape[1]) < batch["audio_lengths"][:, None]
    theirs = network(batch["audio"], attention_mask=mask.long(), labels=batch["targets"])
    outputs = module(batch)
    assert outputs.logits is not None and outputs.valid is not None
    torch.testing.assert_close(outputs.logits[outputs.valid], theirs.logits[outputs.valid], rtol=1e-4, atol=1e-5)
    own = CTC().terms(Outputs(logits=theirs.logits, valid=outputs.valid), batch)["ctc_loss"]
    assert own.item() == pytest.approx(theirs.loss.item(), abs=1e-6)
    frames, lengths = outputs.valid.sum(1), batch["targets_lengths"]
    parts = [
        F.ctc_loss(
            outputs.logits[i, : frames[i]].log_softmax(-1), batch["targets"][i, :n], frames[i], n, reduction="sum"
        )
        for i, n in enumerate(lengths)
    ]
    summed = CTC(by_length=False).terms(outputs, batch)["ctc_loss"]
    assert summed.item() == pytest.approx(torch.stack(parts).mean().item(), abs=1e-5)


@pytest.mark.parametrize("settings", [{"family": "wav2vec2"}, {"family": "whisper", "kind": "ctc"}])
def test_ctc_rows_do_not_depend_on_their_batch(settings: dict[str, Any]) -> None:
    module = tiny_asr.module(**settings).eval()
    together = module(batch_of(module, TEXTS))
    for i, text in enumerate(TEXTS):
        alone = module(batch_of(module, [text]))
        torch.testing.assert_close(together.logits[i][together.valid[i]], alone.logits[0][alone.valid[0]])
    marked = batch_of(module, TEXTS) | {"valid": torch.tensor([True, True, False])}
    fewer = batch_of(module, TEXTS[:2])
    one, other = (module.loss(module(b), b)["ctc_loss"].item() for b in (marked, fewer))
    assert one == pytest.approx(other, abs=1e-5)


def test_an_impossible_transcript_has_no_loss_and_no_gradient() -> None:
    logits = torch.randn(2, 3, 4, requires_grad=True)
    batch = {"targets": torch.tensor([[1, 1, 2], [1, 2, -100]]), "targets_lengths": torch.tensor([3, 2])}
    outputs = Outputs(logits=logits, valid=torch.ones(2, 3, dtype=torch.bool))
    loss = CTC(by_length=False).terms(outputs, batch)["ctc_loss"]
    loss.backward()
    alone = F.ctc_loss(logits[1].log_softmax(-1), torch.tensor([1, 2]), torch.tensor(3), torch.tensor(2))
    assert loss.item() == pytest.approx(alone.item(), abs=1e-6)  # 2 symbols: torch's mean halves what the batch halves
    assert logits.grad is not None and not logits.grad[0].any() and logits.grad[1].any()
    assert frames_needed([1, 1, 2]) == 4


def test_two_ranks_with_unequal_rows_see_one_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    module = tiny_asr.module("wav2vec2").eval()
    parts = [batch_of(module, TEXTS[:2]), batch_of(module, TEXTS[2:])]
    whole = batch_of(module, TEXTS)
    truth = module.loss(module(whole), whole)["ctc_loss"].item()
    monkeypatch.setattr("mmcl.distributed.world_size", lambda: 2)
    monkeypatch.setattr("mmcl.distributed.total", lambda count: torch.full_like(count, 3))
    mean = np.mean([module.loss(module(b), b)["ctc_loss"].item() for b in parts])
    assert mean == pytest.approx(truth, abs=1e-5)


# -- the alphabet --------------------------------------------------------------------------------------------------


def test_every_alphabet_spells_its_own_letters() -> None:
    for language, letters in LETTERS.items():
        assert len(set(letters)) == len(letters), language
        alphabet = Alphabet.of(letters)
        first = letters[0]  # marks stand between letters
        text = " ".join(c if c.isalpha() else f"{first}{c}{first}" for c in letters)
        rows, unknown = alphabet.encode(text)
        assert not unknown and alphabet.decode(rows) == text
        assert set(rows) == set(range(1, len(alphabet))), language  # every symbol but the blank
    assert letters_of("es-MX", {}) == LETTERS["es"]
    assert letters_of("en", {"en": "ab"}) == "ab"
    with pytest.raises(ConfigError, match="language 'xx' has no alphabet"):
        letters_of("xx", {})


def test_the_raised_dot_stays_within_a_word() -> None:
    alphabet = Alphabet.of(LETTERS["ca"])
    for written in ("Col·legi,", "COL·LEGI ·", "co\u0140legi"):  # the last one has a letter for l and dot
        rows, unknown = alphabet.encode(written)
        assert (alphabet.decode(rows), unknown) == ("col·legi", [])


def test_decoding_merges_repeats_and_drops_blanks() -> None:
    alphabet = Alphabet.of("abc")
    assert alphabet.symbols == ("<pad>", "|", "a", "b", "c")
    assert alphabet.decode([2, 2, 0, 2, 3, 0, 1, 1, 4, 1]) == "aab c"
    upper = Alphabet(("<pad>", "|", "A", "B"))
    rows, unknown = upper.encode("a-b, C!")
    assert (rows, unknown) == ([2, 1, 3, 1], ["C"])
    assert upper.decode(rows) == "a b"


@pytest.mark.parametrize("settings", [{"family": "wav2vec2"}, {"family": "whisper", "kind": "ctc"}])
def test_growth_appends_the_letters_that_are_new(settings: dict[str, Any]) -> None:
    module = tiny_asr.module(**settings).eval()
    batch = batch_of(module, TEXTS)
    before = module(batch).logits
    module.grow(EN)
    assert torch.equal(module(batch).logits, before)
    torch.manual_seed(5)
    module.grow(ES)
    after = module(batch).logits
    new = len(LETTERS["es"]) - 26
    assert after.shape[-1] == before.shape[-1] + new == len(LETTERS["en"]) + 2 + new
    assert torch.equal(after[..., : before.shape[-1]], before)
    again = tiny_asr.module(**settings).eval()
    again.grow(EN)
    torch.manual_seed(5)
    again.grow(ES)
    for (name, one), (_, other) in zip(
        module.network.named_parameters(), again.network.named_parameters(), strict=True
    ):
        assert torch.equal(one, other) and one.requires_grad == other.requires_grad, name
    state = torch.random.get_rng_state()
    assert module.build_network().state_dict().keys() == module.network.state_dict().keys()
    assert torch.equal(torch.random.get_rng_state(), state)
    row = module.transform({"audio": tiny_asr.sung("año"), "text": "¡Año!"}, False)
    assert SKIP not in row and len(row["targets"]) == 3


@pytest.mark.parametrize("settings", [{"family": "wav2vec2"}, {"family": "whisper", "kind": "ctc"}])
def test_a_new_head_is_fresh_until_it_was_trained(settings: dict[str, Any], tmp_path: Path) -> None:
    module = tiny_asr.module(**settings)
    assert module.fresh_head
    module.export(tmp_path, "transformers")
    again = ASRModule(f"local-dir:{tmp_path}", kind="ctc")
    assert not again.fresh_head
    assert ASRModule(f"local-dir:{tmp_path}", kind="ctc", random_init=True).fresh_head
    assert not tiny_asr.module("whisper").fresh_head  # its decoder's own table
    for made, known in ((module, 0), (again, len(LETTERS["en"]) + 2)):
        batch = batch_of(made, TEXTS)
        assert made(batch).known is None  # alone, without tasks
        made.grow(EN)
        assert made(batch).known.sum() == known
        made.grow(ES)  # the letters that it brings are new
        kept = made(batch).known
        assert len(kept) == made(batch).logits.shape[-1] > kept.sum() == len(LETTERS["en"]) + 2


def test_a_model_that_was_only_pretrained_gets_a_fresh_head(tmp_path: Path) -> None:
    folder = tiny_asr.wave(tmp_path)
    transformers.Wav2Vec2Model(tiny_asr.wave_config()).save_pretrained(folder)
    assert ASRModule(f"local-dir:{folder}").fresh_head


def distilled(module: Any, **settings: Any) -> Distillation:
    strategy = Distillation(reference=None, **settings)
    reach: Any = SimpleNamespace(module=module)
    strategy.attach_reach(reach)
    strategy.setup(Stream("s", [EN, ES]))
    return strategy


def test_no_student_is_held_to_a_head_that_knows_nothing() -> None:
    module = tiny_asr.module("whisper", kind="ctc")
    with pytest.raises(ConfigError, match="the initial head of ASRModule knows nothing yet"):
        distilled(module)
    assert distilled(module, on="tokens").on == "tokens"
    strategy, batch = distilled(module, teacher="previous"), batch_of(module, TEXTS)
    losses = []
    for task in (EN, ES):
        module.grow(task)
        outputs = module(batch)
        teacher = replace(outputs, logits=torch.randn_like(outputs.logits))
        context: Any = SimpleNamespace(
            batch=batch, outputs=outputs, teacher=lambda name, batch, told=teacher: told, reduce=lambda x: x
        )
        [loss] = strategy.losses(context).values()
        losses.append(float(loss.detach()))
    assert losses[0] == 0 < losses[1]
