"""Calls over a connection that may be lost: tried again with a bound, then refused at once until it is back."""

from __future__ import annotations

import functools
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from qraf.clock import Clock, SystemClock
from qraf.errors import StorageFailed
from qraf.storage.database import is_lost

__all__ = ["Away", "HasLine", "Line", "retried"]

PATIENCE_S = 2.0  # how long a call goes on trying
REST_S = 0.5  # between two tries of a broken line
_FIRST_DELAY_S, _LAST_DELAY_S = 0.05, 0.8

_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Away:
    """Since when (seconds since 1970) a database has not answered, and why."""

    since: float
    reason: str


class Line:
    """The way to a database. Every call through it must be one that may be made twice.

    When a call has given up, the line counts as broken: calls are refused at once, and one every `REST_S` tries it
    again, so that nobody queues behind a database that is away.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._why: StorageFailed | None = None  # why it is broken
        self._since = 0.0
        self._rest_until = 0.0
        self._trying = threading.Lock()

    @property
    def away(self) -> Away | None:
        """Set while the line is broken."""
        why, since = self._why, self._since
        return None if why is None else Away(since, why.reason)

    def call(self, work: Callable[[], _T]) -> _T:
        """The result of `work`, tried again with growing, jittered delays while its connection is lost.

        Raises:
            StorageFailed: it was lost for `PATIENCE_S`, or the line is broken.
        """
        why = self._why
        if why is None:
            return self._insist(work)
        if time.monotonic() < self._rest_until or not self._trying.acquire(blocking=False):
            raise StorageFailed(why.what, why.reason, why.retry_after_ms)
        try:
            done = work()
        except StorageFailed as fault:
            if is_lost(fault):
                self._break(fault)
            raise
        finally:
            self._trying.release()
        self._why = None
        return done

    def _insist(self, work: Callable[[], _T]) -> _T:
        give_up, delay = time.monotonic() + PATIENCE_S, _FIRST_DELAY_S
        while True:
            try:
                return work()
            except StorageFailed as fault:
                if not is_lost(fault):
                    raise
                if time.monotonic() + delay > give_up:
                    self._break(fault)
                    raise
            time.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(2 * delay, _LAST_DELAY_S)

    def _break(self, why: StorageFailed) -> None:
        if self._why is None:
            self._since = self._clock.now()
        self._why, self._rest_until = why, time.monotonic() + REST_S


class HasLine(Protocol):
    """What a method marked `retried` finds on its object."""

    @property
    def line(self) -> Line: ...  # noqa: D102


_Self = TypeVar("_Self", bound=HasLine)


def retried(method: Callable[Concatenate[_Self, _P], _T]) -> Callable[Concatenate[_Self, _P], _T]:
    """A method that goes through its object's line; an iterator among its arguments is read once, before."""

    @functools.wraps(method)
    def call(self: _Self, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        kept: list[Any] = [list(one) if isinstance(one, Iterator) else one for one in args]
        return self.line.call(lambda: method(self, *kept, **kwargs))

    return call
