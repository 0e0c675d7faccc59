"""The mathematics of continual pretraining: pure tensor functions, no state, no I/O, nothing of Lightning."""

from mmcl.functional.averaging import ema, interpolate, running_average
from mmcl.functional.contrastive import compatible_momentum, momentum_contrast_loss, random_queue, update_queue
from mmcl.functional.distillation import (
    distillation_loss,
    divergence_loss,
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
from mmcl.functional.mixing import cmr_law, dcpt_law, mixture_counts, velocities, velocity_weights
from mmcl.functional.regularization import ewc_penalty, l2_gradients, l2_penalty
from mmcl.functional.schedules import (
    constant,
    cosine_between,
    infinite,
    meta_peak,
    rewarm,
    rsqrt_cooldown,
    warmup_cosine,
)
from mmcl.functional.trimming import breadcrumbs, dare, layer_scaling

__all__ = [
    "breadcrumbs",
    "cmr_law",
    "compatible_momentum",
    "constant",
    "cosine_between",
    "dare",
    "dcpt_law",
    "distillation_loss",
    "divergence_loss",
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
    "meta_peak",
    "mixture_counts",
    "model_stock",
    "momentum_contrast_loss",
    "random_queue",
    "rewarm",
    "rsqrt_cooldown",
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
    "velocities",
    "velocity_weights",
    "warmup_cosine",
    "zscl_loss",
]
