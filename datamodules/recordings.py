"""Bytes to recordings: WAV, FLAC, Ogg and MP3, by libsndfile."""

from __future__ import annotations

import io
import struct

import numpy as np
import soundfile

from mmcl.outputs import Audio

RATES = (1_000, 384_000)
"""Samples a second that a recording can have; a header that says otherwise is damaged."""
LONGEST = 4 * 3600
"""Seconds that a recording may last. Ten hours of silence are a small FLAC, and gigabytes when decoded."""
MAX_SAMPLES = 1 << 28
"""Samples of all channels that a recording may have: a gigabyte of float32."""

_FORMATS = ("WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3")
_FORMAT, _FORMAT_END = 20, 36
"""Where the usual WAV says what its samples are."""
_UNCOMPRESSED = (1, 3, 0xFFFE)
_STREAMED = 0x7FFF0000
"""From here on the length in a WAV's header stands for an unknown one: the file was written to a pipe."""


def recording(data: bytes) -> Audio:
    """A recording, the mean of its channels.

    Args:
        data: a whole file.

    Raises:
        ValueError: another format, damaged or missing data, a rate that contradicts itself, no samples, none but 0,
            some that are not finite, or more than `LONGEST` and `MAX_SAMPLES` allow. The length is looked at before
            anything is decoded.
    """
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            _check_whole(data)
            if file.format not in _FORMATS:
                raise ValueError(f"the recording is {file.format_info}; known: WAV, FLAC, Ogg, MP3")
            rate, frames = file.samplerate, file.frames
            _check(rate, frames, file.channels)
            _check_rate(data)
            samples = file.read(dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"not a recording that can be read: {error.error_string}") from error
    if len(samples) != frames:
        raise ValueError(f"the recording is cut: its header says {frames} samples, {len(samples)} can be read")
    if not np.isfinite(samples).all():
        raise ValueError("the recording has samples that are not finite numbers")
    if not samples.any():
        raise ValueError("the recording is silent: all its samples are 0")
    return Audio(samples.mean(axis=1), int(rate))


def _check(rate: int, frames: int, channels: int) -> None:
    """What the header says."""
    if not RATES[0] <= rate <= RATES[1]:
        raise ValueError(f"the header says {rate} samples a second, which no recording has")
    if frames < 1:
        raise ValueError("the recording has no samples")
    if frames > LONGEST * rate or frames * channels > MAX_SAMPLES:
        raise ValueError(
            f"a recording of {frames / rate / 3600:.1f} hours, {frames:,} samples of {channels} channel(s); "
            f"{LONGEST // 3600} hours and {MAX_SAMPLES:,} samples are the most that is read: cut it into pieces"
        )


def _check_rate(data: bytes) -> None:
    """A WAV says its rate twice: as samples and as bytes a second. Where one of them was overwritten they disagree."""
    kind, rate, speed, width = struct.unpack_from("<H2xIIH", data.ljust(_FORMAT_END), _FORMAT)
    plain = data[:4] == b"RIFF" and data[12:16] == b"fmt " and kind in _UNCOMPRESSED
    if plain and speed and speed != rate * width:  # some writers leave it at 0
        raise ValueError(
            f"the header says {rate} samples a second, and {speed} bytes a second at {width} bytes a sample: "
            "one of them is wrong"
        )


def _check_whole(data: bytes) -> None:
    """A WAV says its length; libsndfile reads what is there of a cut one and says nothing."""
    if data[:4] == b"RIFF":
        length = int.from_bytes(data[4:8], "little") + 8
        if len(data) + 1 < length < _STREAMED:  # one byte of padding may be left out
            raise ValueError(f"the recording is cut: its header says {length} bytes, {len(data)} are there")
