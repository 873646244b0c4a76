"""The only source of time, so that a test can move it by hand."""

from __future__ import annotations

import time
from typing import Protocol

__all__ = ["Clock", "FakeClock", "SystemClock"]


class Clock(Protocol):
    """Wall-clock time for what is stored, monotonic time for durations; both in seconds."""

    def now(self) -> float:
        """Seconds since 1970-01-01T00:00:00Z."""
        ...

    def monotonic(self) -> float:
        """Seconds from an arbitrary start; never goes back."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        """Seconds since 1970-01-01T00:00:00Z."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds from an arbitrary start; never goes back."""
        return time.monotonic()


class FakeClock:
    """A clock that stands still until `advance`.

    >>> clock = FakeClock(100.0)
    >>> clock.advance(5)
    >>> clock.now()
    105.0
    """

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self._now, self._monotonic = now, 0.0

    def now(self) -> float:
        """Seconds since 1970-01-01T00:00:00Z."""
        return self._now

    def monotonic(self) -> float:
        """Seconds from an arbitrary start; never goes back."""
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass at once."""
        self._now += seconds
        self._monotonic += seconds
