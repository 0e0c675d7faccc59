"""The mathematics of continual pretraining: pure tensor functions, no state, no I/O, nothing of Lightning."""

from mmcl.functional.averaging import ema, interpolate, running_average
from mmcl.functional.contrastive import compatible_momentum, momentum_contrast_loss, random_queue, update_queue
from mmcl.functional.distillation import (
    distillation_loss,
    feature_distillation_loss,
    similarity_distillation_loss,
    topology_preservation_loss,
    zscl_loss,
)
from mmcl.functional.merging import (
    instruction_residual,
    magmax,
    model_stock,
    running_magmax,
    slerp,
    task_arithmetic,
    task_vector,
    ties,
    unrolled,
)
from mmcl.functional.regularization import ewc_penalty, l2_gradients, l2_penalty
from mmcl.functional.schedules import constant, infinite, rewarm, warmup_cosine
from mmcl.functional.trimming import breadcrumbs, dare, layer_scaling

__all__ = [
    "breadcrumbs",
    "compatible_momentum",
    "constant",
    "dare",
    "distillation_loss",
    "ema",
    "ewc_penalty",
    "feature_distillation_loss",
    "infinite",
    "instruction_residual",
    "interpolate",
    "l2_gradients",
    "l2_penalty",
    "layer_scaling",
    "magmax",
    "model_stock",
    "momentum_contrast_loss",
    "random_queue",
    "rewarm",
    "running_average",
    "running_magmax",
    "similarity_distillation_loss",
    "slerp",
    "task_arithmetic",
    "task_vector",
    "ties",
    "topology_preservation_loss",
    "unrolled",
    "update_queue",
    "warmup_cosine",
    "zscl_loss",
]
