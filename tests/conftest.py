"""Every test runs offline, on one thread per process, and with repeatable examples."""

import os

# Before torch is imported: test processes run side by side and start processes of their own.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["MPLBACKEND"] = "Agg"

from hypothesis import settings

settings.register_profile("mmcl", deadline=None, derandomize=True, database=None, max_examples=50)
settings.load_profile("mmcl")
