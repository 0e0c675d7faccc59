"""The measurements run, and their clock and statistics do what they say."""

from __future__ import annotations

import time

import pytest

from mmcl.benchmarks.throughput.__main__ import main
from mmcl.benchmarks.throughput.figures import Figure, ratios, summary
from mmcl.benchmarks.throughput.turns import Gate, Participant, Plan, measure
from mmcl.errors import RunError

SHORT = ["--blocks", "1", "--steps", "2", "--turn", "1", "--warm_up", "1"]


def test_interval_of_the_median() -> None:
    assert summary([4.0]) == Figure(4.0, 4.0, 4.0)
    assert summary([float(i) for i in range(1, 6)]) == Figure(3.0, 1.0, 5.0)  # too few for 95 %: the whole range
    assert summary([float(i) for i in range(10, 0, -1)]) == Figure(5.5, 2.0, 9.0)  # covers 97.9 %
    assert ratios([2.0, 6.0], [1.0, 2.0]) == Figure(2.5, 2.0, 3.0)


def busy(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def test_blocks_count_cpu_time_of_their_own_steps() -> None:
    plan = Plan(blocks=2, steps=4, turn=2, warm_up=3)

    def worker(seconds: float) -> Participant:
        def work(gate: Gate) -> int:
            for _ in range(plan.total):
                gate.tick()
                busy(seconds)
                time.sleep(0.002)
            return plan.total

        return work

    seconds, results = measure({"slow": worker(0.02), "fast": worker(0.01)}, plan)
    assert results == {"slow": 12, "fast": 12}
    assert seconds["slow"] == pytest.approx([0.08, 0.08], rel=0.2)
    assert seconds["fast"] == pytest.approx([0.04, 0.04], rel=0.2)


def test_a_failing_participant_is_reported() -> None:
    def work(gate: Gate) -> None:
        raise ValueError("no such luck")

    with pytest.raises(RunError, match=r"(?s)participant 'broken'.*no such luck"):
        measure({"broken": work}, Plan(1, 1, 1, 1))


def test_step_is_the_hand_written_loop(capsys: pytest.CaptureFixture[str]) -> None:
    main(["step", *SHORT, "--batch_size", "2"])
    shown = capsys.readouterr().out
    assert "weights after 4 steps: bit-equal" in shown
    assert "hand-written loop" in shown and "torch" in shown


def test_startup_reader_and_index(capsys: pytest.CaptureFixture[str]) -> None:
    main(["startup", "--blocks", "1"])
    main(["reader", "--blocks", "1", "--samples", "12", "--pixels", "32", "--batch_size", "8"])
    main(["index", "--blocks", "1", "--samples", "2000", "--batch_size", "100"])
    shown = capsys.readouterr().out
    assert "mmcl --version" in shown and "webdataset" in shown and "A task of 2,000 samples" in shown


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["contrastive", "classes"])
def test_zscl(capsys: pytest.CaptureFixture[str], objective: str) -> None:
    main(["zscl", *SHORT, "--batch_size", "4", "--objective", objective])
    assert "ZSCL, texts and images cached" in capsys.readouterr().out


@pytest.mark.slow
def test_averages(capsys: pytest.CaptureFixture[str]) -> None:
    main(["averages", *SHORT, "--batch_size", "4"])
    assert "one call of running_average" in capsys.readouterr().out


def test_merges(capsys: pytest.CaptureFixture[str]) -> None:
    main(["merges", "--blocks", "1", "--models", "3", "--width", "16"])
    shown = capsys.readouterr().out
    assert "Merges of 3 task vectors" in shown
    assert all(name in shown for name in ("task_arithmetic", "magmax", "ties", "model_stock", "slerp"))


@pytest.mark.parametrize("wrong", [["--steps", "3", "--turn", "2"], ["--blocks", "0"]])
def test_wrong_numbers_are_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["step", *wrong])
    assert stopped.value.code == 2
    assert "must be" in capsys.readouterr().err


@pytest.mark.slow
def test_strategies(capsys: pytest.CaptureFixture[str]) -> None:
    main(["strategies", *SHORT, "--only", "Frozen", "MomentumInterpolation", "ExperienceReplay", "--at_once", "1"])
    shown = capsys.readouterr().out
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in shown.splitlines() if line.startswith("|")]
    assert [line[0] for line in lines[2:]] == [
        *("plain fine-tuning", "MomentumInterpolation", "plain fine-tuning", "ExperienceReplay")
    ]
    assert [line[4] for line in lines[2:]] == ["0.00", "1.00", "0.00", "0.00"]
    assert "Not measured: Frozen: it trains nothing" in shown
