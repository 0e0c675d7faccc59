"""What speech models are pretrained on: cut, normalised recordings, and codebooks of clusters."""

import numpy as np
import pytest
import tiny_speech
import torch
import torch.nn.functional as F
from transformers import Wav2Vec2Config

from mmcl.errors import ConfigError, SampleError
from mmcl.modules.speech_codebook import Codebook, fit_codebook
from mmcl.modules.speech_network import frame_count, window_of
from mmcl.modules.speech_pretraining import SpeechPretrainingModule
from mmcl.outputs import SKIP, Audio


@pytest.fixture
def wav2vec2(tmp_path):
    torch.manual_seed(0)
    return tiny_speech.wav2vec2(tmp_path).eval()


# -- samples ---------------------------------------------------------------------------------------------------------


def test_what_is_too_short_to_learn_from_is_skipped(wav2vec2):
    short = wav2vec2.transform({"audio": Audio(np.ones(3 * 32, np.float32), 2000)}, True)
    assert "3 frames" in short[SKIP]
    assert not short["masked"].any()
    with pytest.raises(SampleError, match="too few for one frame"):
        wav2vec2.transform({"audio": Audio(np.ones(20, np.float32), 2000)}, True)


def test_long_recordings_are_cut_at_random_in_training_only(tmp_path):
    file = tiny_speech.write_config(tmp_path, Wav2Vec2Config(**tiny_speech.COMMON))
    module = SpeechPretrainingModule(str(file), random_init=True, rate=1000, normalize=False, max_seconds=0.5)
    audio = Audio(np.arange(1, 901, dtype=np.float32), 1000)
    assert module.transform({"audio": audio}, False)["audio"].tolist() == list(range(1, 501))
    begins = {int(module.transform({"audio": audio}, True)["audio"][0]) for _ in range(20)}
    assert len(begins) > 5 and max(begins) <= 401


def test_normalizes_as_transformers_does(wav2vec2):
    from transformers import Wav2Vec2FeatureExtractor

    [audio] = tiny_speech.sounds("rise", 1)
    heard = Wav2Vec2FeatureExtractor(sampling_rate=2000)(audio.samples, sampling_rate=2000, return_tensors="pt")
    row = wav2vec2.transform({"audio": audio}, False)
    torch.testing.assert_close(row["audio"], heard.input_values[0], rtol=0, atol=1e-5)


# -- the codebook ----------------------------------------------------------------------------------------------------


def test_codebooks_are_equal_for_equal_seeds_and_survive_their_file(tmp_path):
    tones = list(tiny_speech.sounds("fall", 5))
    one, same, other = (fit_codebook(tones, 6, 2000, 32, 32, seed) for seed in (0, 0, 1))
    assert torch.equal(one.centroids, same.centroids)
    assert not torch.equal(one.centroids, other.centroids)
    one.save(tmp_path / "a.npz")
    wave = torch.from_numpy(tones[0].samples)
    targets = Codebook.load(tmp_path / "a.npz").targets(wave)
    assert torch.equal(targets, one.targets(wave))
    assert 3 <= len(targets.unique()) <= 6
    with pytest.raises(ConfigError, match="fewer than 1000 clusters"):
        fit_codebook(tones, 1000, 2000, 32, 32)


@pytest.mark.parametrize("kernels, strides", [([8, 4], [8, 4]), ([10, 3, 3, 2], [5, 2, 2, 2]), ([7, 5], [3, 2])])
def test_targets_have_the_frames_of_the_convolutions(kernels, strides):
    config = Wav2Vec2Config(conv_kernel=kernels, conv_stride=strides, conv_dim=[4] * len(kernels))
    width, step = window_of(config)
    book = fit_codebook(tiny_speech.sounds("rise", 3), 4, 2000, width, step)
    for length in range(width, width + 3 * step):
        wave = torch.randn(1, 1, length)
        for kernel, stride in zip(kernels, strides, strict=True):
            wave = F.conv1d(wave, torch.ones(1, 1, kernel), stride=stride)
        assert len(book.targets(torch.randn(length))) == frame_count(length, config) == wave.shape[2]


@pytest.mark.parametrize("content", [b"", b"no archive"])
def test_a_broken_codebook_is_refused(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ConfigError, match=r"a\.npz' cannot be read"):
        Codebook.load(tmp_path / "a.npz")
