"""From `results.json` to tables, plots, one self-contained HTML page, and the comparison of runs."""

from __future__ import annotations

from mmcl.report.build import build_report
from mmcl.report.results import Results
from mmcl.report.text import final_table, run_line

__all__ = ["Results", "build_report", "final_table", "run_line"]
