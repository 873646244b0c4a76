"""Waiting for what an actor says. Takes Ray's references, imports nothing of it."""

from __future__ import annotations

import asyncio
from typing import Any

from qraf.actors.messages import HostReport
from qraf.errors import QrafError

__all__ = ["ping", "raised", "reply"]


async def reply(ref: Any, timeout_s: float | None = None) -> Any:
    """The answer to a call. Giving up leaves Ray's own future alone: it may still be set from another thread.

    Raises:
        TimeoutError: it did not come within `timeout_s`.
    """
    answer = asyncio.wrap_future(ref.future())
    answer.add_done_callback(lambda done: done.cancelled() or done.exception())  # a late failure is no news
    async with asyncio.timeout(timeout_s):  # `wait_for` loses a cancel that comes together with the answer
        return await asyncio.shield(answer)


async def ping(actor: Any, timeout_s: float) -> HostReport:
    """What a host says of itself."""
    report: HostReport = await reply(actor.call.options(concurrency_group="control").remote("ping"), timeout_s)
    return report


def raised(answer: Any) -> Any:
    """The answer; an error of ours, which travels as a value, is raised."""
    if isinstance(answer, QrafError):
        raise answer
    return answer
