"""The running responses and the last ended ones, and for how long one that nobody reads goes on."""

from __future__ import annotations

from collections import OrderedDict

from ulid import ULID

from qraf.clock import Clock
from qraf.errors import LimitExceeded
from qraf.sessions.response import Response
from qraf.sessions.rings import RingPool
from qraf.settings import LimitSettings

__all__ = ["Responses"]


class Responses:
    """The responses of a gateway, found by stream, id, key, or the owner's command id.

    `epoch` is that of this life of the gateway: the streams of another one are not known here.
    """

    def __init__(self, clock: Clock, limits: LimitSettings) -> None:
        self._clock, self._limits = clock, limits
        self.epoch = str(ULID())[-16:].lower()
        self._pool = RingPool(
            max_frames=limits.ring_frames, group_bytes=limits.ring_session_bytes, total_bytes=limits.ring_bytes
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
        group = f"o/{owner}" if session is None else f"s/{session}"
        ring = self._pool.open(group)
        response = Response(command_id, owner, self._clock, ring, key=key or "", epoch=self.epoch)
        response.grace_s = self._limits.response_grace_s
        self._by_id[response.id] = response
        for alias in _aliases(response):
            self._alias[alias] = response.id
        return response

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
        """How many have not ended."""
        return sum(not r.has_ended for r in self._by_id.values())

    def all_running(self) -> list[Response]:
        """Those that have not ended."""
        return [r for r in self._by_id.values() if not r.has_ended]

    def unread(self) -> list[Response]:
        """Those that run though nobody reads, the ones left longest first."""
        left = [r for r in self._by_id.values() if not r.has_ended and r.left_at is not None]
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
        """Let go of ended responses that are too old or too many, or whose texts are too long together."""
        now, limits = self._clock.now(), self._limits
        ended = [r for r in self._by_id.values() if r.has_ended and r.left_at is not None]
        room = limits.kept_text_bytes
        for rank, response in enumerate(reversed(ended)):
            room -= response.length
            if rank >= limits.kept_responses or room < 0 or now - response.ended_at > limits.kept_response_s:
                self._drop(response)

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
