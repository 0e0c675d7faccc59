"""The LightningModule that the Trainer runs in a stream: one module and its strategies side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from mmcl import distributed, seeds
from mmcl.compose import Composition
from mmcl.errors import RunError
from mmcl.outputs import ANSWERS, ATTACHED, Batch, Forward, Outputs, move
from mmcl.strategy import ParameterGroup, Stage
from mmcl.stream import Source, Task
from mmcl.weights import canonical


class Context:
    """`mmcl.strategy.StepContext` of one forward or one training step."""

    def __init__(
        self,
        engine: Engine,
        stage: Stage,
        batch: Batch,
        side: Mapping[str, Batch] | None = None,
        source: Source | None = None,
    ) -> None:
        self._engine = engine
        self.stage = stage
        self.task = engine.task
        self.step = engine.step
        self.task_step = engine.task_step
        self.task_steps = engine.task_steps
        self.batch = batch
        self.side = side or {}
        self.source = source
        self.outputs: Outputs
        self.lr = engine.lr
        self.grads: Mapping[str, Tensor] = {}
        self._outputs: dict[tuple[int, bool, bool, bool], Outputs] = {}
        self._teachers: dict[tuple[str, int], Outputs] = {}
        self._seen: list[Batch] = []  # a batch that lives as long as the cache keeps its id to itself

    @property
    def generator(self) -> torch.Generator:
        return seeds.generator(self._engine.seed, "step", self._engine.task_index, self.task_step)

    def forward(self, batch: Batch, bare: bool = False) -> Outputs:
        module = self._engine.module
        key = (id(batch), bare, torch.is_grad_enabled(), module.network.training)
        if key not in self._outputs:
            if ANSWERS in batch:
                module = _answered(module)
            self._seen.append(batch)
            if bare:
                self._outputs[key] = module({k: v for k, v in batch.items() if k != ATTACHED})
            else:
                self._outputs[key] = self._engine.composition.forward(module, batch, self)
        return self._outputs[key]

    def teacher(self, snapshot: str, batch: Batch) -> Outputs:
        key = (snapshot, id(batch))
        if key not in self._teachers:
            self._seen.append(batch)
            with torch.no_grad():
                network = self._engine.find_teacher(snapshot)
                self._teachers[key] = self._engine.module.compute(network, batch)
        return self._teachers[key]

    def module_loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        return torch.stack(list(self._engine.module.loss(outputs, batch).values())).sum()

    @torch.no_grad()
    def generate(self, batch: Batch, **options: Any) -> Outputs:
        module = self._engine.module
        return self._engine.composition.forward(lambda inner: module.generate(inner, **options), batch, self)

    def gradients(self, batch: Batch) -> dict[str, Tensor]:
        named = {n: p for n, p in self._engine.module.network.named_parameters() if p.requires_grad}
        with torch.enable_grad():
            batch = self._engine.module.objective.prepare(batch)
            loss = self.module_loss(self._engine.composition.forward(self._engine.module, batch, self), batch)
            grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        return {n: distributed.mean(g) for n, g in zip(named, grads, strict=True) if g is not None}

    def reduce(self, tensor: Tensor) -> Tensor:
        return distributed.mean(tensor)

    def gather(self, tensor: Tensor) -> Tensor:
        return distributed.gather(tensor)

    def log(self, name: str, value: float | Tensor) -> None:
        self._engine.figures[name] = value.detach() if isinstance(value, Tensor) else value


class Encoder:
    """`mmcl.metrics.probes.Encode`: the network as probes see it; with gradients where a batch may adapt it."""

    def __init__(self, engine: Engine, stage: Stage) -> None:
        self._engine, self._stage = engine, stage
        self.source: Source | None = None

    def placed(self, batch: Batch) -> Batch:
        """A batch where the network is."""
        moved: Batch = move(batch, self._engine.place)
        return moved

    def __call__(self, batch: Batch) -> Outputs:
        batch = self.placed(batch)
        with torch.set_grad_enabled(ANSWERS in batch and self._engine.composition.adapter is not None):
            context = Context(self._engine, self._stage, batch, source=self.source)
            return context.forward(self._engine.convert(batch))

    def generate(self, batch: Batch, **options: Any) -> Outputs:
        batch = move(batch, self._engine.place)
        return Context(self._engine, self._stage, batch).generate(self._engine.convert(batch), **options)


class Pulse:
    """One small message between ranks at every step: is the loss finite, does anybody want to stop.

    It travels while the next step computes and is read one step later, so that no step waits for it.
    """

    def __init__(self) -> None:
        self._tensor: Tensor | None = None
        self._work: Any = None
        self._step = 0
        self._late = False

    def send(self, loss: Tensor, stop: bool, step: int) -> None:
        self._tensor = torch.stack([loss.detach().float(), torch.full_like(loss, float(stop)).detach().float()])
        self._step = step
        several = distributed.world_size() > 1
        self._late = several or self._tensor.is_cuda
        self._work = dist.all_reduce(self._tensor, async_op=True) if several else None

    @property
    def late(self) -> bool:
        """Whether the message is read one step later."""
        return self._late

    def read(self) -> tuple[float, bool, int] | None:
        """(mean loss, stop wanted, step) of the message under way; None when there is none."""
        if self._tensor is None:
            return None
        if self._work is not None:
            self._work.wait()
        loss, stop = self._tensor.tolist()
        self._tensor = self._work = None
        return loss / distributed.world_size(), stop > 0, self._step


class Engine(pl.LightningModule):
    """Runs training steps for the runner. State-dict keys are ``module.network.*`` and ``strategies.<name>.*``.

    Args:
        module: the module in training.
        composition: its strategies.
        seed: of the run.
    """

    def __init__(self, module: Any, composition: Composition, seed: int) -> None:
        super().__init__()
        self.module = module
        self.strategies = nn.ModuleDict({s.name: s for s in composition.strategies})
        self.composition = composition
        self.seed = seed
        self.task: Task | None = None
        self.task_index = -1
        self.tasks_so_far: list[Task] = []
        self.title = ""
        self.task_steps = 0
        self.step = 0
        self.task_step = 0
        self.segment_step = 0
        self.lr = 0.0
        self.figures: dict[str, float | Tensor] = {}
        self.last_loss: float | None = None
        self.pulse = Pulse()
        self.find_teacher: Callable[[str], nn.Module] = _no_teacher
        self.convert: Callable[[Batch], Batch] = lambda batch: batch
        self.wants_stop: Callable[[], bool] = lambda: False
        self.after_step: Callable[[Engine, Batch], None] = lambda engine, batch: None
        self.on_optimizer: Callable[[Optimizer], None] = lambda optimizer: None
        self._context: Context | None = None
        self._stepped = False
        self._stop = False
        self._counts: list[Tensor] = []

    # -- the optimizer -----------------------------------------------------------------------------------------------

    def names(self) -> dict[int, str]:
        """`id(parameter)` -> name, for everything that could train."""
        return {id(p): n for n, p in self.named_parameters()}

    def trains(self) -> bool:
        """Whether anything has `requires_grad`."""
        return any(p.requires_grad for p in self.parameters())

    def configure_optimizers(self) -> Optimizer:
        groups: list[ParameterGroup] = self.module.parameter_groups()
        named = all("param_names" in group for group in groups)  # torch wants names in all groups or in none
        for name, strategy in self.strategies.items():
            own = {n: p for n, p in strategy.named_parameters() if p.requires_grad}
            if own:
                names = {"param_names": [f"strategies.{name}.{n}" for n in own]} if named else {}
                groups.append(
                    {"params": list(own.values()), **names, "name": name, "lr_scale": 1.0, "weight_decay": 0.0}
                )
        build = self.module.build_optimizer
        for strategy in reversed(self.composition.of("wrap_optimizer")):
            build = _nested(strategy, build)
        optimizer: Optimizer = build(groups)
        # A fused optimizer would unscale half-precision gradients in its kernel, after the strategies have seen them,
        # and be stepped where they overflowed; like this the scaler does both, as for any other optimizer.
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        optimizer.register_step_post_hook(self._note_step)
        return optimizer

    def _note_step(self, *_: Any) -> None:
        self._stepped = True

    def on_train_start(self) -> None:
        self.module.train()
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, Optimizer)
        self.on_optimizer(optimizer)

    # -- one step ----------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        if not self.module.training:  # a walk through all submodules at every step is 0.4 ms for a small CLIP
            self.module.train()
        micro = batch_idx % self.trainer.accumulate_grad_batches
        seeds.reseed(self.seed, "batch", self.task_index, self.task_step, micro, self.global_rank)
        assert self.task is not None
        schedule = self.task.schedule or self.module.schedule
        factor = schedule(self.task_step, self.task_steps) * self.task.lr_scale
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = self.module.lr * factor * group.get("lr_scale", 1.0)
        self.lr = self.module.lr * factor
        if self.pulse.late:
            self._read_pulse()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        side = batch.pop("side", {})
        batch = self.module.objective.prepare(batch)
        context = self._context = Context(self, "fit", batch, side)
        context.outputs = context.forward(batch)
        terms = dict(self.module.loss(context.outputs, batch))
        for strategy in self.composition.of("losses"):
            terms.update({f"{strategy.name}/{k}": v for k, v in strategy.losses(context).items()})
        total = torch.stack([t.float() for t in terms.values()]).sum()
        self.figures.update({k: v.detach() for k, v in terms.items()})
        self.figures["loss"] = total.detach()
        self.pulse.send(total, self.wants_stop(), self.step)
        if not self.pulse.late:
            self._read_pulse()
        return total * self._weight(context) if self.trainer.accumulate_grad_batches > 1 else total

    def _weight(self, context: Context) -> Tensor | float:
        """Targets of a batch against those of its step's first; `on_before_optimizer_step` divides by the mean."""
        counted = self.module.objective.counted(context.outputs, context.batch)
        if counted is None:
            return 1.0
        self._counts.append(distributed.total(counted.sum().float()).clamp(min=1))
        return self._counts[-1] / self._counts[0]

    def _read_pulse(self) -> None:
        message = self.pulse.read()
        if message is None:
            return
        loss, stop, step = message
        self.last_loss = loss
        if not math.isfinite(loss):
            assert self.task is not None
            raise RunError(
                f"the loss is {loss} in task '{self.task.name}' at step {self.task_step - (self.step - step)} of "
                f"{self.task_steps} (step {step} of the run); lower the learning rate or look at the data"
            )
        self._stop = self._stop or stop

    def settle(self) -> None:
        """Read the message under way, before a checkpoint is written or a segment ends."""
        self._read_pulse()
        self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        """Between optimizer steps: the batches of half a step would be seen again by a run that goes on."""
        if self._stop:
            self.trainer.should_stop = True

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        if self._counts:
            grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            torch._foreach_mul_(grads, self._counts[0] / torch.stack(self._counts).mean())
            self._counts.clear()
        strategies = self.composition.of("on_gradients")
        if not strategies:
            return
        assert self._context is not None
        named = self.module.network.named_parameters()
        self._context.grads = {canonical(n): p.grad for n, p in named if p.grad is not None}
        with torch.no_grad():
            for strategy in strategies:
                strategy.on_gradients(self._context)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0:
            self.segment_step += 1
            self._stop_if_asked()
        if self._stepped:
            self._stepped = False
            assert self._context is not None
            with torch.no_grad():
                self.module.after_step()
                if self.composition.of("on_step_end"):
                    self.sync_buffers()
                for strategy in self.composition.of("on_step_end"):
                    strategy.on_step_end(self._context)
            self.step += 1
            self.task_step += 1
        self.after_step(self, batch)
        self._context = None

    def sync_buffers(self) -> None:
        """Running statistics differ between ranks; rank 0's are the run's."""
        if distributed.world_size() > 1:
            for buffer in self.module.network.buffers():
                dist.broadcast(buffer, src=0)

    @property
    def place(self) -> torch.device:
        """Where the network is."""
        found: torch.device = next(self.module.network.parameters()).device
        return found

    # -- between steps -----------------------------------------------------------------------------------------------

    def wrapped(self, batch: Batch) -> Outputs:
        """`mmcl.strategy.Strategy.wrapped`."""
        return Context(self, "fit", batch).forward(batch)

    # -- evaluation --------------------------------------------------------------------------------------------------

    @contextmanager
    def evaluating(self, stage: Stage) -> Iterator[Encoder]:
        """What probes ask, with strategies' wraps, in eval mode and without gradients."""
        with self.evaluation_mode():
            yield Encoder(self, stage)

    @contextmanager
    def evaluation_mode(self) -> Iterator[None]:
        """Everything in eval mode for a while: evaluation, and the strategies' passes over a task's data."""
        modes = {m: m.training for m in self.modules()}
        self.eval()
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode


def _answered(module: Forward) -> Forward:
    """The module, with the answers of a batch in place of its logits where the batch says how they are made."""

    def call(batch: Batch) -> Outputs:
        outputs = module(batch)
        if ANSWERS in batch:
            outputs.logits = batch[ANSWERS].answers(outputs)
        return outputs

    return call


def _nested(strategy: Any, inner: Callable[[list[ParameterGroup]], Optimizer]) -> Callable[..., Optimizer]:
    return lambda groups: strategy.wrap_optimizer(inner, groups)


def _no_teacher(name: str) -> nn.Module:
    raise RunError(f"no teacher '{name}' outside a run")
