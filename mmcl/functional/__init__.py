"""The mathematics of continual pretraining: pure tensor functions, no state, no I/O, nothing of Lightning."""

from mmcl.functional.adaptation import (
    consistency_loss,
    nearest_prototypes,
    softmax_entropy,
    stochastic_restore,
    symmetric_cross_entropy,
    view_contrastive_loss,
)
from mmcl.functional.averaging import ema, interpolate, running_average
from mmcl.functional.distillation import (
    distillation_loss,
    feature_distillation_loss,
    similarity_distillation_loss,
    topology_preservation_loss,
    zscl_loss,
)
from mmcl.functional.regularization import ewc_penalty, l2_gradients, l2_penalty
from mmcl.functional.schedules import constant, infinite, rewarm, warmup_cosine

__all__ = [
    "consistency_loss",
    "constant",
    "distillation_loss",
    "ema",
    "ewc_penalty",
    "feature_distillation_loss",
    "infinite",
    "interpolate",
    "l2_gradients",
    "l2_penalty",
    "nearest_prototypes",
    "rewarm",
    "running_average",
    "similarity_distillation_loss",
    "softmax_entropy",
    "stochastic_restore",
    "symmetric_cross_entropy",
    "topology_preservation_loss",
    "view_contrastive_loss",
    "warmup_cosine",
    "zscl_loss",
]
