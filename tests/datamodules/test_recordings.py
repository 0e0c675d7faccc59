"""Recordings are decoded whole or refused with a reason."""

import io

import numpy as np
import pytest
import soundfile

from mmcl.datamodules.decode import decode
from mmcl.outputs import Audio

RATE = 8_000
TONE = np.sin(np.arange(RATE) / 10).astype(np.float32) * 0.5


def encoded(samples, form="WAV", rate=RATE, **options):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(("form", "loss"), [("WAV", 1e-4), ("FLAC", 1e-4), ("OGG", 0.1), ("MP3", 0.1)])
def test_formats(form, loss):
    found = decode(form.lower(), encoded(TONE, form))
    assert isinstance(found, Audio) and found.rate == RATE and found.samples.dtype == np.float32
    assert len(found.samples) == RATE
    assert np.abs(found.samples - TONE).max() < loss


def test_channels_are_averaged():
    found = decode("wav", encoded(np.stack([TONE, -TONE / 2], 1), subtype="FLOAT"))
    np.testing.assert_allclose(found.samples, TONE / 4, atol=1e-6)


def with_one(value):
    samples = TONE.copy()
    samples[99] = value
    return encoded(samples, subtype="FLOAT")


def with_rate(rate, speed=None):
    """A WAV with its rate overwritten, and perhaps the bytes a second, too."""
    data = encoded(TONE)
    data = data[:24] + rate.to_bytes(4, "little") + data[28:]
    return data if speed is None else data[:28] + speed.to_bytes(4, "little") + data[32:]


def test_a_rate_that_says_nothing_of_bytes_a_second_is_taken():
    assert decode("wav", with_rate(16_000, 0)).rate == decode("wav", with_rate(16_000, 32_000)).rate == 16_000


SUBTYPES = ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW")


@pytest.mark.parametrize(
    ("form", "subtype"), [*((form, s) for form in ("WAV", "WAVEX") for s in SUBTYPES), ("WAV", "IMA_ADPCM")]
)
def test_every_kind_of_wav_agrees_with_itself(form, subtype):
    assert decode("wav", encoded(np.stack([TONE, TONE], 1), form, subtype=subtype)).rate == RATE


@pytest.mark.parametrize(
    ("extension", "data", "reason"),
    [
        ("wav", encoded(TONE[:0]), "has no samples"),
        ("flac", encoded(TONE[:0], "FLAC"), "has no samples|cannot|not a recording"),
        ("wav", encoded(TONE * 0), "is silent"),
        ("wav", with_one(np.nan), "not finite"),
        ("wav", with_one(np.inf), "not finite"),
        ("wav", encoded(TONE, rate=10), "10 samples a second"),
        ("wav", with_rate(16_000), "16000 samples a second, and 16000 bytes a second at 2 bytes a sample"),
        ("wav", encoded(TONE)[:5_000], "is cut: its header says 16044 bytes, 5000 are there"),
        ("flac", encoded(TONE, "FLAC")[:3_000], "is cut|not a recording"),
        ("wav", encoded(TONE, "AIFF"), "AIFF.*known: WAV, FLAC, Ogg, MP3"),
        ("mp3", b"ID3 and nothing else", "not a recording"),
        ("ogg", encoded(TONE, "OGG")[:200], "not a recording"),
    ],
)
def test_refuses(extension, data, reason):
    with pytest.raises(ValueError, match=reason) as error:
        decode(extension, data)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("rate", "hours"), [(RATE, 10), (1_000, 5), (96_000, 1)])
def test_ten_hours_are_refused_before_they_are_decoded(tmp_path, rate, hours):
    path = tmp_path / "long.flac"
    soundfile.write(path, np.zeros(10_000, np.int16), rate, format="FLAC")
    data = bytearray(path.read_bytes())
    # STREAMINFO: 36 bits that count the samples, behind rate and width.
    samples = hours * 3600 * rate
    data[21] = (data[21] & 0xF0) | (samples >> 32)
    data[22:26] = (samples & 0xFFFFFFFF).to_bytes(4, "big")
    with pytest.raises(ValueError, match=rf"{hours}\.0 hours, {samples:,} samples of 1 channel.*cut it"):
        decode("flac", bytes(data))


def test_a_wav_from_a_pipe_has_no_length():
    data = encoded(TONE)
    streamed = data[:4] + b"\xff\xff\xff\xff" + data[8:]
    assert np.array_equal(decode("wav", streamed).samples, decode("wav", data).samples)
