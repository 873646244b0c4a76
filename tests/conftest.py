"""What holds for every test: nothing is fetched, and small matrices are not spread over threads."""

from __future__ import annotations

import os

# before anything imports NumPy or torch: on a busy machine threads that wait for each other cost more than they give
for name, value in {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
}.items():
    os.environ.setdefault(name, value)

from hypothesis import settings  # noqa: E402

# a machine under load is slow, not wrong; CI tries the same examples every time, everybody else new ones
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.register_profile("quick", deadline=None, max_examples=20)  # for `make quick`
settings.load_profile("ci" if os.environ.get("CI") else "default")
