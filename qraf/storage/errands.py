"""Calls that may hang, each with a time limit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

__all__ = ["Errands"]

_T = TypeVar("_T")


class Errands:
    """Calls to one place that cannot be cancelled, such as those of a file system behind a network.

    Each runs in a thread of its own, and is left to itself when its time is over; while one such hangs, no other is
    begun, so that there are never more of them than threads that call. Nobody waits for them when the process ends.
    """

    def __init__(self) -> None:
        self._late: set[threading.Thread] = set()
        self._lock = threading.Lock()

    @property
    def is_hanging(self) -> bool:
        """Whether an earlier call has not come back yet."""
        with self._lock:
            self._late = {one for one in self._late if one.is_alive()}
            return bool(self._late)

    def run(self, work: Callable[[], _T], until: float) -> _T:
        """What `work` returns or raises.

        Raises:
            TimeoutError: it did not until a monotonic time, or an earlier one still hangs.
        """
        if self.is_hanging:
            raise TimeoutError("an earlier call still hangs")
        wait_s, done = until - time.monotonic(), Future[_T]()
        if wait_s <= 0:
            raise TimeoutError("there was no time left")

        def call() -> None:
            try:
                done.set_result(work())
            except BaseException as fault:
                done.set_exception(fault)

        thread = threading.Thread(target=call, name="errand", daemon=True)
        thread.start()
        try:
            return done.result(wait_s)
        except TimeoutError:
            if done.done():  # it came in this moment, or `work` itself raised a TimeoutError
                return done.result()
            with self._lock:
                self._late.add(thread)
            raise TimeoutError(f"no answer in {round(wait_s, 1):g} s") from None
