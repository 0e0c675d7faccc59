"""Synaptic intelligence: weights are held by what their way has taken off the loss."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from mmcl.errors import ConfigError, RunError
from mmcl.functional.importance import Rule, approximate_path, path_integral
from mmcl.functional.regularization import synaptic_importance
from mmcl.strategies._importance import _QuadraticPenalty
from mmcl.strategy import DataPass, StepContext, Strategy
from mmcl.stream import Task


class SynapticIntelligence(Strategy):
    """Synaptic intelligence (Zenke et al., ICML 2017).

    At every optimizer step omega <- omega - g (theta_after - theta_before), g the gradient of the data's loss alone.
    When a task ends, Omega <- Omega + max(omega, 0) / ((theta_end - theta_start)^2 + damping), and theta* <- theta_end.
    penalty = weight x sum Omega (theta - theta*)^2, without 1/2.

    Args:
        weight: c. The paper's experiments have 0.1 and 1, FoMo-in-Flux 0.5, CTP 1.
        damping: xi. CTP has 0.1, FoMo-in-Flux 1.
        approximate: take lr g^2 for a step's part, the shortcut of Mammoth and FoMo-in-Flux; it saves a copy of the
            weights and equals the path only under plain SGD.
        rule: how tasks are joined: ``online``, ``mean`` or ``halves``.
        gamma: of ``online``. 1 sums up the tasks, as the paper does.

    Raises:
        ConfigError: an argument is out of range.

    Differences from the published code: negative omegas count as 0 when a task ends, for they would push weights away
    from the anchor. The shortcut of FoMo takes the clipped gradient of the whole loss, its own penalty included; here
    it is the data's, before clipping, with the rate that layer-wise scales have not touched. Steps that the gradient
    scaler skips count for nothing.
    """

    def __init__(
        self,
        weight: float = 0.5,
        damping: float = 0.1,
        approximate: bool = False,
        rule: Rule = "online",
        gamma: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 < damping < math.inf:
            raise ConfigError(f"SynapticIntelligence: damping is {damping}; it must be above 0")
        pull = _SynapticPull(weight, rule, gamma)
        self._parts = (_SynapticPath(pull, damping, approximate), pull)

    def parts(self) -> Sequence[Strategy]:
        return self._parts


class _SynapticPull(_QuadraticPenalty):
    """The penalty; `_SynapticPath` tells it the importance."""

    scale = 2.0
    listed = "SynapticIntelligence"

    def __init__(self, weight: float, rule: Rule, gamma: float) -> None:
        super().__init__(weight, rule, gamma)
        self.name = "synaptic_intelligence"


class _SynapticPath(Strategy):
    """The path integral, of the data's gradient: it looks before penalties add theirs."""

    gradients = "observe"

    path: dict[str, Tensor]

    def __init__(self, pull: _SynapticPull, damping: float, approximate: bool) -> None:
        super().__init__()
        self.name = "synaptic_intelligence_path"
        self.pull = (pull,)  # a strategy of its own, no child of this one
        self.damping, self.approximate = damping, approximate
        self.active = pull.factor > 0
        self.snapshots = frozenset({"start"} if self.active else ())
        self.add_state("path", {}, dtype=None)
        self._gradients: dict[str, Tensor] = {}
        self._before: dict[str, Tensor] = {}
        self._rate = 0.0

    def on_task_start(self, task: Task, data: DataPass) -> None:
        self.path = {}

    def on_gradients(self, context: StepContext) -> None:
        if not self.active:
            return
        seen = {name: p for name, p in self.pull[0].trained().items() if p.grad is not None}
        for name in seen:
            if name not in self.snapshot("start"):
                raise RunError(f"SynapticIntelligence: '{name}' trains but is no weight of the network (an adapter?)")
        self._rate = context.lr
        self._gradients = {name: p.grad.clone() for name, p in seen.items() if p.grad is not None}
        self._before = {} if self.approximate else {name: p.detach().clone() for name, p in seen.items()}

    def on_step_end(self, context: StepContext) -> None:
        if not self._gradients:
            return
        if self.approximate:
            approximate_path(self.path, self._gradients, lr=self._rate)
        else:
            live = dict(self.module.network.named_parameters())
            change = {name: live[name].detach() - before for name, before in self._before.items()}
            path_integral(self.path, self._gradients, change)
        self._gradients, self._before = {}, {}

    def on_task_end(self, task: Task, data: DataPass) -> None:
        if self.path:
            start, params = self.snapshot("start"), self.pull[0].trained()
            ends = {name: params[name].detach() for name in self.path}
            starts = {name: start[name] for name in self.path}
            self.pull[0].consolidate(synaptic_importance(self.path, starts, ends, damping=self.damping), task)
        self.path = {}
