"""One Ray for a whole pytest session; runtimes find it running and use a namespace of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_DEDUP_LOGS": "0"}


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    import ray

    ray.init(
        num_cpus=8,
        include_dashboard=False,
        object_store_memory=96 * 2**20,
        configure_logging=False,
        log_to_driver=False,
    )
    yield
    ray.shutdown()
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
