"""Room for what comes in: bodies of requests until they are answered, messages of sockets until they are whole.

Each alone has a bound of its own; this is the one for all of them together, so that no number of clients, known or not,
makes the gateway hold more. The first `FREE` bytes of each need no room: who sends little is not kept out by others.
"""

from __future__ import annotations

from qraf.errors import LimitExceeded

__all__ = ["FREE", "Held", "Room"]

FREE = 16 * 1024
_RETRY_MS = 1000


class Room:
    """Bytes held of what comes in, `most` at a time."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.used = 0


class Held:
    """What one body or one message holds of a room."""

    __slots__ = ("_room", "size")

    def __init__(self, room: Room) -> None:
        self._room, self.size = room, 0

    def add(self, size: int) -> None:
        """Hold more; raises LimitExceeded where there is no room, and then holds as much as before."""
        room, more = self._room, max(0, self.size + size - FREE) - max(0, self.size - FREE)
        if more and room.used + more > room.most:
            raise LimitExceeded("max_incoming_bytes", room.most, room.used + more, _RETRY_MS)
        room.used += more
        self.size += size

    def let_go(self) -> None:
        """Hold nothing any more. Twice is harmless."""
        self._room.used -= max(0, self.size - FREE)
        self.size = 0
