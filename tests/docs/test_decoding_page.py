"""The examples of `docs/decoding.md` run, and its numbers are the code's."""

import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mmcl.datamodules.decode import DECODERS
from mmcl.datamodules.pictures import MAX_PIXELS
from mmcl.datamodules.recordings import LONGEST, MAX_SAMPLES

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "decoding.md").read_text()


def test_the_examples(capsys):
    names = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.S):
        exec(block, names)
    assert "members with extension 'pkl' are not decoded; known: jpg, jpeg, " in capsys.readouterr().out
    transform = names["Pictures"]().transform
    assert transform.takes_pixels
    image = Image.new("RGB", (3, 2), (255, 0, 51))
    row = transform({"image": np.asarray(image)}, False)
    torch.testing.assert_close(row["image"], torch.tensor([1.0, 0.0, 0.2])[:, None, None].expand(3, 2, 3))


def test_the_numbers():
    for text in (f"{MAX_PIXELS:,} pixels", f"{MAX_SAMPLES:,} samples", f"longer than {LONGEST // 3600} hours"):
        assert text in PAGE
    table = PAGE.split("\n\n")[2]
    assert set(re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in table.splitlines()[2:]))) == set(DECODERS)
