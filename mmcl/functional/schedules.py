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


def _check(step: int, total_steps: int, warmup_steps: int) -> None:
    if step < 0 or total_steps < 1 or not 0 <= warmup_steps <= total_steps:
        raise MmclError(
            f"schedule: step {step}, total_steps {total_steps}, warmup_steps {warmup_steps}: the step must be 0 or "
            "more and the warm-up must fit into the task"
        )
