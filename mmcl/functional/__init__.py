"""The mathematics of continual pretraining: pure tensor functions, no state, no I/O, nothing of Lightning."""

from mmcl.functional.averaging import ema, interpolate, running_average
from mmcl.functional.distillation import (
    distillation_loss,
    feature_distillation_loss,
    similarity_distillation_loss,
    topology_preservation_loss,
    zscl_loss,
)
from mmcl.functional.prompts import (
    coda_prompt,
    key_pull_loss,
    orthogonality_penalty,
    prefix_attention,
    select_prompts,
)
from mmcl.functional.regularization import ewc_penalty, l2_gradients, l2_penalty
from mmcl.functional.schedules import constant, infinite, rewarm, warmup_cosine

__all__ = [
    "coda_prompt",
    "constant",
    "distillation_loss",
    "ema",
    "ewc_penalty",
    "feature_distillation_loss",
    "infinite",
    "interpolate",
    "key_pull_loss",
    "l2_gradients",
    "l2_penalty",
    "orthogonality_penalty",
    "prefix_attention",
    "rewarm",
    "running_average",
    "select_prompts",
    "similarity_distillation_loss",
    "topology_preservation_loss",
    "warmup_cosine",
    "zscl_loss",
]
