"""What watchers get: a first frame at once, then one when something changed, the newest when the reader is slow."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import msgspec
from ulid import ULID

from qraf.frames import Metrics, NetworkDelta, NetworkSnapshot, NodeView, ServerFrame, UsageFrame, UsageToday
from qraf.gateway.outbox import Message
from qraf.records import Figures
from qraf.sessions.tenants import TenantService
from qraf.storage.usage import date_of

__all__ = ["NetworkWatch", "SessionWatch", "Topic", "Usage", "UsageWatch", "Watched", "topic_for"]


@dataclasses.dataclass(slots=True)
class Usage:
    """Counts of one connection."""

    written_items: int = 0
    recalls: int = 0
    responses: int = 0
    tokens: int = 0


class Topic(Protocol):
    """A watched topic. `seq` counts the frames that left; `skipped` the changes since then that were not sent alone."""

    stream: str
    skipped: int

    async def poll(self) -> bool:
        """Look again; whether there is something that was not sent yet."""
        ...

    def frame(self) -> ServerFrame:
        """The frame that tells the newest; from here on that counts as sent."""
        ...


class Watched:
    """A watch of one connection, and its slot in the outbox. `is_answered`: the command has its `ack`."""

    def __init__(self, id: str, topic: Topic, every_s: float, encode: Callable[[ServerFrame], Message]) -> None:
        self.id, self.topic, self.every_s = id, topic, every_s
        self.is_answered = False
        self.task: asyncio.Task[None] | None = None
        self._encode = encode

    def take(self) -> Message:
        """The newest, as a message."""
        return self._encode(self.topic.frame())


def topic_for(topic: str, service: TenantService, usage: Usage) -> Topic:
    """The topic by its name in `watch` (which was checked)."""
    if topic == "network":
        return NetworkWatch(service)
    if topic == "usage":
        return UsageWatch(service, usage)
    return SessionWatch(service, topic.removeprefix("session:"))


class NetworkWatch:
    """`network`: a snapshot, then the nodes that changed."""

    def __init__(self, service: TenantService) -> None:
        self.stream, self.skipped, self._seq = _stream(), 0, 0
        self._service = service
        self._sent: dict[str, NodeView] | None = None
        self._now: dict[str, NodeView] = {}

    async def poll(self) -> bool:
        """Look again."""
        self._now = {view.node: view for view in self._service.network()}
        return self._now != self._sent

    def frame(self) -> ServerFrame:
        """A snapshot first, then deltas against what was sent last."""
        self._seq += 1
        before, self._sent, skipped, self.skipped = self._sent, self._now, self.skipped, 0
        if before is None:
            topology = self._service.topology
            return NetworkSnapshot(
                stream=self.stream,
                seq=self._seq,
                topology=topology.name,
                nodes=tuple(self._now.values()),
                links=tuple(_link(link) for link in topology.links),
            )
        changed = tuple(view for name, view in self._now.items() if before.get(name) != view)
        return NetworkDelta(stream=self.stream, seq=self._seq, nodes=changed, skipped=skipped)


class SessionWatch:
    """`session:ID`: the figures of a session's state."""

    def __init__(self, service: TenantService, session: str) -> None:
        self.stream, self.skipped, self._seq = _stream(), 0, 0
        self._service, self._session = service, session
        self._sent: Figures | None = None
        self._now = Figures()

    async def poll(self) -> bool:
        """Ask the session's node; raises SessionNotFound when the session is gone."""
        self._now = await self._service.figures(self._session)
        return self._now != self._sent

    def frame(self) -> ServerFrame:
        """The newest figures."""
        self._seq += 1
        self._sent, skipped, self.skipped = self._now, self.skipped, 0
        return Metrics(stream=self.stream, seq=self._seq, session=self._session, state=self._now, skipped=skipped)


class UsageWatch:
    """`usage`: counts of this connection, and of its key's day, which are looked up once a second at most."""

    def __init__(self, service: TenantService, usage: Usage) -> None:
        self.stream, self.skipped, self._seq = _stream(), 0, 0
        self._usage, self._account = usage, service.account
        self._sent: tuple[Usage, UsageToday | None] | None = None
        self._today: UsageToday | None = None
        self._looked_at = float("-inf")

    async def poll(self) -> bool:
        """Look again."""
        now = asyncio.get_running_loop().time()
        if self._account is not None and now - self._looked_at >= _DAY_EVERY_S:
            self._looked_at = now
            day, used, held = await self._account.today()
            self._today = UsageToday(
                day=date_of(day), **msgspec.structs.asdict(used), held_items=held.items, held_bytes=held.bytes
            )
        return (self._usage, self._today) != self._sent

    def frame(self) -> ServerFrame:
        """The counts."""
        self._seq += 1
        mine, skipped, self.skipped = dataclasses.replace(self._usage), self.skipped, 0
        self._sent = mine, self._today
        return UsageFrame(
            stream=self.stream, seq=self._seq, skipped=skipped, today=self._today, **dataclasses.asdict(mine)
        )


_DAY_EVERY_S = 1.0


def _stream() -> str:
    return f"str_{ULID()}"


def _link(link: Any) -> dict[str, Any]:
    return dataclasses.asdict(link)
