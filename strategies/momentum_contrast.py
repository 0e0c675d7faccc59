"""Contrast with a momentum model that stays compatible with the last task's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmcl import weights
from mmcl.errors import ConfigError, RunError
from mmcl.functional.contrastive import compatible_momentum, momentum_contrast_loss, random_queue, update_queue
from mmcl.functional.merging import widened
from mmcl.outputs import Weights
from mmcl.strategy import Batches, DataPass, StepContext, Strategy
from mmcl.stream import Source, Stream, Task


class MomentumContrast(Strategy):
    """Compatible momentum contrast (CTP; Zhu et al., ICCV 2023, section 3.2).

    M <- m M + (1 - m) [alpha theta_{t-1} + (1 - alpha) theta] at every step, before M's features of the batch are
    taken; M starts each task as that task's first weights. Loss: 1/2 [CE(v [t_m^T, text queue] / T) + CE(t [v_m^T,
    image queue] / T)]; then M's features replace the queues' oldest. Queues go on over the tasks.

    Args:
        weight: of the loss. The paper has 1.
        decay: m from the second task on.
        first_decay: m in the first task, in which alpha does not count.
        alpha: part of the weights before the task.
        queue_size: features that each queue holds. The paper has 1,024 for batches of 512; a batch must fit.
        temperature: T, fixed.
        flush: begin each task with empty queues, and count no entry before it was written. Without it, as published,
            the run begins with noise and a task with features of the last one.
        train_mode: leave M in training mode, as published, so that its features have dropout's noise.

    Raises:
        ConfigError: an argument is out of range, the module compares no pair of features, or a batch is larger than a
            queue.

    Differences from the published code: M is in eval mode (`train_mode`). Its update stands at the end of a step, which
    is before the next one's features, once for accumulated batches and never for a step that a gradient scaler
    skipped. Rows of all processes take part in the loss, there those of each alone, and the queue need not be a
    multiple of the batch. The published model also distils masked-language logits from M, which two towers do not have.
    """

    gradients = "observe"

    slow: Weights
    image_queue: Tensor | None
    text_queue: Tensor | None
    pointer: int
    filled: int

    def __init__(
        self,
        weight: float = 1.0,
        decay: float = 0.9,
        first_decay: float = 0.995,
        alpha: float = 0.5,
        queue_size: int = 1024,
        temperature: float = 0.07,
        flush: bool = False,
        train_mode: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (("decay", decay), ("first_decay", first_decay), ("alpha", alpha)):
            if not 0 <= value <= 1:
                raise ConfigError(f"MomentumContrast: {name} is {value}; it must be within 0..1")
        if not 0 <= weight < math.inf or not 0 < temperature < math.inf:
            raise ConfigError(
                f"MomentumContrast: weight {weight} must be 0 or more, and temperature {temperature} above 0"
            )
        if queue_size < 1:
            raise ConfigError(f"MomentumContrast: queue_size is {queue_size}; it must be 1 or more")
        self.weight, self.decay, self.first_decay, self.alpha = weight, decay, first_decay, alpha
        self.queue_size, self.temperature, self.flush, self.train_mode = queue_size, temperature, flush, train_mode
        self.needs = frozenset({"features"} if weight else ())
        self.snapshots = frozenset({"start"} if weight and alpha else ())
        self.add_state("slow", {}, dtype=None)
        self.add_state("image_queue", None, dtype=None)
        self.add_state("text_queue", None, dtype=None)
        self.add_state("pointer", 0)
        self.add_state("filled", 0)
        self._new: list[tuple[Tensor, Tensor]] = []  # of the step under way, several where gradients are accumulated
        self._step: list[tuple[Tensor, Tensor]] = []  # of the step at hand, not yet in the queues
        self._momentum: tuple[nn.Module, ...] = ()  # in a tuple, so that it is no part of the strategy

    def setup(self, stream: Stream) -> None:
        if self.weight and self.module.pair is None:
            raise ConfigError(f"{self.title}: {type(self.module).__name__} compares no pair of features")

    def foresee(self, task: Task, batches: Batches) -> Sequence[Source]:
        if self.weight and batches.at_once > self.queue_size:
            raise ConfigError(
                f"{self.title}: a batch of {batches.at_once} pairs does not fit into queues of {self.queue_size}; "
                "make `queue_size` larger, or data.batch_size smaller"
            )
        return super().foresee(task, batches)

    def on_task_start(self, task: Task, data: DataPass) -> None:
        if not self.weight:
            return
        self.slow = widened(self.weights())
        self._momentum = ()
        if self.flush:
            self.pointer = self.filled = 0

    def import_state(self, state: Mapping[str, Any]) -> None:
        super().import_state(state)
        self._momentum = ()

    def losses(self, context: StepContext) -> Mapping[str, Tensor]:
        if not self.weight:
            return {}
        ours = self._features(context, context.outputs.features)
        with torch.no_grad():
            theirs = self._features(context, self.module.compute(self._network(), context.batch).features)
        if self.image_queue is None or self.text_queue is None:
            generator = torch.Generator().manual_seed(self.reach.seed)
            self.image_queue, self.text_queue = (
                random_queue(x.shape[1], self.queue_size, generator)
                .to(torch.promote_types(x.dtype, torch.float32))
                .to(x.device)
                for x in theirs
            )
            self.filled = 0 if self.flush else self.queue_size
        self._new.append(theirs)
        queues = (queue[:, : self.filled] for queue in (self.image_queue, self.text_queue))
        loss = momentum_contrast_loss(*ours, *theirs, *queues, temperature=self.temperature)
        return {"momentum_contrast": self.weight * loss}

    def on_gradients(self, context: StepContext) -> None:
        """Nothing is changed: features of a step are set aside, and those of one that did not happen are gone."""
        self._step, self._new = self._new, []

    def on_step_end(self, context: StepContext) -> None:
        if not self.weight:
            return
        assert self.image_queue is not None and self.text_queue is not None
        for image, text in self._step:
            update_queue(self.image_queue, image, self.pointer)
            self.filled = min(self.filled + len(image), self.queue_size)
            self.pointer = update_queue(self.text_queue, text, self.pointer)
        self._step = []
        first = context.task is not None and self.stream.position(context.task) == 0
        previous = None if first or not self.alpha else weights.read(self.reach.teacher("start"))
        decay = self.first_decay if first else self.decay
        compatible_momentum(self.slow, self.weights(), previous, decay=decay, alpha=self.alpha)
        live = weights.read(self._network())
        apart = {name: value for name, value in self.slow.items() if value.dtype != live[name].dtype}
        weights.write(self._network(), apart)  # the network of a half-precision Trainer

    def on_task_end(self, task: Task, data: DataPass) -> None:
        self.slow, self._momentum = {}, ()  # the next task's starts anew

    def _features(self, context: StepContext, features: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The two features of all processes' pairs."""
        pair = self.module.pair
        if missing := [name for name in pair if name not in features]:
            raise RunError(f"{self.title}: the batch has no {' and no '.join(missing)} to contrast")
        image, text = (context.gather(features[name]) for name in pair)
        if "valid" in context.batch:
            kept = context.gather(context.batch["valid"])
            image, text = image[kept], text[kept]
        return image, text

    # -- the momentum model -----------------------------------------------------------------------------------------

    def _network(self) -> nn.Module:
        """The network that holds M; where the types agree its tensors are those of the state."""
        if self._momentum:
            return self._momentum[0]
        network = self.frozen(self.slow)
        for module in network.modules():
            module.training = self.train_mode
        live = weights.read(network)
        self.slow = {n: live[n] if live[n].dtype == v.dtype else v for n, v in self.slow.items()}
        self._momentum = (network,)
        return network
