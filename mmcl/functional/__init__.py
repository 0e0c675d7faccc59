"""The mathematics of continual pretraining: pure tensor functions, no state, no I/O, nothing of Lightning."""

from mmcl.functional.averaging import ema, interpolate, running_average
from mmcl.functional.distillation import (
    distillation_loss,
    feature_distillation_loss,
    similarity_distillation_loss,
    topology_preservation_loss,
    zscl_loss,
)
from mmcl.functional.gradients import agem_projection, gem_projection
from mmcl.functional.importance import approximate_path, consolidate_importance, path_integral, squared_output_norm
from mmcl.functional.regularization import (
    ewc_gradients,
    ewc_penalty,
    fisher_diagonal,
    l2_gradients,
    l2_penalty,
    synaptic_importance,
)
from mmcl.functional.representations import (
    center_loss,
    dark_experience_loss,
    threshold_margin_loss,
    threshold_margins,
    update_centers,
)
from mmcl.functional.schedules import constant, infinite, rewarm, warmup_cosine

__all__ = [
    "agem_projection",
    "approximate_path",
    "center_loss",
    "consolidate_importance",
    "constant",
    "dark_experience_loss",
    "distillation_loss",
    "ema",
    "ewc_gradients",
    "ewc_penalty",
    "feature_distillation_loss",
    "fisher_diagonal",
    "gem_projection",
    "infinite",
    "interpolate",
    "l2_gradients",
    "l2_penalty",
    "path_integral",
    "rewarm",
    "running_average",
    "similarity_distillation_loss",
    "squared_output_norm",
    "synaptic_importance",
    "threshold_margin_loss",
    "threshold_margins",
    "topology_preservation_loss",
    "update_centers",
    "warmup_cosine",
    "zscl_loss",
]
