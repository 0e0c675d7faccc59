"""The plan of docs/scale.md is what the command computes out of the figures that the page names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mmcl.benchmarks.throughput.__main__ import main
from mmcl.benchmarks.throughput.scale import Measured, planned, requests_of
from mmcl.datamodules.transfer import CHUNK
from mmcl.datamodules.writing import Options

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "scale.md").read_text()


def figure(text: str) -> float:
    """The first number of a row of the table of what was measured."""
    (row,) = re.findall(rf"^\| {re.escape(text)} \| ([\d.]+)", PAGE, flags=re.M)
    return float(row)


def test_the_plan_follows_from_the_figures() -> None:
    costs = Measured(
        tar_bytes=figure("a pair in its shard"),
        index_bytes=figure("a pair in the index file"),
        write_ms=figure("writing a pair, with every picture decoded once"),
        index_ms=figure("indexing a pair"),
        memory_bytes=figure("the index in the memory of a process"),
        read_per_second=figure("pairs read, decoded and preprocessed by one CPU"),
    )
    section = PAGE.partition("## The plan")[2]
    told = dict(re.findall(r"^\| (.+?) \| (.+) \|$", section, flags=re.M))
    rows = planned(costs, 1e10, Options((), Path()).megabytes_per_shard, 16, 8, 96, 8)
    digits = re.compile(r"[\d.]+")
    assert [name for name, _ in rows] == [name for name in told if name not in ("what", "---")]
    for name, value in rows:
        numbers = [float(n) for n in digits.findall(value.replace(",", ""))]
        stated = [float(n) for n in digits.findall(told[name].replace(",", ""))]
        assert numbers == pytest.approx(stated, rel=0.01), name  # the page's figures are rounded


def test_what_the_page_takes_from_elsewhere() -> None:
    speed = (DOCS / "performance.md").read_text()
    assert f"| memory of the index | {figure('the index in the memory of a process'):.0f} bytes a sample |" in speed
    assert f"| mmcl | {figure('pairs read, decoded and preprocessed by one CPU'):.0f} [" in speed
    assert CHUNK == 32 << 20 and requests_of(500e6) == 20


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    main(["scale", "--samples", "20", "--pixels", "32", "--pairs", "1e6", "--nodes", "1"])
    shown = capsys.readouterr().out
    assert "writing a pair" in shown and "requests for a shard" in shown and "1e+06 pairs on 1 machines" in shown
