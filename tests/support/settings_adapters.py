"""Adapters and what trains biases or norms alone, as rows of the strategies' table."""

from __future__ import annotations

from settings import Setting

from mmcl.strategies import BitFit, CoDyRA, DoRA, LNFit, LoRA, VeRA

EVERY = ("domains", "clip", "causal_lm", "asr-whisper", "llava")
"""One module of each family; the classifier has a head that trains on, and all that a strategy chooses by."""

HEAD = r"head\.(weight|bias)"
QKV = r"in_proj_weight|qkv\.weight|[qkv]_proj\.weight"
MLP = r"(c_fc|c_proj|fc1|fc2|gate_proj|up_proj|down_proj)\.weight"
ADAPTED = rf"{HEAD}|.*\.({QKV}|{MLP})"
"""What adapters on the default places may change."""
RESNET_NORMS = r"(conv1\.[14]|downsample\.2)\.(weight|bias)"
"""Batch norms of a residual network's stem and shortcuts, which have no name of their own."""
NORMS = r"(norm\w*|ln\w*|\w*layer_?norm\w*|bn\w*)\.(weight|bias)"

SETTINGS = {
    "LoRA": Setting(lambda: [LoRA(2)], EVERY, changes=ADAPTED),
    "LoRA/continue": Setting(lambda: [LoRA(2, alpha=4, tasks="continue")], EVERY, changes=ADAPTED),
    "LoRA/orthogonal": Setting(lambda: [LoRA(2, orthogonality=0.5)], EVERY, changes=ADAPTED),
    "LoRA/separate": Setting(
        lambda: [LoRA(2, tasks="separate", clusters=2)],
        ("domains", "clip"),
        changes=ADAPTED,
        refuses={"causal_lm": "needs 'features'", "asr-whisper": "needs 'features'"},
    ),
    "LoRA/convolutions": Setting(
        lambda: [LoRA(2, roles=["other"])], ("classes",), changes=rf"{HEAD}|.*(conv|downsample).*\.weight|.*running_.*"
    ),
    "CoDyRA": Setting(
        lambda: [CoDyRA(4, kappa=0.3)],
        EVERY,
        changes=ADAPTED,
        refuses={"classes": "no linear weight fits"},
    ),
    "CoDyRA/published": Setting(lambda: [CoDyRA(4, kappa=0.3, notches=2, published=True)], EVERY, changes=ADAPTED),
    "DoRA": Setting(lambda: [DoRA(2)], EVERY, changes=ADAPTED),
    "VeRA": Setting(lambda: [VeRA(4)], EVERY, changes=ADAPTED),
    "BitFit": Setting(
        lambda: [BitFit()],
        ("domains", "clip", "classes", "asr-whisper"),
        changes=rf"{HEAD}|.*bias|.*(running_mean|running_var|num_batches_tracked)",
        refuses={"causal_lm": "no biases"},
    ),
    "LNFit": Setting(
        lambda: [LNFit()],
        ("domains", "clip", "classes", "causal_lm", "asr-whisper"),
        changes=rf"{HEAD}|(.*\.)?{NORMS}|.*(running_mean|running_var|num_batches_tracked|{RESNET_NORMS})",
    ),
}
