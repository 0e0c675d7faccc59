"""Prompt methods as rows of the strategies' table."""

from __future__ import annotations

from settings import Setting

from mmcl.strategies import DualPrompt

VITS = ("classes-growing", "domains")
NO_PROMPTS = {"classes": "needs 'sites.", "causal_lm": "needs 'sites."}

SETTINGS = {
    "DualPrompt": Setting(
        lambda: [DualPrompt()],
        VITS,
        changes=r"head\..*",
        refuses=NO_PROMPTS,
    ),
}
