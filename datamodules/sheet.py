"""Samples on a sheet: pictures, spectrograms, captions and labels, as one PNG or one HTML page that needs nothing else.

What comes from the data is text or newly encoded pixels on the page, never markup.
"""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from jinja2 import Environment
from PIL import Image, ImageDraw, ImageFont

from mmcl.outputs import Audio

_SIDE = 224
_WINDOW = 512
_LINES = 6
_LETTERS = 34
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>
body { font: 14px system-ui, sans-serif; margin: 2em; background: #fff; color: #222 }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); gap: 1.5em }
figure { margin: 0; overflow-wrap: anywhere } img { max-width: 100%; background: #eee }
figcaption { margin-top: .3em } .key { font-weight: 600 } .bad { color: #b00020 } small { color: #666 }
</style></head><body><h1>{{ title }}</h1><main>
{% for card in cards %}<figure>
{% for picture in card.pictures %}<img alt="{{ card.key }}" src="data:image/png;base64,{{ picture | png }}">{% endfor %}
<figcaption><div class="key">{{ card.key }}</div>
{% for line in card.lines %}<div>{{ line }}</div>{% endfor %}
{% for line in card.bad %}<div class="bad">{{ line }}</div>{% endfor %}
<small>{{ card.shard }}</small></figcaption></figure>
{% endfor %}</main></body></html>
"""


@dataclass
class Card:
    """A sample: its key and shard, its pictures and spectrograms, its texts and labels, and what cannot be decoded."""

    key: str
    shard: str
    pictures: list[Image.Image]
    lines: list[str]
    bad: list[str]


def spectrogram(audio: Audio) -> Image.Image:
    """A recording as a picture of 224 x 224 pixels: time to the right, pitch upwards, black 80 dB below the loudest."""
    samples = torch.from_numpy(np.ascontiguousarray(audio.samples, np.float32))
    samples = torch.nn.functional.pad(samples, (0, max(_WINDOW - len(samples), 0)))
    hop = max(_WINDOW // 4, len(samples) // (2 * _SIDE))
    power = torch.stft(samples, _WINDOW, hop, window=torch.hann_window(_WINDOW), return_complex=True).abs().square()
    decibels = 10 * torch.log10(power / power.max().clamp_min(1e-12) + 1e-8)
    pixels = matplotlib.colormaps["magma"]((decibels.numpy()[::-1] + 80) / 80, bytes=True)[..., :3]
    return Image.fromarray(np.ascontiguousarray(pixels)).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)


def thumbnail(image: Image.Image) -> Image.Image:
    """A copy that fits into 224 x 224 pixels; the pixels of a small picture become squares."""
    small = image.convert("RGB")
    small.thumbnail((_SIDE, _SIDE))
    times = _SIDE // max(small.size)
    return small.resize((small.width * times, small.height * times), Image.Resampling.NEAREST)


def html(cards: Sequence[Card], title: str) -> str:
    """The sheet as one page; everything on it is escaped, and it may load nothing."""
    environment = Environment(autoescape=True)
    environment.filters["png"] = _base64
    page: str = environment.from_string(_PAGE).render(cards=cards, title=title)
    return page.encode("utf-8", "backslashreplace").decode()


def png(cards: Sequence[Card], columns: int = 4) -> Image.Image:
    """The sheet as one picture: a cell for each sample, its first picture above and its text below."""
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), 11)
    line, gap = 14, 12
    columns = min(columns, len(cards))
    cell = (_SIDE + gap, _SIDE + line * _LINES + 2 * gap)
    sheet = Image.new("RGB", (columns * cell[0] + gap, -(-len(cards) // columns) * cell[1] + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for i, card in enumerate(cards):
        x, y = gap + i % columns * cell[0], gap + i // columns * cell[1]
        for picture in card.pictures[:1]:
            sheet.paste(picture, (x, y))
        texts = [(card.key, "black"), *((t, "#444") for t in card.lines), *((t, "#b00020") for t in card.bad)]
        lines = [(part, color) for text, color in texts for part in textwrap.wrap(text, _LETTERS)]
        for n, (text, color) in enumerate(lines[:_LINES]):
            draw.text((x, y + _SIDE + 4 + n * line), text, fill=color, font=font)
    return sheet


def _base64(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
