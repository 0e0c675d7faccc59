"""Measurements of speed: `python -m mmcl.benchmarks.throughput --help`."""
