"""How much one call may take: seconds and bytes of states. Looked at between steps, so that no call runs on unseen."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

from qraf.errors import LimitExceeded
from qraf.operations.state import Made

__all__ = ["Budget"]

_SHORT_S = 1.0  # an estimate of less is not worth refusing for


@dataclass(slots=True)
class Budget:
    """The time and room of a call; None: no bound.

    `started`: when the call came, in monotonic seconds. `taken`: bytes of the factors that it loaded or made; `room` is
    what their bound is called, `limit` what that of the time is.
    """

    max_s: float | None = None
    max_bytes: int | None = None
    started: float = field(default_factory=time.monotonic)
    taken: int = 0
    room: str = "states.max_call_bytes"
    limit: str = "states.max_call_s"

    @property
    def is_long(self) -> bool:
        """Whether it is that of a job."""
        return self.limit == "states.max_operation_s"

    def check(self) -> None:
        """Raises LimitExceeded once the time is over."""
        spent = time.monotonic() - self.started
        if self.max_s is not None and spent > self.max_s:
            raise LimitExceeded(self.limit, int(self.max_s), round(spent))

    def foresee(self, seconds: float) -> None:
        """Refuse work of so many seconds, at the speed of one core, where that many are not left.

        Raises:
            LimitExceeded: with the seconds that the call would take.
        """
        self.check()
        would = time.monotonic() - self.started + seconds
        if self.max_s is not None and seconds > _SHORT_S and would > self.max_s:
            raise LimitExceeded(self.limit, int(self.max_s), math.ceil(would))

    def take(self, made: Made) -> Made:
        """Count a state that was loaded or made, and give it back.

        Raises:
            LimitExceeded: the states of the call have too many bytes, or its time is over.
        """
        self.taken += made.state.nbytes
        if self.max_bytes is not None and self.taken > self.max_bytes:
            raise LimitExceeded(self.room, self.max_bytes, self.taken)
        self.check()
        return made
