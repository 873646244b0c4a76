"""A Redis server to count rates in.

`QRAF_TEST_REDIS` says where, as a URL with a database of its own, and then it must be there. By default it is one on
this machine, as `.ci/redis` starts it; without it the tests skip. Tests use names of their own and leave nothing: what
they count expires.
"""

from __future__ import annotations

import functools
import os

import pytest
import redis

_NAMED = os.environ.get("QRAF_TEST_REDIS", "")
SERVER = _NAMED or "redis://127.0.0.1:6379/9"


@functools.cache
def _why_not() -> str:
    try:
        with redis.Redis.from_url(SERVER, socket_connect_timeout=3) as client:
            client.ping()
    except redis.RedisError as fault:
        if _NAMED:
            raise
        return f"no Redis to test with (QRAF_TEST_REDIS): {' '.join(str(fault).split())[:200]}"
    return ""


def url() -> str:
    """The server's URL; skips the test where there is none."""
    if why := _why_not():
        pytest.skip(why)
    return SERVER
