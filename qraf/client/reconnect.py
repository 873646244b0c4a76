"""When a client that lost its connection tries again, and what it may then send again."""

from __future__ import annotations

import random
from dataclasses import dataclass

from qraf.frames import Cancel, ClientFrame, Enhance, Ping, Recall, SessionOpen, Unwatch, Watch, Write

__all__ = ["FINAL_CLOSES", "Reconnect", "can_repeat"]

FINAL_CLOSES = frozenset(
    {1007, 1009, 4009, 4010, 4400, 4401, 4403, 4404, 4406, 4411, 4412, 4413, 4421, 4422},
)
"""Close codes after which the same client would only be closed again, or would fight with its successor.

Not 4425 (the token's time comes) and 4429 (so does room).
"""


@dataclass(frozen=True, slots=True)
class Reconnect:
    """Exponential back-off with full jitter: a random part of `first_s`, then of twice as much, up to `most_s`.

    `give_up_s`: without a connection for so long, everything that waits ends with `ConnectionLost`. `max_sends`: a
    command that was sent so often, and was answered never, ends so, too.
    """

    first_s: float = 0.1
    most_s: float = 5.0
    give_up_s: float = 60.0
    max_sends: int = 8

    def pause_s(self, attempt: int, at_least_s: float = 0.0) -> float:
        """How long to wait before a try, counted from 0."""
        return at_least_s + random.uniform(0.0, min(self.most_s, self.first_s * 2 ** min(attempt, 30)))


def can_repeat(frame: ClientFrame) -> bool:
    """Whether it does no harm to send this command a second time."""
    match frame:
        case Recall() | Cancel() | Watch() | Unwatch() | Ping():
            return True
        case Write():
            return all(item.item_id for item in frame.items)
        case Enhance():
            return frame.key is not None
        case SessionOpen():
            return frame.session is not None
        case _:
            return False
