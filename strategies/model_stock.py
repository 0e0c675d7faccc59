"""Model Stock: as far towards the average as the tasks' weights agree."""

from __future__ import annotations

from mmcl.errors import ConfigError
from mmcl.functional.merging import model_stock, task_vector, widened
from mmcl.outputs import Weights
from mmcl.strategies._merge import Merge, Rule
from mmcl.stream import Task


class ModelStock(Merge):
    """Evaluate the point between the pretrained weights and the tasks' average that their angles ask for.

    For each tensor, with c the mean cosine between the changes of n tasks and r = n c / (1 + (n - 1) c): r x average +
    (1 - r) x theta_0 (Jang et al., ECCV 2024). After the first task there is no angle, and its weights are evaluated.

    Args:
        rule: ``zero_shot`` is the paper's, each task training from theta_0, and ``sequential`` merges all tasks alike,
            read from the snapshots of the run folder; ``ema`` merges each task with the merge so far (FoMo-in-Flux) and
            keeps one copy.

    Raises:
        ConfigError: the rule ``fine_tuned``: a model has no angle with the weights that it is measured from.

    Differences from the published code: the tasks are the fine-tuned models, where the paper trains one task with
    several seeds. FoMo-in-Flux merges the first task with theta_0, and then never leaves it, since that angle counts as
    a right one. A tensor whose changes point apart stays at theta_0, where the formula would extrapolate. Running
    statistics are not merged: they are the latest model's.
    """

    def __init__(self, rule: Rule = "zero_shot") -> None:
        super().__init__(rule)
        if rule == "fine_tuned":
            raise ConfigError("ModelStock: rule 'fine_tuned' has no angle to go by; take another rule")
        if rule != "ema":
            self.snapshots = self.snapshots | {"task-*"}

    def absorb(self, base: Weights, new: Weights, kept: Weights, task: Task) -> Weights:
        if self.rule != "ema":
            return {}
        return (
            model_stock(base, [task_vector(new, base), task_vector(kept, base)], acute=True) if kept else widened(new)
        )

    def result(self, base: Weights, kept: Weights, task: Task) -> Weights:
        if self.rule == "ema":
            return kept
        earlier = self.earlier(base, task)
        return (
            model_stock(base, [*earlier, task_vector(self.live(), base)], acute=True)
            if earlier
            else widened(self.live())
        )
