"""The last frames of each stream, kept for a reader that comes back; bounded in frames, and in bytes together."""

from __future__ import annotations

from collections import deque

from qraf.tenants import DEFAULT_TENANT

__all__ = ["Ring", "RingPool"]

_ENTRY_BYTES = 64  # what an entry weighs beside its frame


class Ring:
    """Encoded frames by `seq`, the oldest dropped first. What a frame says never changes once it is here.

    Made by `RingPool.open`. Whoever fills it sets `has_ended` after the last frame.
    """

    def __init__(self, pool: RingPool, group: str, tenant: str) -> None:
        self._pool, self.group, self.tenant = pool, group, tenant
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
        self._pool.fit(self)

    def get(self, seq: int) -> bytes | None:
        """The frame with this `seq`; None when it is not kept."""
        place = seq - self.first
        return self._entries[place] if 0 <= place < len(self._entries) else None

    def tail(self, most_bytes: int) -> tuple[bytes, ...]:
        """The last frames, as many as have so many bytes together."""
        frames: list[bytes] = []
        for data in reversed(self._entries):
            most_bytes -= len(data)
            if most_bytes < 0:
                break
            frames.append(data)
        return tuple(reversed(frames))

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
        self._pool.leave(self)

    def _grow(self, size: int) -> None:
        self.size += size
        self._pool.grow(self, size)


class RingPool:
    """What the rings of a gateway hold together.

    When a group (a session; a connection where there is none), a tenant or all of them hold too much, the oldest ring
    whose stream has ended is emptied; where there is none, the largest loses its older half. When all of them do, it is
    a ring of the tenant that holds most, so that a tenant with no more than its even share loses nothing to others.
    """

    def __init__(self, *, max_frames: int, group_bytes: int, total_bytes: int, tenant_bytes: int | None = None) -> None:
        self.max_frames, self._total_bytes = max_frames, total_bytes
        self._group_bytes = group_bytes
        self._tenant_bytes = total_bytes if tenant_bytes is None else tenant_bytes
        self._groups: dict[str, _Share] = {}
        self._tenants: dict[str, _Share] = {}
        self.size = 0

    def open(self, group: str, tenant: str = DEFAULT_TENANT) -> Ring:
        """A ring of a group; no group has rings of two tenants."""
        ring = Ring(self, group, tenant)
        self._groups.setdefault(group, _Share()).rings[ring] = None
        self._tenants.setdefault(tenant, _Share()).rings[ring] = None
        return ring

    def leave(self, ring: Ring) -> None:
        """A ring is gone."""
        for shares, name in ((self._groups, ring.group), (self._tenants, ring.tenant)):
            del shares[name].rings[ring]
            if not shares[name].rings:
                del shares[name]

    def grow(self, ring: Ring, size: int) -> None:
        """A ring holds so many bytes more."""
        self._groups[ring.group].size += size
        self._tenants[ring.tenant].size += size
        self.size += size

    def fit(self, ring: Ring) -> None:
        """Let frames go until the ring's group, its tenant, and all together hold what they may."""
        group, tenant = self._groups[ring.group], self._tenants[ring.tenant]
        while group.size > self._group_bytes:
            group.relieve()
        while tenant.size > self._tenant_bytes:
            tenant.relieve()
        while self.size > self._total_bytes:
            max(self._tenants.values(), key=lambda one: one.size).relieve()


class _Share:
    """The rings of a group or of a tenant, in the order in which they were opened, and their bytes."""

    __slots__ = ("rings", "size")

    def __init__(self) -> None:
        self.rings: dict[Ring, None] = {}
        self.size = 0

    def relieve(self) -> None:
        ended = next((ring for ring in self.rings if ring.size and ring.has_ended), None)
        if ended is not None:
            ended.drop()
        else:
            max(self.rings, key=lambda ring: ring.size).halve()
