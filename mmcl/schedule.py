"""Learning-rate schedules: a factor that is a pure function of the step within a task."""

from __future__ import annotations

from mmcl.errors import ConfigError
from mmcl.functional.schedules import constant, warmup_cosine


class Schedule:
    """Base class. `schedule(step, steps)` gives the factor on the learning rate of optimizer step `step` (from 0)."""

    def __call__(self, step: int, steps: int) -> float:
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in vars(self).items())})"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    def __hash__(self) -> int:
        return hash(repr(self))


class WarmupCosine(Schedule):
    """Linear warm-up, then a cosine to `floor` (Loshchilov & Hutter, ICLR 2017).

    Args:
        warmup: steps of warm-up; below 1 it is a fraction of the task's steps.
        floor: factor at the end.
    """

    def __init__(self, warmup: float = 0.1, floor: float = 0.0) -> None:
        if warmup < 0 or not 0 <= floor <= 1:
            raise ConfigError(f"WarmupCosine: warmup {warmup} must be 0 or more and floor {floor} within [0, 1]")
        self.warmup = warmup
        self.floor = floor

    def __call__(self, step: int, steps: int) -> float:
        warmup = round(self.warmup * steps) if self.warmup < 1 else int(self.warmup)
        return self.floor + (1 - self.floor) * warmup_cosine(step, steps, min(warmup, max(steps - 1, 0)))


class Constant(Schedule):
    """The same rate throughout, after `warmup` steps (below 1: a fraction of the task's steps)."""

    def __init__(self, warmup: float = 0.0) -> None:
        self.warmup = warmup

    def __call__(self, step: int, steps: int) -> float:
        warmup = round(self.warmup * steps) if self.warmup < 1 else int(self.warmup)
        return constant(step, steps, min(warmup, steps))
