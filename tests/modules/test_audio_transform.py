import numpy as np
import pytest
import torch
from torchaudio.functional import resample

from mmcl.errors import ConfigError, SampleError
from mmcl.modules.audio_transform import AudioTransform
from mmcl.outputs import Audio


def tone(rate: int, seconds: float = 0.5, hertz: float = 440.0) -> Audio:
    time = np.arange(int(rate * seconds)) / rate
    return Audio(np.sin(2 * np.pi * hertz * time).astype(np.float32), rate)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100])
def test_a_tone_stays_the_same_tone(rate: int) -> None:
    heard = AudioTransform(16_000)({"audio": tone(rate)})
    assert heard.shape == (8_000,)
    assert heard.dtype == torch.float32
    middle = slice(500, 7_500)
    torch.testing.assert_close(heard[middle], torch.from_numpy(tone(16_000).samples)[middle], atol=5e-3, rtol=0)
    assert torch.equal(heard, resample(torch.from_numpy(tone(rate).samples), rate, 16_000))


def test_the_right_rate_is_left_alone() -> None:
    audio = tone(16_000)
    assert torch.equal(AudioTransform(16_000)({"audio": audio}), torch.from_numpy(audio.samples))


def test_lengths_are_kept_within_bounds() -> None:
    transform = AudioTransform(16_000, min_seconds=0.2, max_seconds=0.4)
    assert len(transform({"audio": tone(8_000, 0.3)})) == 4_800
    with pytest.raises(SampleError, match=r"0\.50 s long, longer than 0\.4 s"):
        transform({"audio": tone(8_000, 0.5)})
    with pytest.raises(SampleError, match=r"0\.10 s long, shorter than 0\.2 s"):
        transform({"audio": tone(8_000, 0.1)})
    assert len(transform.waveform({"audio": tone(8_000, 0.5)})) == 8_000


def test_what_is_no_recording_is_refused() -> None:
    transform = AudioTransform()
    with pytest.raises(SampleError, match="no recording under 'audio'"):
        transform({"text": "hello"})
    with pytest.raises(SampleError, match="not a row of numbers"):
        transform({"audio": Audio(np.zeros((0,), np.float32), 16_000)})
    with pytest.raises(SampleError, match="not finite"):
        transform({"audio": Audio(np.array([0.1, np.nan], np.float32), 16_000)})


@pytest.mark.parametrize("settings", [{"rate": 0}, {"min_seconds": -1.0}, {"min_seconds": 2.0, "max_seconds": 1.0}])
def test_impossible_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="audio: "):
        AudioTransform(**settings)  # type: ignore[arg-type]
