"""Every test runs offline, on one thread per process, and with repeatable examples."""

import os

# Before torch is imported: test processes run side by side and start processes of their own.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["MPLBACKEND"] = "Agg"

from hypothesis import settings

# Waiting for the disk keeps a file through a power cut, which no test makes; a killed process loses nothing without it.
os.fsync = lambda descriptor: None

settings.register_profile("mmcl", deadline=None, derandomize=True, database=None, max_examples=50)
settings.load_profile("mmcl")
