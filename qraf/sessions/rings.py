"""The last frames of each stream, kept for a reader that comes back; bounded in frames, and in bytes together."""

from __future__ import annotations

from collections import deque

__all__ = ["Ring", "RingPool"]

_ENTRY_BYTES = 64  # what an entry weighs beside its frame


class Ring:
    """Encoded frames by `seq`, the oldest dropped first. What a frame says never changes once it is here.

    Made by `RingPool.open`. Whoever fills it sets `has_ended` after the last frame.
    """

    def __init__(self, pool: RingPool, group: str) -> None:
        self._pool, self._group = pool, group
        self._entries: deque[bytes] = deque()
        self.last = self.size = 0
        self.has_ended = False

    @property
    def first(self) -> int:
        """The oldest `seq` that is kept; `last + 1` when none is."""
        return self.last + 1 - len(self._entries)

    def push(self, data: bytes) -> None:
        """Keep the frame with the next `seq`; others, or in a pool that is too small this one, may have to go."""
        self.last += 1
        self._entries.append(data)
        self._grow(len(data) + _ENTRY_BYTES)
        if len(self._entries) > self._pool.max_frames:
            self.drop(1)
        self._pool.fit(self._group)

    def get(self, seq: int) -> bytes | None:
        """The frame with this `seq`; None when it is not kept."""
        place = seq - self.first
        return self._entries[place] if 0 <= place < len(self._entries) else None

    def drop(self, count: int | None = None) -> None:
        """Let the oldest frames go, or all of them."""
        for _ in range(len(self._entries) if count is None else count):
            self._grow(-len(self._entries.popleft()) - _ENTRY_BYTES)

    def halve(self) -> None:
        """Let the older half go."""
        self.drop((len(self._entries) + 1) // 2)

    def close(self) -> None:
        """Let everything go; the ring is not used any more."""
        self.drop()
        self._pool.leave(self, self._group)

    def _grow(self, size: int) -> None:
        self.size += size
        self._pool.grow(self._group, size)


class RingPool:
    """What the rings of a gateway hold together.

    When a group (a session; a connection where there is none) or all of them hold too much, the oldest ring whose
    stream has ended is emptied; where there is none, the largest loses its older half.
    """

    def __init__(self, *, max_frames: int, group_bytes: int, total_bytes: int) -> None:
        self.max_frames, self._group_bytes, self._total_bytes = max_frames, group_bytes, total_bytes
        self._groups: dict[str, dict[Ring, None]] = {}  # in the order in which they were opened
        self._sizes: dict[str, int] = {}
        self.size = 0

    def open(self, group: str) -> Ring:
        """A ring of a group."""
        ring = Ring(self, group)
        self._groups.setdefault(group, {})[ring] = None
        self._sizes.setdefault(group, 0)
        return ring

    def leave(self, ring: Ring, group: str) -> None:
        """A ring is gone."""
        del self._groups[group][ring]
        if not self._groups[group]:
            del self._groups[group], self._sizes[group]

    def grow(self, group: str, size: int) -> None:
        """A ring of this group holds so many bytes more."""
        self._sizes[group] += size
        self.size += size

    def fit(self, group: str) -> None:
        """Let frames go until the group, and all groups together, hold what they may."""
        while self._sizes[group] > self._group_bytes:
            _relieve(list(self._groups[group]))
        while self.size > self._total_bytes:
            _relieve([ring for rings in self._groups.values() for ring in rings])


def _relieve(rings: list[Ring]) -> None:
    ended = next((ring for ring in rings if ring.size and ring.has_ended), None)
    if ended is not None:
        ended.drop()
    else:
        max(rings, key=lambda ring: ring.size).halve()
