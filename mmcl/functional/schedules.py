"""Learning-rate schedules: pure functions of the step within a task that give a multiplier of the base rate."""

from __future__ import annotations

import math

from mmcl.errors import MmclError


def warmup_cosine(step: int, total_steps: int, warmup_steps: int = 0) -> float:
    """Linear warm-up, then half a cosine to 0 (the schedule of ZSCL and open_clip).

    (step + 1) / warmup_steps below `warmup_steps`, then (1 + cos(pi (step - warmup_steps) / (total_steps -
    warmup_steps))) / 2. Step `total_steps` - 1 is the last of a task and still above 0; from `total_steps` on it is 0.

    Args:
        step: 0-based step within the task.
        total_steps: steps of the task.
        warmup_steps: steps of the warm-up, 0 to `total_steps`.

    Raises:
        MmclError: a number is out of range.

    >>> [round(warmup_cosine(i, 8, 2), 3) for i in range(9)]
    [0.5, 1.0, 1.0, 0.933, 0.75, 0.5, 0.25, 0.067, 0.0]
    """
    _check(step, total_steps, warmup_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if step >= total_steps:
        return 0.0
    return (1 + math.cos(math.pi * (step - warmup_steps) / (total_steps - warmup_steps))) / 2


def constant(step: int, total_steps: int, warmup_steps: int = 0) -> float:
    """Linear warm-up, then 1.

    Args:
        step: 0-based step within the task.
        total_steps: steps of the task.
        warmup_steps: steps of the warm-up, 0 to `total_steps`.

    Raises:
        MmclError: a number is out of range.

    >>> [constant(i, 4, 2) for i in range(4)]
    [0.5, 1.0, 1.0, 1.0]
    """
    _check(step, total_steps, warmup_steps)
    return (step + 1) / warmup_steps if step < warmup_steps else 1.0


def rewarm(step: float, total_steps: int, warmup_steps: int = 0, floor: float = 0.1) -> float:
    """Linear warm-up from 0, then half a cosine to `floor`, on each new data set anew (Ibrahim et al., TMLR 2024).

    step / warmup_steps below `warmup_steps`, then floor + (1 - floor) (1 + cos(pi (step - warmup_steps) / (total_steps
    - warmup_steps))) / 2, which is `floor` at step `total_steps`.

    Args:
        step: place within the task, 0 to `total_steps`.
        total_steps: steps of the task.
        warmup_steps: steps of the warm-up, 0 to `total_steps`.
        floor: factor at the end; the paper takes 0.1.

    Raises:
        MmclError: a number is out of range.

    >>> [round(rewarm(i, 8, 2), 3) for i in (0, 1, 2, 5, 8)]
    [0.0, 0.5, 1.0, 0.55, 0.1]
    """
    _check(step, total_steps, warmup_steps)
    if step < warmup_steps:
        return step / warmup_steps
    return floor + (1 - floor) * _fall(step - warmup_steps, total_steps - warmup_steps)


def infinite(
    step: float,
    total_steps: int,
    warmup_steps: int,
    cooldown_steps: int,
    anneal_steps: int,
    level: float,
    floor: float,
) -> float:
    """A schedule that more data can follow without a new warm-up (Ibrahim et al., TMLR 2024).

    Linear from 0 to 1 over `warmup_steps`, half a cosine to `level` over `cooldown_steps`, constant, and over the last
    `anneal_steps` level (floor / level)^(share of the annealing). Training goes on from the weights before the
    annealing.

    Args:
        step: place within the task, 0 to `total_steps`.
        total_steps: steps of the task.
        warmup_steps: of the linear warm-up.
        cooldown_steps: from the peak to `level`.
        anneal_steps: of the decay at the end; 0 leaves it out.
        level: factor of the constant phase.
        floor: factor at the end of the annealing.

    Raises:
        MmclError: a number is out of range, or the phases do not fit into the task.

    >>> [round(infinite(i, 10, 2, 4, 2, 0.5, 0.05), 3) for i in (0, 1, 2, 4, 6, 8, 9, 10)]
    [0.0, 0.5, 1.0, 0.75, 0.5, 0.5, 0.158, 0.05]
    """
    _check(step, total_steps, warmup_steps)
    phases = (warmup_steps, cooldown_steps, anneal_steps)
    if min(phases) < 0 or sum(phases) > total_steps or not 0 < floor <= level <= 1:
        raise MmclError(
            f"schedule: warm-up {warmup_steps}, cool-down {cooldown_steps}, annealing {anneal_steps} do not fit into "
            f"{total_steps} steps, or floor {floor} and level {level} are not 0 < floor <= level <= 1"
        )
    if step < warmup_steps:
        return step / warmup_steps
    if step < warmup_steps + cooldown_steps:
        return level + (1 - level) * _fall(step - warmup_steps, cooldown_steps)
    late = step - (total_steps - anneal_steps)
    return level if late <= 0 else level * (floor / level) ** (late / anneal_steps)


def _fall(step: float, steps: int) -> float:
    """Half a cosine from 1 to 0."""
    return (1 + math.cos(math.pi * min(step / steps, 1))) / 2 if steps else 0.0


def _check(step: float, total_steps: int, warmup_steps: int) -> None:
    if step < 0 or total_steps < 1 or not 0 <= warmup_steps <= total_steps:
        raise MmclError(
            f"schedule: step {step}, total_steps {total_steps}, warmup_steps {warmup_steps}: the step must be 0 or "
            "more and the warm-up must fit into the task"
        )
