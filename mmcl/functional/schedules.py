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


def rsqrt_cooldown(
    step: int,
    total_steps: int,
    warmup_steps: int,
    cooldown_steps: int,
    floor: float = 0.0,
    peak: float = 1.0,
) -> float:
    """Linear warm-up, inverse square root, and a linear cool-down to 0 (FoMo-in-Flux; Roth et al., NeurIPS 2024).

    peak (step + 1) / W below W = `warmup_steps`, then floor + sqrt(W / step) (peak - floor). In the last C steps that
    value times (C - c - 1) / C, c counting from 0, so that the last step has the factor 0.

    Args:
        step: 0-based step within the task.
        total_steps: steps of the task.
        warmup_steps: W; the published code takes a tenth of the task, rounded up.
        cooldown_steps: C, likewise.
        floor: what the square root tends to.
        peak: factor at the end of the warm-up; `meta_peak` gives that of a later task.

    Raises:
        MmclError: a number is out of range.

    >>> [round(rsqrt_cooldown(i, 12, 2, 4), 3) for i in (0, 1, 2, 4, 7, 8, 9, 10, 11)]
    [0.5, 1.0, 1.0, 0.707, 0.535, 0.375, 0.236, 0.112, 0.0]
    """
    _check(step, total_steps, warmup_steps)
    if not 0 <= cooldown_steps <= total_steps:
        raise MmclError(f"schedule: a cool-down of {cooldown_steps} steps does not fit into {total_steps}")
    if step < warmup_steps:
        value = peak * (step + 1) / warmup_steps
    else:
        value = floor + math.sqrt(max(warmup_steps, 1) / max(step, 1)) * (peak - floor)
    late = step - (total_steps - cooldown_steps)
    return value * max(cooldown_steps - late - 1, 0) / cooldown_steps if cooldown_steps and late >= 0 else value


def cosine_between(step: int, total_steps: int, warmup_steps: int, floor: float = 0.0, peak: float = 1.0) -> float:
    """Linear warm-up to `peak`, then half a cosine that has `floor` at the last step (FoMo-in-Flux).

    peak (step + 1) / W below W = `warmup_steps`, then floor + (1 + cos(pi (step - W + 1) / (total_steps - W))) / 2
    (peak - floor).

    Args:
        step: 0-based step within the task.
        total_steps: steps of the task.
        warmup_steps: W.
        floor: factor at the last step; the published runs have 0.001.
        peak: factor at the end of the warm-up; `meta_peak` gives that of a later task.

    Raises:
        MmclError: a number is out of range.

    >>> [round(cosine_between(i, 6, 2, floor=0.1), 3) for i in range(6)]
    [0.5, 1.0, 0.868, 0.55, 0.232, 0.1]
    """
    _check(step, total_steps, warmup_steps)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    return floor + (peak - floor) * _fall(step - warmup_steps + 1, total_steps - warmup_steps)


def meta_peak(
    kind: str, task: int, total_steps: int, warmup_steps: int, cooldown_steps: int = 0, floor: float = 0.0
) -> float:
    """The peak of a later task: where one schedule over all tasks would stand as it begins (FoMo-in-Flux).

    With t the task, S, W and C the steps of a task, its warm-up and cool-down, and m the floor:
    ``cosine``: m + (1 + cos(pi (t (S - W) + 1) / ((t + 1) (S - W)))) / 2 (1 - m);
    ``rsqrt``: m + sqrt((t + 1) W / (t S + W)) (1 - m);
    ``rsqrt_continued``: m + sqrt(W / (t (S - C) - (t - 1) W)) (1 - m). The first task's is 1.

    Args:
        kind: one of these three.
        task: t, from 0.
        total_steps: S, of every task.
        warmup_steps: W.
        cooldown_steps: C.
        floor: m.

    Raises:
        MmclError: an unknown kind, or a number is out of range.

    >>> [round(meta_peak("rsqrt", t, 40, 4), 3) for t in range(3)]
    [1.0, 0.426, 0.378]
    """
    _check(task, total_steps, warmup_steps)
    if task == 0:
        return 1.0
    if kind == "cosine":
        own = total_steps - warmup_steps
        return floor + (1 - floor) * _fall(task * own + 1, (task + 1) * own)
    if kind == "rsqrt":
        ratio = (task + 1) * warmup_steps / (task * total_steps + warmup_steps)
    elif kind == "rsqrt_continued":
        ratio = warmup_steps / (task * (total_steps - cooldown_steps) - (task - 1) * warmup_steps)
    else:
        raise MmclError(f"schedule: kind '{kind}' of a peak is none of cosine, rsqrt, rsqrt_continued")
    return floor + (1 - floor) * math.sqrt(ratio)


def _fall(step: float, steps: int) -> float:
    """Half a cosine from 1 to 0."""
    return (1 + math.cos(math.pi * min(step / steps, 1))) / 2 if steps else 0.0


def _check(step: float, total_steps: int, warmup_steps: int) -> None:
    if step < 0 or total_steps < 1 or not 0 <= warmup_steps <= total_steps:
        raise MmclError(
            f"schedule: step {step}, total_steps {total_steps}, warmup_steps {warmup_steps}: the step must be 0 or "
            "more and the warm-up must fit into the task"
        )
