"""The mathematics of continual pretraining: pure tensor functions, no state, no I/O, nothing of Lightning."""

from mmcl.functional.averaging import ema, interpolate, running_average
from mmcl.functional.distillation import (
    distillation_loss,
    feature_distillation_loss,
    similarity_distillation_loss,
    topology_preservation_loss,
    zscl_loss,
)
from mmcl.functional.lowrank import (
    active_components,
    dora_weight,
    lowrank_delta,
    published_threshold,
    row_norm,
    soft_threshold,
    subspace_overlap,
    threshold_schedule,
    vera_delta,
)
from mmcl.functional.regularization import ewc_penalty, l2_gradients, l2_penalty
from mmcl.functional.schedules import constant, infinite, rewarm, warmup_cosine

__all__ = [
    "active_components",
    "constant",
    "distillation_loss",
    "dora_weight",
    "ema",
    "ewc_penalty",
    "feature_distillation_loss",
    "infinite",
    "interpolate",
    "l2_gradients",
    "l2_penalty",
    "lowrank_delta",
    "published_threshold",
    "rewarm",
    "row_norm",
    "running_average",
    "similarity_distillation_loss",
    "soft_threshold",
    "subspace_overlap",
    "threshold_schedule",
    "topology_preservation_loss",
    "vera_delta",
    "warmup_cosine",
    "zscl_loss",
]
