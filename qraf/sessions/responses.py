"""The running responses and the last ended ones, and for how long one that nobody reads goes on."""

from __future__ import annotations

from collections import OrderedDict, deque

from ulid import ULID

from qraf.clock import Clock
from qraf.errors import LimitExceeded
from qraf.sessions.response import Response
from qraf.sessions.rings import Ring, RingPool
from qraf.settings import LimitSettings
from qraf.storage.responses import ResponseRecord
from qraf.tenants import inside, tenant_of

__all__ = ["Responses"]


class Responses:
    """The responses of a gateway, found by stream, id, key, or the owner's command id.

    `epoch` is that of this life of the gateway: the streams of another one are not known here.
    """

    def __init__(self, clock: Clock, limits: LimitSettings) -> None:
        self._clock, self._limits = clock, limits
        self.epoch = str(ULID())[-16:].lower()
        self._pool = RingPool(
            max_frames=limits.ring_frames,
            group_bytes=limits.ring_session_bytes,
            tenant_bytes=limits.ring_tenant_bytes,
            total_bytes=limits.ring_bytes,
        )
        self._by_id: OrderedDict[str, Response] = OrderedDict()
        self._alias: dict[str, str] = {}

    def create(self, command_id: str, owner: str, *, session: str | None = None, key: str | None = None) -> Response:
        """Start a response. What its ring holds counts for its session, or else for its owner.

        Raises:
            LimitExceeded: as many as allowed are running.
        """
        self.sweep()
        most, running = self._limits.max_running_responses, self.running()
        if running >= most:
            raise LimitExceeded("max_running_responses", most, running + 1, retry_after_ms=1000)
        ring = self.ring(owner, session)
        response = Response(command_id, owner, self._clock, ring, key=key or "", epoch=self.epoch, session=session)
        response.grace_s = self._limits.response_grace_s
        self.add(response)
        return response

    def add(self, response: Response) -> None:
        """From now on it is found here."""
        self._by_id[response.id] = response
        for alias in _aliases(response):
            self._alias[alias] = response.id

    def adopt(self, record: ResponseRecord, key: str, after_seq: int | None) -> Response:
        """One that ended in another life of a gateway; it is found here from now on if its last `seq` is known.

        That of one whose gateway died is not: it follows what its reader saw.
        """
        if (known := self._by_id.get(record.id)) is not None:
            return known
        owner, stays = inside(record.tenant, "elsewhere"), not record.is_lost or after_seq is not None
        ring = self.ring(owner, record.session) if stays else None
        response = Response(
            record.body.command, owner, self._clock, ring, key=key, epoch=record.epoch, session=record.session
        )
        response.restore(record, after_seq or 0)
        if stays:
            self.add(response)
        return response

    def remove(self, response: Response) -> None:
        """From now on it is not found here. Twice: nothing more happens."""
        if self._by_id.get(response.id) is response:
            self._drop(response)

    def ring(self, owner: str, session: str | None) -> Ring:
        """What a response keeps its frames in; it counts for its session, or else for its owner."""
        return self._pool.open(f"o/{owner}" if session is None else f"s/{session}", tenant_of(owner))

    def find(self, target: str, owner: str | None = None) -> Response | None:
        """By response id, stream, key, or (with `owner`) command id."""
        for alias in (target, _key(target)):
            found = self._by_id.get(alias) or self._by_id.get(self._alias.get(alias, ""))
            if found is not None:
                return found
        return None if owner is None else self._by_id.get(self._alias.get(f"{owner}\0{target}", ""))

    def of_key(self, key: str) -> Response | None:
        """The response that was started with this key."""
        return self._by_id.get(self._alias.get(_key(key), ""))

    def running(self) -> int:
        """How many run here."""
        return len(self.all_running())

    def all_running(self) -> list[Response]:
        """Those that run here."""
        return [r for r in self._by_id.values() if not (r.has_ended or r.is_elsewhere)]

    def unread(self) -> list[Response]:
        """Those that run here though nobody reads, the ones left longest first."""
        left = [r for r in self.all_running() if r.left_at is not None]
        return sorted(left, key=lambda r: r.left_at or 0.0)

    def reap(self) -> int:
        """Cancel what nobody came back to in time, or what is too many; returns how many go on unread."""
        now, unread = self._clock.monotonic(), self.unread()
        excess = len(unread) - self._limits.max_unread_responses
        stays = 0
        for rank, response in enumerate(unread):
            if rank < excess or now - (response.left_at or 0.0) >= response.grace_s:
                response.cancel("disconnected")
            else:
                stays += 1
        return stays

    def sweep(self) -> None:
        """Let go of ended responses that are too old or too many, or whose texts are too long together.

        Too many, or too much: the oldest go of the tenant that has most.
        """
        now, limits = self._clock.now(), self._limits
        tenants: dict[str, deque[Response]] = {}
        for response in [r for r in self._by_id.values() if r.has_ended and r.left_at is not None]:
            if now - response.ended_at > limits.kept_response_s:
                self._drop(response)
            else:
                tenants.setdefault(tenant_of(response.owner), deque()).append(response)
        lengths = {tenant: sum(r.length for r in ended) for tenant, ended in tenants.items()}
        while sum(map(len, tenants.values())) > limits.kept_responses:
            most = max(tenants, key=lambda tenant: len(tenants[tenant]))
            lengths[most] -= tenants[most][0].length
            self._drop(tenants[most].popleft())
        while sum(lengths.values()) > limits.kept_text_bytes:
            most = max(lengths, key=lengths.__getitem__)
            lengths[most] -= tenants[most][0].length
            self._drop(tenants[most].popleft())

    def _drop(self, response: Response) -> None:
        del self._by_id[response.id]
        response.close()
        for alias in _aliases(response):
            if self._alias.get(alias) == response.id:
                del self._alias[alias]


def _aliases(response: Response) -> list[str]:
    names = [response.stream, f"{response.owner}\0{response.command_id}"]
    return [*names, _key(response.key)] if response.key else names


def _key(key: str) -> str:
    return f"\0k\0{key}"
