"""Prompt methods as rows of the strategies' table."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save_file
from settings import Setting

from mmcl.strategies import L2P, LGCL, CODAPrompt, DualPrompt, SPrompts

VITS = ("classes-growing", "domains")
"""Classifiers on a vision transformer."""
REFUSES = {"classes": "needs 'sites.", "causal_lm": "needs 'sites.", "asr-whisper": "needs 'sites."}
"""A convolutional network and modules without an image tower."""
HEAD = r"head\..*"
PULL = 0.5


@cache
def texts() -> str:
    """A file with a vector as long as the features for each class name of the tiny streams."""
    generator = torch.Generator().manual_seed(3)
    file = Path(tempfile.mkdtemp()) / "texts.safetensors"
    save_file({name: torch.randn(64, generator=generator) for name in ("red", "green", "blue", "grey")}, file)
    return str(file)


SETTINGS = {
    "CODAPrompt": Setting(
        lambda: [CODAPrompt(pool_size=6, length=4, blocks=(0, 2), orthogonality=0.1)],
        VITS,
        changes=HEAD,
        refuses=REFUSES,
    ),
    "CODAPrompt/clip": Setting(lambda: [CODAPrompt(pool_size=4, length=4, blocks=(0,))], ("clip",), changes=""),
    "DualPrompt": Setting(lambda: [DualPrompt()], VITS, changes=HEAD, refuses=REFUSES),
    "DualPrompt/clip": Setting(
        lambda: [DualPrompt(general_blocks=(), expert_blocks=(0,), expert_length=3)], ("clip",), changes=""
    ),
    "L2P": Setting(lambda: [L2P(6, 2, 2, pull=PULL)], VITS, changes=HEAD, refuses=REFUSES),
    "L2P/clip": Setting(lambda: [L2P(4, 2, 2, pull=PULL, pool="tower")], ("clip",), changes=""),
    "L2P/vote": Setting(
        lambda: [L2P(6, 2, 2, pull=PULL, query="mean_max", own_keys=False, vote="train", diversity=True)],
        VITS,
        changes=HEAD,
    ),
    "LGCL": Setting(
        lambda: [L2P(6, 2, 2, pull=PULL), LGCL(texts())],
        VITS,
        changes=HEAD,
        off=lambda: [LGCL(None, task_weight=0.0, class_weight=0.0)],
        refuses=REFUSES,
    ),
    "LGCL/dual": Setting(lambda: [DualPrompt(), LGCL(texts())], ("classes-growing",), changes=HEAD),
    "LGCL/clip": Setting(lambda: [L2P(4, 2, 2, pull=PULL, pool="tower"), LGCL()], ("clip-classes",), changes=""),
    "SPrompts": Setting(lambda: [SPrompts(3, 2)], ("domains", "classes-growing"), changes="", refuses=REFUSES),
    "SPrompts/clip": Setting(lambda: [SPrompts(3, 2)], ("clip",), changes=""),
    "SPrompts/lora": Setting(lambda: [SPrompts(centers=2, tune="lora", rank=2)], ("domains", "clip"), changes=""),
    "SPrompts/one-head": Setting(lambda: [SPrompts(3, 2, classifiers=False)], ("domains",), changes=HEAD),
}
