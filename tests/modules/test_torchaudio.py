"""Speech losses equal those of torchaudio's models with the same weights, masks and targets."""

from pathlib import Path
from typing import Any

import pytest
import tiny_asr
import tiny_speech
import torch
import torch.nn.functional as F
from tiny_asr import TEXTS, batch_of
from torch import Tensor, nn
from torchaudio.models import HuBERTPretrainModel
from torchaudio.models.wav2vec2 import components
from torchaudio.models.wav2vec2.utils import import_huggingface_model
from transformers import HubertForCTC, HubertModel, Wav2Vec2ForCTC

from mmcl.modules.asr import ASRModule

CLUSTERS, WIDTH = 8, 8


def doubled(batch: dict[str, Any]) -> dict[str, Any]:
    return {**batch, "audio": batch["audio"].double()}


@pytest.mark.parametrize(("kind", "norm"), [("wav2vec2", "layer"), ("wav2vec2", "group"), ("hubert", "layer")])
def test_ctc_of_torchaudio_s_model(kind: str, norm: str, tmp_path: Path) -> None:
    """In models with a group norm torchaudio lets the padding into the statistics, so those get one recording."""
    torch.manual_seed(0)
    module = ASRModule(f"local-dir:{tiny_asr.wave(tmp_path, kind, norm)}", random_init=True).eval()
    module.export(tmp_path, "transformers")
    # torchaudio reads a head of wav2vec 2.0 alone.
    exported: Any = {"wav2vec2": Wav2Vec2ForCTC, "hubert": HubertForCTC}[kind].from_pretrained(tmp_path)
    theirs = import_huggingface_model(exported if kind == "wav2vec2" else exported.hubert).double().eval()
    batch = doubled(batch_of(module, TEXTS if norm == "layer" else TEXTS[:1]))
    outputs = module.double()(batch)
    logits, frames = theirs(batch["audio"], batch["audio_lengths"])
    if kind == "hubert":
        logits = exported.double().lm_head(logits)
    assert torch.equal(frames, batch["frames"])
    kept = outputs.valid
    # In float32 are our product of length and direction of the convolution over positions, and statistics over time.
    torch.testing.assert_close(outputs.logits[kept], logits[kept], rtol=0, atol=1e-7 if norm == "layer" else 1e-5)
    lengths = batch["targets_lengths"]
    expected = F.ctc_loss(logits.log_softmax(-1).transpose(0, 1), batch["targets"].clamp(min=0), frames, lengths)
    [loss] = module.loss(outputs, batch).values()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)  # ours is computed in float32


class Masked(nn.Module):
    """In place of torchaudio's `MaskGenerator`, which draws the frames."""

    def __init__(self, frames: Tensor, vector: Tensor) -> None:
        super().__init__()
        self.frames, self.vector = frames, nn.Parameter(vector.detach().clone())

    def forward(self, x: Tensor, padding_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        return torch.where(self.frames[..., None], self.vector, x), self.frames


def pretraining(module: Any, folder: Path, frames: Tensor, factor: float | None) -> HuBERTPretrainModel:
    """torchaudio's HuBERT with a module's weights."""
    folder.mkdir()
    module.export(folder, "transformers")
    exported: Any = HubertModel.from_pretrained(folder)
    head = components.LogitGenerator(exported.config.hidden_size, CLUSTERS, WIDTH, skip_masked=False, skip_nomask=True)
    head.final_proj.load_state_dict(module.network.project.state_dict())
    head.label_embeddings.data.copy_(module.network.codewords)
    mask = Masked(frames, exported.masked_spec_embed)
    return HuBERTPretrainModel(import_huggingface_model(exported), mask, head, factor).double().eval()


@pytest.mark.parametrize("factor", [None, 0.1])
@pytest.mark.parametrize("stable", [False, True])
def test_hubert_s_pretraining_is_torchaudio_s(stable: bool, factor: float | None, tmp_path: Path) -> None:
    """Loss, accuracy and gradients over recordings of different lengths."""
    torch.manual_seed(0)
    module: Any = tiny_speech.hubert(tmp_path, do_stable_layer_norm=stable).eval()
    module.feature_grad_mult = factor or 1.0
    batch = doubled(tiny_speech.batch_of(module))
    assert batch["audio_lengths"].unique().numel() > 1
    theirs = pretraining(module, tmp_path / "out", batch["masked"], factor)
    labels = batch["targets"].clamp(min=0)
    logits, _, _ = theirs(batch["audio"], labels, batch["audio_lengths"])
    expected = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))  # the true cluster comes first
    outputs = module.double()(batch)
    sums = module.objective.sums(outputs, batch)
    [loss] = module.loss(outputs, batch).values()
    assert len(logits) == sums["count"] > 20
    # torchaudio takes the cosines in float32.
    torch.testing.assert_close(sums["loss"] / sums["count"], expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    assert sums["right"] == (logits[:, 0] >= logits[:, 1:].amax(1)).sum()
    loss.backward()
    expected.backward()
    ours = module.network.hubert
    head, parts = theirs.logit_generator, theirs.wav2vec2
    pairs = [(module.network.codewords, head.label_embeddings), (ours.masked_spec_embed, theirs.mask_generator.vector)]
    for mine, other in (
        (module.network.project, head.final_proj),
        (ours.feature_extractor, parts.feature_extractor),
        (ours.encoder.layers, parts.encoder.transformer.layers),
    ):
        pairs += [(mine.get_parameter(name), weight) for name, weight in other.named_parameters()]
    for one, other in pairs:
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-7)
