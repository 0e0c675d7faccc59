"""Steps under memory-adjusted FLOPs against FoMo-in-Flux's published table."""

import json
from pathlib import Path

import pytest

from mmcl.errors import MmclError
from mmcl.functional import steps_within_budget

FILE = Path(__file__).parents[1] / "parity" / "metrics" / "fomo_maf_budget_to_steps.json"
TABLE, SMALL, _ = json.loads(FILE.read_text())["cases"]


@pytest.mark.parametrize("row", TABLE["inputs"]["methods"], ids=lambda row: row["method"])
def test_published_table(row: dict[str, float]) -> None:
    given, expected, name = TABLE["inputs"], TABLE["expected"], str(row["method"])
    memory = {
        "from_exact_multiplier": (row["peak_memory_GiB"], given["reference_peak_memory"]),
        "from_published_maf": (row["published_maf"], row["gflops_per_step"]),
    }
    for kind, (own, reference) in memory.items():
        found = [
            steps_within_budget(
                given["budget_gflops"], row["gflops_per_step"], memory=own, reference_memory=reference, tasks=tasks
            )
            for tasks in given["tasks"]
        ]
        assert found == expected[kind][name]
    if name == "full-ft":
        steps = steps_within_budget(given["budget_gflops"], row["gflops_per_step"], tasks=20)
        assert steps * given["batch_size"] == expected["full_ft_samples_per_task_T20"]
        assert steps * given["batch_size"] * 20 == expected["full_ft_samples_total"]


def test_a_budget_of_less_than_a_step_for_each_task_is_refused() -> None:
    given = SMALL["inputs"]
    with pytest.raises(MmclError, match=r"0\.312 steps for each of 4 tasks; raise the budget"):
        steps_within_budget(given["budget_gflops"], given["gflops_per_step"], tasks=given["tasks"])
    assert steps_within_budget(4.0, 8.0) == 1  # halves up
    for wrong in ({"memory": 0.0}, {"reference_memory": float("inf")}, {"tasks": 0}):
        with pytest.raises(MmclError, match="must be positive"):
            steps_within_budget(1.0, 1.0, **wrong)
