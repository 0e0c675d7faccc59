"""What a budget of compute allows: optimizer steps of methods that cost different amounts."""

from __future__ import annotations

import math

from mmcl.errors import MmclError


def steps_within_budget(
    budget: float, flops: float, *, memory: float = 1.0, reference_memory: float = 1.0, tasks: int = 1
) -> int:
    """Steps of each task under memory-adjusted FLOPs (MAFs; FoMo-in-Flux, Roth et al., NeurIPS 2024).

    budget / (flops x memory / reference_memory x tasks), rounded, halves up.

    Args:
        budget: of the whole stream. The benchmark has 1.8e9 GFLOPs.
        flops: of one optimizer step, forward and backward at the full batch, in the unit of `budget`. What a method
            does beside its steps, as a pass for Fisher information, is part of it.
        memory: peak memory of the method on the device.
        reference_memory: that of full fine-tuning.
        tasks: of the stream.

    Raises:
        MmclError: a number is out of range, or there is not a step for each task.

    >>> steps_within_budget(1.8e9, 54479.2515, memory=40.5449, reference_memory=46.5917, tasks=20)  # LoRA, rank 4
    1898
    """
    if not all(0 < x < math.inf for x in (budget, flops, memory, reference_memory)) or tasks < 1:
        raise MmclError(
            f"steps_within_budget: budget {budget}, flops {flops}, memory {memory}, reference memory "
            f"{reference_memory} and tasks {tasks} must be positive and finite"
        )
    exact = budget / (flops * memory / reference_memory * tasks)
    steps = math.floor(exact + 0.5)
    if steps < 1:
        raise MmclError(f"steps_within_budget: {exact:.3g} steps for each of {tasks} tasks; raise the budget")
    return steps
