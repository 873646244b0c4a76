"""What waits to be sent to one client: bounded in frames and bytes."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

__all__ = ["Message", "Outbox", "Slot", "SlowReader"]

Message = bytes | str


class SlowReader(Exception):
    """More waits than the bound allows; the connection ends with 4008."""


class Slot(Protocol):
    """A place in the outbox whose message is made when it leaves, so that it is the newest."""

    def take(self) -> Message:
        """The message; called once for every time that the slot was put."""
        ...


class Outbox:
    """A queue with one reader. When the bound is reached, `put` raises `SlowReader`; nothing is dropped silently.

    Streams of text do not fill it: whoever sends one waits for `drained` between two frames, and the text that comes
    meanwhile is merged where it is made. Watchers put a slot, which skips to the newest.
    """

    def __init__(self, max_frames: int, max_bytes: int) -> None:
        self._max_frames, self._max_bytes = max_frames, max_bytes
        self._waiting: deque[Message | Slot] = deque()
        self._slots: set[int] = set()
        self._bytes = 0
        self._some, self._empty = asyncio.Event(), asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def is_empty(self) -> bool:
        """Whether everything was taken and sent."""
        return self._empty.is_set()

    def put(self, message: Message) -> None:
        """Add a message. One that is alone may have any size.

        Raises:
            SlowReader: too many wait.
        """
        self._bytes += len(message)
        self._add(message)
        if self._bytes > self._max_bytes and len(self._waiting) > 1:
            raise SlowReader

    def put_slot(self, slot: Slot) -> bool:
        """Add a slot; False where it waits already."""
        if id(slot) in self._slots:
            return False
        self._slots.add(id(slot))
        self._add(slot)
        return True

    def remove(self, slot: Slot) -> None:
        """Take a slot out, if it waits."""
        if id(slot) in self._slots:
            self._slots.discard(id(slot))
            self._waiting.remove(slot)

    async def get(self) -> Message:
        """The next message; asking for one says that the one before was sent. Cancel: safe, nothing is lost."""
        while not self._waiting:
            self._empty.set()
            self._some.clear()
            await self._some.wait()
        item = self._waiting.popleft()
        if isinstance(item, bytes | str):
            self._bytes -= len(item)
            return item
        self._slots.discard(id(item))
        return item.take()

    async def drained(self) -> None:
        """Wait until everything was sent."""
        while not self._empty.is_set():
            await self._empty.wait()

    def _add(self, item: Message | Slot) -> None:
        if len(self._waiting) >= self._max_frames:
            raise SlowReader
        self._waiting.append(item)
        self._empty.clear()
        self._some.set()
