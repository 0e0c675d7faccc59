"""Class means of frozen features: the bar for every method that trains."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcl.functional.prototypes import class_sums, nearest_mean_logits
from mmcl.strategies._class_features import FeatureClassifier, Trains
from mmcl.stream import Task


class NearestMean(FeatureClassifier):
    """Nearest class mean of a pretrained network's features (SimpleCIL; Zhou et al., IJCV 2024).

    logit_c = cos(f(x), mu_c), with mu_c the mean of the features f of the class's training samples under the test
    transform. Nothing trains; the state is one vector and one number for each class. On a contrastive module the means
    answer zero-shot evaluation sets that name a class with samples; sets of other classes keep their texts' answers.

    Args:
        feature: name among the module's features.
        trains: the tasks in which the network trains, with adapters before this strategy in the list: ``nothing`` is
            SimpleCIL; with ``first`` or ``all`` the means are those of the network at the end of their own task.
        with_initial: of the pretrained network's and the live one's features, concatenated (see `APER`).

    Raises:
        ConfigError: `trains` is unknown, or a task has no class names.

    Differences from the published code: a class that comes again in a later task is the mean over all its samples
    (there it is overwritten); sums are kept in float64. Classes without samples cannot be the answer.
    """

    sums: Tensor

    def __init__(self, feature: str = "image", trains: Trains = "nothing", with_initial: bool = False) -> None:
        super().__init__(feature, trains, with_initial)
        self.add_state("sums", torch.zeros(0, 0, dtype=torch.float64), dtype=None)

    def learn(self, task: Task, features: Tensor, columns: Tensor) -> None:
        found, _ = class_sums(features, columns, len(self.labels.names))
        self.sums = self.sums + found if len(self.sums) else found

    def scores(self, features: Tensor) -> Tensor:
        means = self.sums / self.counts.clamp(min=1)[:, None]
        return nearest_mean_logits(features, means.float())
