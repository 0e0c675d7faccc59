"""The mathematics of continual pretraining: pure tensor functions, no state, no I/O, nothing of Lightning."""

from mmcl.functional.averaging import ema, interpolate, running_average
from mmcl.functional.distillation import (
    distillation_loss,
    feature_distillation_loss,
    similarity_distillation_loss,
    topology_preservation_loss,
    zscl_loss,
)
from mmcl.functional.prototypes import (
    align_classifier,
    class_gaussians,
    class_means,
    class_sums,
    cosine_face_loss,
    nearest_mean_logits,
    shifted_means,
    subspace_logits,
    synthesized_means,
)
from mmcl.functional.regularization import ewc_penalty, l2_gradients, l2_penalty
from mmcl.functional.ridge import (
    cross_validated_ridge,
    random_expansion,
    random_projection_ridge,
    ridge_logits,
    solve_ridge,
    sparse_projection,
    top_activations,
)
from mmcl.functional.schedules import constant, infinite, rewarm, warmup_cosine

__all__ = [
    "align_classifier",
    "class_gaussians",
    "class_means",
    "class_sums",
    "constant",
    "cosine_face_loss",
    "cross_validated_ridge",
    "distillation_loss",
    "ema",
    "ewc_penalty",
    "feature_distillation_loss",
    "infinite",
    "interpolate",
    "l2_gradients",
    "l2_penalty",
    "nearest_mean_logits",
    "random_expansion",
    "random_projection_ridge",
    "rewarm",
    "ridge_logits",
    "running_average",
    "shifted_means",
    "similarity_distillation_loss",
    "solve_ridge",
    "sparse_projection",
    "subspace_logits",
    "synthesized_means",
    "top_activations",
    "topology_preservation_loss",
    "warmup_cosine",
    "zscl_loss",
]
