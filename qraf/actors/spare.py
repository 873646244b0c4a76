"""One thing made ahead of need, because making it takes longer than anybody wants to wait."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Generic, TypeVar

from qraf.clock import Clock

__all__ = ["Spare"]

_log = logging.getLogger(__name__)
T = TypeVar("T")


class Spare(Generic[T]):
    """At most one spare. `make` makes it in a task that this object owns; after a failure it pauses.

    Not called by threads; belongs to one event loop.
    """

    def __init__(self, make: Callable[[], Coroutine[None, None, T]], clock: Clock, pause_s: float = 15.0) -> None:
        self._make, self._clock, self._pause_s = make, clock, pause_s
        self._making: asyncio.Task[T] | None = None
        self._not_before = clock.monotonic()

    @property
    def is_ready(self) -> bool:
        """Whether taking it needs no waiting."""
        return self._making is not None and self._making.done() and not self._failed(self._making)

    def keep(self) -> None:
        """Begin to make one if there is none; to be called again and again."""
        if self._making is not None and self._making.done() and self._failed(self._making):
            self._making = None
            self._not_before = self._clock.monotonic() + self._pause_s
        if self._making is None and self._clock.monotonic() >= self._not_before:
            self._making = asyncio.get_running_loop().create_task(self._make(), name="spare")

    def put(self, make: Callable[[], Coroutine[None, None, T]]) -> bool:
        """Let one that is there already, or is being made, be the spare; False when there is one."""
        if self._making is not None:
            return False
        self._making = asyncio.get_running_loop().create_task(make(), name="spare")
        return True

    async def take(self) -> T | None:
        """The spare, or None. One in the making is waited for: it is ahead of one that begins now.

        Cancel: the spare is lost to this object; what made it is cancelled too.
        """
        making, self._making = self._making, None
        if making is None:
            return None
        try:
            return await making
        except Exception as error:
            _log.warning("no spare: %s", error)
            return None

    async def close(self) -> T | None:
        """Stop making one; what is made already is handed out, for the caller to end. Twice gives None."""
        making, self._making = self._making, None
        self._not_before = float("inf")
        if making is None:
            return None
        making.cancel()
        (result,) = await asyncio.gather(making, return_exceptions=True)
        return None if isinstance(result, BaseException) else result

    @staticmethod
    def _failed(making: asyncio.Task[T]) -> bool:
        if making.cancelled():
            return True
        error = making.exception()
        if error is not None:
            _log.warning("no spare: %s", error)
        return error is not None
