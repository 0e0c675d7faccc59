"""From `results.json` to tables, plots, one self-contained HTML page, and the comparison of runs."""

from __future__ import annotations

from mmcl.report.build import build_report
from mmcl.report.results import Results

__all__ = ["Results", "build_report"]
