"""Learning-rate schedules: a factor that is a pure function of the step within a task."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mmcl.errors import ConfigError
from mmcl.functional.schedules import constant, infinite, rewarm, rsqrt_cooldown, warmup_cosine


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
        warmup = _steps(self.warmup, steps)
        return self.floor + (1 - self.floor) * warmup_cosine(step, steps, min(warmup, max(steps - 1, 0)))


class Constant(Schedule):
    """The same rate throughout, after `warmup` steps (below 1: a fraction of the task's steps)."""

    def __init__(self, warmup: float = 0.0) -> None:
        self.warmup = warmup

    def __call__(self, step: int, steps: int) -> float:
        return constant(step, steps, min(_steps(self.warmup, steps), steps))


class Rewarm(Schedule):
    """Warm up from 0 and decay to `floor` in each task anew (Ibrahim et al., TMLR 2024).

    Optimizer step i takes the rate at i + 1, so that the first step of a task trains and the last one has `floor`.

    Args:
        warmup: steps of warm-up; below 1 it is a fraction of the task's steps.
        floor: factor at the end.
    """

    def __init__(self, warmup: float = 0.01, floor: float = 0.1) -> None:
        if warmup < 0 or not 0 <= floor <= 1:
            raise ConfigError(f"Rewarm: warmup {warmup} must be 0 or more and floor {floor} within [0, 1]")
        self.warmup = warmup
        self.floor = floor

    def __call__(self, step: int, steps: int) -> float:
        return rewarm(min(step + 1, steps), steps, min(_steps(self.warmup, steps), steps), self.floor)


class Infinite(Schedule):
    """Warm-up, cool-down, a constant rate, and at last an annealing (Ibrahim et al., TMLR 2024).

    A stream's first task warms up and cools down, the later ones hold the constant rate (``warmup: 0, cooldown: 0``),
    and none but the last one anneals: training goes on from weights that were not annealed. Optimizer step i takes the
    rate at i + 1.

    Args:
        warmup: steps of warm-up; below 1 it is a fraction of the task's steps, as are the other two.
        cooldown: steps from the peak to `level`.
        anneal: steps of the decay at the end; 0 leaves it out.
        level: factor of the constant phase.
        floor: factor at the end of the annealing.
    """

    def __init__(
        self,
        warmup: float = 0.01,
        cooldown: float = 0.6,
        anneal: float = 0.0,
        level: float = 0.55,
        floor: float = 0.1,
    ) -> None:
        phases = (warmup, cooldown, anneal)
        if min(phases) < 0 or sum(p for p in phases if p < 1) > 1:
            raise ConfigError(f"Infinite: warmup, cooldown and anneal {phases} must be 0 or more and fit into a task")
        if not 0 < floor <= level <= 1:
            raise ConfigError(f"Infinite: floor {floor} and level {level} must be 0 < floor <= level <= 1")
        self.phases = phases
        self.level = level
        self.floor = floor

    def __call__(self, step: int, steps: int) -> float:
        warmup = min(_steps(self.phases[0], steps), steps)
        cooldown = min(_steps(self.phases[1], steps), steps - warmup)
        anneal = min(_steps(self.phases[2], steps), steps - warmup - cooldown)
        return infinite(min(step + 1, steps), steps, warmup, cooldown, anneal, self.level, self.floor)


class RsqrtCooldown(Schedule):
    """Warm-up, inverse square root of the step, and a linear cool-down to 0 (FoMo-in-Flux; Roth et al., NeurIPS 2024).

    Args:
        warmup: steps of warm-up; below 1 it is a fraction of the task's steps, rounded up, as is the other one.
        cooldown: steps from the square root's curve to 0.
        floor: what the square root tends to.
        peak: factor at the end of the warm-up. A later task may begin lower, see `mmcl.functional.schedules.meta_peak`.
    """

    def __init__(self, warmup: float = 0.1, cooldown: float = 0.1, floor: float = 0.001, peak: float = 1.0) -> None:
        if min(warmup, cooldown) < 0 or not 0 <= floor <= peak:
            raise ConfigError(
                f"RsqrtCooldown: warmup {warmup} and cooldown {cooldown} must be 0 or more, and floor {floor} within "
                f"0..peak ({peak})"
            )
        self.warmup = warmup
        self.cooldown = cooldown
        self.floor = floor
        self.peak = peak

    def __call__(self, step: int, steps: int) -> float:
        warmup, cooldown = (min(_steps_up(phase, steps), steps) for phase in (self.warmup, self.cooldown))
        return rsqrt_cooldown(step, steps, warmup, cooldown, self.floor, self.peak)


def _steps_up(phase: float, steps: int) -> int:
    """`_steps`, where a fraction is rounded up."""
    return math.ceil(phase * steps - 1e-9) if phase < 1 else int(phase)


class Linear(Schedule):
    """A straight line over a task's steps.

    Args:
        start: factor at the first step.
        end: factor at the last step.
    """

    def __init__(self, start: float = 1.0, end: float = 0.0) -> None:
        self.start = start
        self.end = end

    def __call__(self, step: int, steps: int) -> float:
        return self.start + (self.end - self.start) * min(step / max(steps - 1, 1), 1.0)


class Piecewise(Schedule):
    """Factors that hold from a step on, until the next one.

    Args:
        begins: the steps from which they hold, ascending from 0; one below 1 is a fraction of the task's steps.
        factors: one for each.

    Raises:
        ConfigError: the two are not of one length, or none holds at step 0.
    """

    def __init__(self, begins: Sequence[float], factors: Sequence[float]) -> None:
        if not begins or begins[0] != 0 or len(begins) != len(factors):
            raise ConfigError(
                f"Piecewise: begins {list(begins)} and factors {list(factors)} must be as many, and the first step 0"
            )
        self.begins = tuple(begins)
        self.factors = tuple(factors)

    def __call__(self, step: int, steps: int) -> float:
        held = [f for begin, f in zip(self.begins, self.factors, strict=True) if _steps(begin, steps) <= step]
        return held[-1]


def _steps(phase: float, steps: int) -> int:
    """Steps of a phase that is given in steps or, below 1, as a fraction of the task's."""
    return round(phase * steps) if phase < 1 else int(phase)
